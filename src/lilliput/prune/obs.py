"""Optimal brain surgeon: one weight after the other is removed, and all others make up for it, exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed
from lilliput.core.stats import needed
from lilliput.prune.sparse import Sparse, mask_of
from lilliput.solve.surgeon import surgeon

NAME = "prune/obs"


@dataclass(frozen=True)
class OBS(Sparse):
    """Removes the weight of smallest L_q = w_q^2 / (2 [H^-1]_qq), and moves the others by -w_q / [H^-1]_qq H^-1 e_q.

    Hassibi & Stork 1992. H = alpha I + 1/P sum x x^T over examples and outputs, with x the derivative of the output
    with respect to this weight matrix: exact where outputs are linear in it and the cost is the squared error.
    Weights of at most 2048 entries, each matrix for itself; `obc` is for larger ones. Only without a structure of the
    mask.

    Attributes:
        alpha: added to the diagonal, relative to its mean; > 0.

    >>> from lilliput.core.stats import Stats
    >>> pair = Stats({"hessian": torch.tensor([[2.0, 1.9], [1.9, 2.0]])})
    >>> OBS(sparsity=0.5).pack(torch.tensor([1.0, 1.1]), pair).parts["values"]
    tensor([2.0500])
    """

    alpha: float = 1e-6

    needs = frozenset({"hessian"})
    updates = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(NAME, "alpha", self.alpha, 1e-12, 10.0)
        if self.pattern != "unstructured":
            raise MethodError(f"{NAME}: removes single weights; prune/obc takes pattern {self.pattern}")

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns when each weight is removed if all are, from 0 on."""
        order = self._removed(weight, stats, weight.numel(), weight != 0)[1]
        return order.to(torch.promote_types(weight.dtype, torch.float32)).reshape(weight.shape)

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs as every pruning method does, with values that make up for what is removed.

        Raises:
            MethodError: a weight isn't finite; there are no stats, or of another shape; the weight is too large.
        """
        check_weight(weight.detach(), NAME)
        if not self.sparsity or not weight.numel() or (prior is not None and self.fulfilled(prior)):
            return super().pack(weight, stats, prior)
        alive = mask_of(prior) if prior is not None else weight != 0
        count = round(self.sparsity * weight.numel())
        value, order = self._removed(weight.detach(), stats, count, alive)
        mask = (order >= weight.numel()).reshape(weight.shape) & alive
        found = Packed("prune/sparse", tuple(weight.shape), weight.dtype, {"mask": mask}, {"pattern": self.pattern})
        made = super().pack(weight, stats, found)
        most = torch.finfo(weight.dtype).max
        solved = value.reshape(weight.shape).clamp(-most, most).to(weight.dtype)
        return replace(made, parts={**made.parts, "values": solved[mask]})

    def _removed(self, weight: Tensor, stats: Any, count: int, alive: Tensor) -> tuple[Tensor, Tensor]:
        hessian: Tensor = needed(stats, "hessian", NAME)
        if hessian.shape != (weight.numel(), weight.numel()):
            raise MethodError(f"{NAME}: the Hessian of shape {tuple(hessian.shape)} is of another weight")
        size = float(weight.abs().max()) or 1.0
        whole = hessian.double()
        extra = self.alpha * (float(whole.diagonal().mean()) or 1.0)
        whole = whole + extra * torch.eye(len(whole), dtype=whole.dtype, device=whole.device)
        try:
            inverse = torch.linalg.inv(whole)
        except RuntimeError:
            raise MethodError(f"{NAME}: the Hessian can't be inverted; raise alpha") from None
        value, order = surgeon(weight.double().flatten() / size, inverse, count, alive.flatten())
        return value * size, order
