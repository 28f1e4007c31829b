"""Network slimming: L1 on the scales of BatchNorm, so that channels that aren't needed switch themselves off."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.solve.shrinkage import soft_threshold


@dataclass(frozen=True)
class Slimming:
    """Adds strength * sum |gamma| over the scales of a norm layer to the loss (Liu et al. 2017, arXiv 1708.06519).

    A channel whose scale is zero gives a constant, and is cut when the file is made. Afterwards one threshold for all
    layers removes the small scales, `prune/magnitude` with `scope = "global"` on the same weights; then train on.

    Attributes:
        strength: lambda >= 0; the paper takes 1e-5 to 1e-4.

    >>> import torch
    >>> Slimming(strength=0.1).shrink(torch.tensor([1.0, 0.05]), rate=1.0)
    tensor([0.9000, 0.0000])
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        check_range("prune/slimming", "strength", self.strength, 0, 1e6)

    def penalty(self, weight: Tensor) -> Tensor:
        """Returns strength * sum |gamma|.

        Raises:
            MethodError: for anything but a vector of scales.
        """
        if weight.ndim != 1:
            raise MethodError(
                f"prune/slimming: takes the scales of a norm, not a weight of shape {tuple(weight.shape)}; "
                "write match = '*norm*.weight', layers = 'vector'"
            )
        return self.strength * weight.abs().sum()

    def shrink(self, weight: Tensor, rate: float) -> Tensor:
        """Returns sign(gamma) * max(|gamma| - rate * strength, 0)."""
        return soft_threshold(weight, rate * self.strength)
