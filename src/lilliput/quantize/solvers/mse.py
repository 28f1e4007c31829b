"""Ranges of the least squared error: what clipping costs against what finer steps gain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.solver import RangeSolver
from lilliput.solve.grid import Grid, in_units, out_of_units
from lilliput.solve.sample import checked, ends

NAME = "quantize/solvers/mse"


@dataclass(frozen=True)
class MSE(RangeSolver):
    """Minimises sum_i n_i |x_i - q(x_i)|^p over the range, by trying parts of the whole range.

    p = 2 is the squared error (Sung et al. 2015, arXiv 1511.06488; Banner et al. 2019, arXiv 1810.05723); GPTQ's
    published ranges take p = 2.4, which clips less. Symmetric: `steps` equally spaced ranges down to a hundredth of
    the whole, then as many around the best. Affine: a net over both ends, then two finer ones around the best.

    Attributes:
        steps: ranges that are tried at a time.
        power: p.

    >>> low, high = MSE().span(torch.cat([torch.full((1, 99), 0.5), torch.full((1, 1), 2.0)], 1), Grid(2))
    >>> 0.5 < float(high) < 0.53
    True
    """

    steps: int = 40
    power: float = 2.0

    def __post_init__(self) -> None:
        check_range(NAME, "steps", self.steps, 2, 10_000)
        check_range(NAME, "power", self.power, 0.1, 10.0)

    def span(
        self, values: Tensor, grid: Grid, counts: Tensor | None = None, stats: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the best range that was tried, the whole one among them; see `RangeSolver`."""
        weight = checked(NAME, values, counts)
        scaled, unit = in_units(values)
        low, high = ends(scaled, weight)
        if grid.symmetric:
            whole_range = torch.maximum(-low, high)
            high = self._best(whole_range, lambda end: self._cost(scaled, weight, grid, (-end, end)))
            low = -high
        else:
            low, high = self._affine(scaled, weight, grid, (low, high))
        return out_of_units(low, unit, values.dtype), out_of_units(high, unit, values.dtype)

    def _affine(
        self, values: Tensor, counts: Tensor | None, grid: Grid, most: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The ends of the least cost: of a coarse net over both first, then of finer and finer ones around the best."""
        best, least = most, self._cost(values, counts, grid, most)
        middle, width, number = (torch.ones_like(most[1]), torch.ones_like(most[1])), 1.0, max(self.steps // 4, 3)
        for _ in range(3):
            nets = torch.linspace(-width, width if width < 1 else 0.0, number)
            found = middle
            for one in nets:
                for other in nets:
                    parts = tuple((m + shift).clamp(0.01, 1) for m, shift in zip(middle, (one, other)))
                    ends = most[0] * parts[0], most[1] * parts[1]
                    cost = self._cost(values, counts, grid, ends)
                    better = cost < least
                    least = torch.where(better, cost, least)
                    best = tuple(torch.where(better, a, b) for a, b in zip(ends, best))  # type: ignore[assignment]
                    found = tuple(torch.where(better, a, b) for a, b in zip(parts, found))  # type: ignore[assignment]
            middle, width = found, 1.5 * float(nets[1] - nets[0])
        return best

    def _best(self, most: Tensor, cost: Callable[[Tensor], Tensor]) -> Tensor:
        """The end of the least cost among parts of the largest, (rows,); of equals the largest."""
        best, least = most.clone(), cost(most)
        parts = torch.linspace(1, 0.01, self.steps)
        width = float(parts[0] - parts[1])
        for part in parts[1:]:
            best, least = _better(best, least, most * part, cost)
        around = best.clone()
        for shift in torch.linspace(-width, width, self.steps):
            best, least = _better(best, least, (around + most * shift).clamp(min=0).minimum(most), cost)
        return best

    def _cost(self, values: Tensor, counts: Tensor | None, grid: Grid, ends: tuple[Tensor, Tensor]) -> Tensor:
        """What a range costs each row."""
        scale, zero = grid.step(*ends)
        gap = grid.near(values, scale[:, None], zero[:, None]).sub_(values).abs_()
        gap = gap.square_() if self.power == 2 else gap.pow_(self.power)
        return gap.sum(1, dtype=torch.float64) if counts is None else (gap.double() * counts).sum(1)


def _better(best: Tensor, least: Tensor, end: Tensor, cost: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    found = cost(end)
    better = found < least
    return torch.where(better, end, best), torch.where(better, found, least)
