"""Plain L1: a penalty on the magnitude of each weight, which makes single weights zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.solve.shrinkage import soft_threshold


@dataclass(frozen=True)
class Lasso:
    """Adds strength * sum |w| to the loss (Tibshirani 1996); its proximal step is the soft threshold (ISTA).

    The sub-gradient strength * sign(w) alone never gives an exact zero; the proximal step does, and `prune/sparse`
    then keeps the zeros that are there.

    Attributes:
        strength: lambda >= 0; 1e-5 to 1e-3 is usual.

    >>> import torch
    >>> Lasso(strength=1.0).shrink(torch.tensor([3.0, -0.5, -2.0]), rate=1.0)
    tensor([ 2., -0., -1.])
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        check_range("prune/lasso", "strength", self.strength, 0, 1e6)

    def penalty(self, weight: Tensor) -> Tensor:
        """Returns strength * sum |w|."""
        return self.strength * weight.abs().sum()

    def shrink(self, weight: Tensor, rate: float) -> Tensor:
        """Returns sign(w) * max(|w| - rate * strength, 0)."""
        return soft_threshold(weight, rate * self.strength)
