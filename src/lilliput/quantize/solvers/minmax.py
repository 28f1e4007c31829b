"""Ranges from the least to the largest value: nothing is clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.solver import RangeSolver
from lilliput.solve.grid import Grid
from lilliput.solve.sample import checked, ends

NAME = "quantize/solvers/minmax"


@dataclass(frozen=True)
class MinMax(RangeSolver):
    """low = min(0, min x), high = max(0, max x); symmetric: max|x| on both sides (Jacob et al. 2018, arXiv 1712.05877).

    >>> MinMax().span(torch.tensor([[0.5, -2.0]]), Grid(8))
    (tensor([-2.]), tensor([2.]))
    """

    def span(
        self, values: Tensor, grid: Grid, counts: Tensor | None = None, stats: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the extremes; see `RangeSolver`."""
        low, high = ends(values, checked(NAME, values, counts))
        if not grid.symmetric:
            return low, high
        largest = torch.maximum(-low, high)
        return -largest, largest
