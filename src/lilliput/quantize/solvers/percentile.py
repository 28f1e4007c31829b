"""Ranges that hold all but the outermost part of the values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.solver import RangeSolver
from lilliput.solve.grid import Grid
from lilliput.solve.sample import checked, quantile

NAME = "quantize/solvers/percentile"


@dataclass(frozen=True)
class Percentile(RangeSolver):
    """Clips the outermost 100 - percent % of the values, half of them on either side; symmetric: the largest |x|.

    The range ends at a value that was seen: the least up to which this part lies (McKinstry et al. 2018, arXiv
    1809.04191).

    Attributes:
        percent: of the values that aren't clipped, above 50, up to 100.

    >>> import torch
    >>> Percentile(75).span(torch.tensor([[1.0, -2.0, 3.0, -40.0]]), Grid(8))
    (tensor([-3.]), tensor([3.]))
    >>> Percentile(50).span(torch.tensor([[1.0, -2.0, 3.0, -40.0]]), Grid(8, symmetric=False))
    (tensor([-2.]), tensor([1.]))
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        check_range(NAME, "percent", self.percent, 50.0, 100.0)

    def span(
        self, values: Tensor, grid: Grid, counts: Tensor | None = None, stats: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the quantiles; see `RangeSolver`."""
        weight = checked(NAME, values, counts)
        if not values.numel():
            return values.new_zeros(len(values)), values.new_zeros(len(values))
        if grid.symmetric:
            high = quantile(values.abs(), weight, self.percent / 100)
            return -high, high
        part = (100 + self.percent) / 200
        return -quantile(-values, weight, part).clamp(min=0), quantile(values, weight, part).clamp(min=0)
