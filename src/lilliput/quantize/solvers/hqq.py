"""HQQ: ranges that let a few weights be far off for the sake of all others, found without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.solver import RangeSolver
from lilliput.solve.grid import Grid, in_units, out_of_units, whole
from lilliput.solve.sample import checked, ends

NAME = "quantize/solvers/hqq"


@dataclass(frozen=True)
class HQQ(RangeSolver):
    """Minimises sum |w - q(w)|^p for p < 1 by half-quadratic splitting (Badri and Shaji 2023, HQQ).

    By turns: the outliers e = shrink(w - q(w)), shrink(x) = sign(x) max(0, |x| - p |x|^(p-1) / beta) in steps, and the
    grid that fits w - e best: its zero point mean(code - (w - e) / scale), unless it is symmetric, and its scale
    <w - e, code - zero> / <code - zero, code - zero>. beta grows by `growth` each time, and the best grid that was met
    is taken. In the published method the zero point is a real number and the scale stays; here it is a whole number,
    so that a zero stays a zero, and it seldom moves without the scale.

    Attributes:
        p: of the norm.
        beta: the first one.
        growth: of beta.
        iterations: at most.

    >>> low, high = HQQ().span(torch.tensor([[0.5, -0.5, 0.5, -0.5, 0.9]]), Grid(2))
    >>> round(float(high), 1)
    0.5
    """

    p: float = 0.7
    beta: float = 3.0
    growth: float = 1.01
    iterations: int = 40

    def __post_init__(self) -> None:
        check_range(NAME, "p", self.p, 0.01, 1.0)
        check_range(NAME, "beta", self.beta, 1e-6, 1e9)
        check_range(NAME, "growth", self.growth, 1.0, 10.0)
        check_range(NAME, "iterations", self.iterations, 1, 10_000)

    def span(
        self, values: Tensor, grid: Grid, counts: Tensor | None = None, stats: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the range; see `RangeSolver`."""
        weight = checked(NAME, values, counts)
        scaled, unit = in_units(values)
        low, high = ends(scaled, weight)
        if grid.symmetric:
            high = torch.maximum(-low, high)
        scale, zero = grid.step(low, high)
        found = self._solved(scaled, weight, grid, scale, zero)
        low, high = (found[0] * (grid.lowest - found[1]), found[0] * (grid.highest - found[1]))
        return out_of_units(low, unit, values.dtype), out_of_units(high, unit, values.dtype)

    def _solved(
        self, values: Tensor, counts: Tensor | None, grid: Grid, scale: Tensor, zero: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The scale and the zero point of the least error that was met."""
        weight = torch.ones_like(values) if counts is None else counts.to(values.dtype)
        best, least = (scale, zero), torch.full(scale.shape, torch.inf, dtype=torch.float64)
        beta = self.beta
        for _ in range(self.iterations + 1):
            codes = grid.codes(values, scale[:, None], zero[:, None])
            gap = values - (codes - zero[:, None]) * scale[:, None]
            size = gap.abs()
            error = (size.pow(self.p) * weight).sum(1, dtype=torch.float64)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, scale, best[0]), torch.where(better, zero, best[1])
            steps = size / whole(scale)[:, None]
            pull = self.p * steps.clamp(min=1e-9).pow(self.p - 1) / beta
            rest = values - gap.sign() * (steps - pull).clamp(min=0) * scale[:, None]
            if not grid.symmetric:
                off = ((codes - rest / whole(scale)[:, None]) * weight).sum(1) / whole(weight.sum(1))
                zero = off.round().clamp(grid.lowest, grid.highest)
            centred = codes - zero[:, None]
            fit = (rest * centred * weight).sum(1) / whole((centred.square() * weight).sum(1))
            scale = torch.where(fit > 0, fit, scale)
            beta *= self.growth
        return best
