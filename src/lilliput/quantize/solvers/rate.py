"""Ranges for a size: the finest steps whose codes take no more bits a weight once they are entropy-coded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.solver import RangeSolver
from lilliput.solve.grid import Grid, in_units, out_of_units
from lilliput.solve.sample import checked, ends

NAME = "quantize/solvers/rate"


@dataclass(frozen=True)
class Rate(RangeSolver):
    """Finds by bisection the smallest step for which the order-0 entropy of a row's codes is at most `bits`.

    Once codes are entropy-coded, a fine uniform grid without clipping needs fewer bits for the same squared error
    than levels that were placed for a fixed width (Gish and Pierce 1968). Take it with many codes, `bits = 12`, and one
    scale a tensor; the file's coding knows rows and columns, and ends up somewhat below the entropy. Nothing is ever
    clipped: where the codes don't reach far enough, the steps are wider and the entropy is smaller.

    Attributes:
        bits: a weight, 0 to 16.

    >>> values = torch.linspace(-1, 1, 1001)[None]
    >>> round(float(Rate(3).span(values, Grid(8))[1]) / 127, 2)  # some eight levels, evenly used
    0.27
    """

    bits: float = 4.0

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 0.0, 16.0)

    def span(
        self, values: Tensor, grid: Grid, counts: Tensor | None = None, stats: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the range; see `RangeSolver`."""
        weight = checked(NAME, values, counts)
        scaled, unit = in_units(values)
        low, high = ends(scaled, weight)
        if grid.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        factor = torch.stack([self._factor(row, None if weight is None else weight[i], grid, (low[i], high[i]))
                              for i, row in enumerate(scaled)]) if len(scaled) else high  # fmt: skip
        return out_of_units(low * factor, unit, values.dtype), out_of_units(high * factor, unit, values.dtype)

    def _factor(self, values: Tensor, counts: Tensor | None, grid: Grid, ends: tuple[Tensor, Tensor]) -> Tensor:
        """By how much the range that just holds the values is too fine."""
        small, large = 1.0, 2.0 * (grid.highest - grid.lowest)
        if self._entropy(values, counts, grid, ends) <= self.bits:
            return values.new_tensor(1.0)
        for _ in range(24):
            middle = (small * large) ** 0.5
            fits = self._entropy(values, counts, grid, (ends[0] * middle, ends[1] * middle)) <= self.bits
            small, large = (small, middle) if fits else (middle, large)
        return values.new_tensor(large)

    @staticmethod
    def _entropy(values: Tensor, counts: Tensor | None, grid: Grid, ends: tuple[Tensor, Tensor]) -> float:
        scale, zero = grid.step(*ends)
        codes = (grid.codes(values, scale, zero) - grid.lowest).to(torch.int64)
        seen = torch.bincount(codes, weights=counts).double()
        part = seen[seen > 0] / seen.sum()
        return -float((part * part.log2()).sum())
