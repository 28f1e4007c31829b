"""Group lasso: a penalty on the norms of whole filters, channels, shapes or layers, which makes them zero together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.solve.groups import Unit, as_matrix, axes_within
from lilliput.solve.shrinkage import group_norms, shrink_groups, soft_threshold

UNITS = ("filter", "channel", "kernel", "shape", "depth")


@dataclass(frozen=True)
class GroupLasso:
    """Adds strength * sum over groups of |w_g|_2 to the loss: structured sparsity learning (Wen et al. 2016).

    arXiv 1608.03665; the norm is the root of the sum of squares, without a factor for the group's size. Its proximal
    step is w_g * max(0, 1 - rate * strength / |w_g|). Train with it, then prune the zero groups away and train on
    without. `groups` may be several, `"filter+channel"` or `"filter+shape"`: each gets its own term, and the proximal
    step is theirs one after the other, which is an approximation where groups overlap. For `"depth"` the rule should
    take the convolutions within residual blocks, and neither the first one nor those on the shortcut.

    Attributes:
        groups: `filter`, `channel`, `kernel`, `shape` (a column of the lowered matrix), `depth` (the layer), with `+`.
        strength: lambda >= 0 for the groups; 1e-4 to 1e-3 is usual.
        single: lambda >= 0 for single weights; with it the sparse group lasso, whose exact step is L1 first.

    >>> GroupLasso("filter", strength=1.0).shrink(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), rate=1.0)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """

    groups: str = "filter"
    strength: float = 1e-4
    single: float = 0.0

    def __post_init__(self) -> None:
        check_range("prune/group_lasso", "strength", self.strength, 0, 1e6)
        check_range("prune/group_lasso", "single", self.single, 0, 1e6)
        if not set(self.groups.split("+")) <= set(UNITS):
            raise MethodError(f"prune/group_lasso: groups = '{self.groups}'; there is {', '.join(UNITS)}, joined by +")

    def penalty(self, weight: Tensor) -> Tensor:
        """Returns strength * sum |w_g| + single * sum |w|."""
        matrix = as_matrix(weight)
        terms = [group_norms(matrix, axes_within(unit, matrix.ndim)).sum() for unit in self._units()]
        total: Tensor = self.strength * torch.stack(terms).sum()
        return total + self.single * matrix.abs().sum() if self.single else total

    def shrink(self, weight: Tensor, rate: float) -> Tensor:
        """Returns the weight after the proximal step; see the class."""
        matrix = as_matrix(weight)
        if self.single:
            matrix = soft_threshold(matrix, rate * self.single)
        for unit in self._units():
            matrix = shrink_groups(matrix, axes_within(unit, matrix.ndim), rate * self.strength)
        return matrix.reshape(weight.shape)

    def _units(self) -> list[Unit]:
        return [cast("Unit", word) for word in self.groups.split("+")]
