"""Optimal brain damage: weights whose removal the diagonal of the Hessian says costs least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.stats import needed
from lilliput.observe.gradients import Gradients
from lilliput.prune.sparse import Sparse

NAME = "prune/obd"


@dataclass(frozen=True)
class OBD(Sparse):
    """Saliency s = h w^2 / 2, with h the second derivative of the cost (LeCun, Denker & Solla 1990).

    It assumes a minimum (no slope), a diagonal Hessian and a quadratic cost. h is the diagonal of the Hessian: itself
    for weights of up to 64 numbers, negative entries counted as 0, else that of its Gauss-Newton part, the paper's
    Levenberg-Marquardt approximation, estimated by random signs; or the mean square of each example's gradient (the
    empirical Fisher matrix). The last two are never negative.

    Attributes:
        curvature: `"hessian"` or `"fisher"`.

    >>> from lilliput.core.stats import Stats
    >>> stats = Stats({"curvature": torch.tensor([8.0, 0.5])})
    >>> OBD().saliency(torch.tensor([1.0, 3.0]), stats)
    tensor([4.0000, 2.2500])
    """

    curvature: Literal["hessian", "fisher"] = "hessian"

    needs = frozenset({"curvature"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curvature == "fisher":
            object.__setattr__(self, "needs", frozenset({"gradient"}))

    def saliency(self, weight: Tensor, stats: Any) -> Tensor:
        """Returns what the cost is expected to rise by if a weight is removed, of the weight's shape."""
        kind = torch.promote_types(weight.dtype, torch.float32)
        return self._curvature(weight, stats).to(kind) * weight.to(kind).square() / 2

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the root of the saliency, up to a factor, so that no large weight overflows."""
        roots = self._curvature(weight, stats).sqrt()
        kind = torch.promote_types(weight.dtype, torch.float32)
        return weight.abs().to(kind) * (roots / roots.max().clamp(min=1e-300)).to(kind)

    def _curvature(self, weight: Tensor, stats: Any) -> Tensor:
        if self.curvature == "fisher":
            gradients: Gradients = needed(stats, "gradient", NAME)
            found = gradients.square
        else:
            found = needed(stats, "curvature", NAME)
        if found.shape != weight.shape:
            raise MethodError(f"{NAME}: the curvature of shape {tuple(found.shape)} is of another weight")
        return found.clamp(min=0)

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsity 50 %."""
        return (cls(sparsity=0.5),)
