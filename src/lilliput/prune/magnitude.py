"""Magnitude pruning: small weights are removed, by a target sparsity or by Han's threshold q * std."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed
from lilliput.prune.sparse import Sparse

NAME = "prune/magnitude"


def dropout_after(drop: float, density: float) -> float:
    """Returns the dropout with which a pruned layer is retrained: D sqrt(C_r / C_o) (Han et al. 2015, section 3.2).

    A layer that has lost connections can hold less, so less of it needs to be dropped.

    Args:
        drop: probability with which it was trained, D.
        density: connections that are left over those that there were, C_r / C_o.

    >>> dropout_after(0.5, 0.25)
    0.25
    """
    check_range(NAME, "drop", drop, 0, 1)
    check_range(NAME, "density", density, 0, 1)
    return float(drop * density**0.5)


@dataclass(frozen=True)
class Magnitude(Sparse):
    """Keeps the weights of largest magnitude (Han et al. 2015, arXiv 1506.02626).

    Either a target `sparsity`, or the paper's threshold t = quality * std(W), with the standard deviation taken over
    the weights that are still alive: a weight is kept if |w| >= t. The mask is state: once removed, a weight stays
    removed, and training goes on with the survivors.

    Attributes:
        quality: the paper's quality parameter q >= 0; 0 to prune by sparsity.

    >>> Magnitude(sparsity=0.5).pack(torch.tensor([0.1, -3.0, 2.0, 0.0])).parts["values"]
    tensor([-3.,  2.])
    """

    quality: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(NAME, "quality", self.quality, 0, 1e6)
        if self.quality and self.sparsity:
            raise MethodError(f"{NAME}: give a sparsity or a quality, not both")
        if self.quality and self.pattern != "unstructured":
            raise MethodError(f"{NAME}: quality is a threshold for single weights; give a sparsity to {self.pattern}")
        if self.quality and self.scope != "layer":
            raise MethodError(f"{NAME}: quality is a threshold for each layer; give a sparsity for scope = 'global'")

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns |w|."""
        return weight.abs().to(torch.promote_types(weight.dtype, torch.float32))

    def mask(self, weight: Tensor, stats: Any = None, alive: Tensor | None = None) -> Tensor:
        """Returns which weights are kept; see the class."""
        if not self.quality:
            return super().mask(weight, stats, alive)
        scores = self.score(weight)
        alive = torch.ones_like(weight, dtype=torch.bool) if alive is None else alive
        live = weight[alive].double()
        if not live.numel():
            return alive
        return alive & (scores >= self.quality * float(live.std(correction=0)))

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs as every pruning method does, and notes the quality that the mask was made by."""
        packed = super().pack(weight, stats, prior)
        if not self.quality:
            return packed
        made = prior.settings.get("quality", 0.0) if prior is not None and self.fulfilled(prior) else self.quality
        return replace(packed, settings={"quality": made})

    def fulfilled(self, prior: Packed) -> bool:
        """By quality: a mask stays until a larger quality is asked for, by a schedule or a new `attach`."""
        if not self.quality:
            return super().fulfilled(prior)
        return float(prior.settings.get("quality", 0.0)) >= self.quality

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsities from 95 % to 50 %."""
        return tuple(cls(sparsity=s) for s in (0.95, 0.9, 0.8, 0.7, 0.6, 0.5))
