"""Conformance of range solvers: ranges that hold zero, scale with the values, and read a histogram as values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.stats import Stats
from lilliput.solve.grid import Grid
from lilliput.testing.rounding_solver import gram_of, one_line
from lilliput.testing.spread import gaussian, generator, same

GRIDS = (Grid(8), Grid(2), Grid(3, symmetric=False))


def samples() -> dict[str, Tensor]:
    """Returns rows of values of every sort, by name."""
    heavy = gaussian(2, 64, seed=1)
    heavy[1, 5] = 100.0
    return {
        "gaussian": gaussian(2, 64),
        "positive": gaussian(2, 64, seed=2).abs(),
        "heavy": heavy,
        "a zero row": torch.stack([torch.zeros(64), gaussian(64, seed=4)]),
        "largest": torch.tensor([[3.4e38, -3.4e38, 1.0, 2.0] * 16]),
        "subnormal": torch.tensor([[1e-45, -3e-45, 0.0, 2e-39] * 16]),
        "float16": gaussian(1, 64, seed=5).half(),
        "float64": gaussian(1, 64, seed=6).double(),
    }


def _tried(cls: Any) -> Iterator[tuple[str, Any, Grid, Tensor, Stats | None]]:
    solver = cls()
    for name, values in samples().items():
        for grid in GRIDS:
            yield f"{name}, {grid}", solver, grid, values, gram_of(values.shape[1]) if solver.needs else None


def gives_ranges(cls: Any) -> None:
    """Finite ranges around zero, of the values' dtype, symmetric where the grid is; the values aren't changed."""
    for what, solver, grid, values, stats in _tried(cls):
        before = values.clone()
        low, high = solver.span(values, grid, stats=stats)
        assert same(values, before), f"{what}: the values were changed"
        assert low.shape == high.shape == (len(values),), f"{what}: ranges of shape {tuple(low.shape)}"
        assert low.dtype == high.dtype == values.dtype, f"{what}: ranges of {low.dtype}"
        assert bool(torch.isfinite(low).all() and torch.isfinite(high).all()), f"{what}: {low} .. {high}"
        assert bool((low <= 0).all() and (high >= 0).all()), f"{what}: {low} .. {high} doesn't hold zero"
        assert not grid.symmetric or torch.equal(low, -high), f"{what}: {low} .. {high} isn't symmetric"
        empty = ~values.bool().any(1)
        assert not bool(high[empty].any() or low[empty].any()), f"{what}: a range for zeros alone"


def rows_are_alone(cls: Any) -> None:
    """Each row gets what it gets without the others."""
    for what, solver, grid, values, stats in _tried(cls):
        if not what.startswith(("heavy", "positive")):
            continue
        whole = solver.span(values, grid, stats=stats)
        alone = [solver.span(row[None], grid, stats=stats) for row in values]
        for side in (0, 1):
            apart = torch.cat([found[side] for found in alone])
            assert torch.allclose(whole[side], apart, rtol=1e-3), f"{what}: {whole[side]}, alone {apart}"


def scales_through(cls: Any) -> None:
    """Values times a power of two have that range times it."""
    solver = cls()
    values = gaussian(2, 64)
    stats = gram_of(64) if solver.needs else None
    for grid in GRIDS:
        one, other = solver.span(values, grid, stats=stats), solver.span(values * 2.0**9, grid, stats=stats)
        for side in (0, 1):
            assert torch.allclose(one[side] * 2.0**9, other[side], rtol=1e-5), f"{grid}: {one[side]}, {other[side]}"


def counts_are_repetitions(cls: Any) -> None:
    """A value with a count of three is a value three times over, and one with none isn't there."""
    solver = cls()
    if solver.needs:
        return
    values = gaussian(2, 48, seed=7)
    counts = torch.randint(4, (48,), generator=generator(8))
    repeated = values.repeat_interleave(counts, 1)
    for grid in GRIDS:
        one, other = solver.span(values, grid, counts), solver.span(repeated, grid)
        for side in (0, 1):
            assert torch.allclose(one[side], other[side], rtol=1e-4), f"{grid}: {one[side]}, repeated {other[side]}"


def refuses_nonsense(cls: Any) -> None:
    """NaN, infinity, values that are no rows, and counts that don't fit are refused by a MethodError of one line."""
    solver, values = cls(), gaussian(2, 16)
    stats = gram_of(16) if solver.needs else None
    counts = torch.ones(16)
    cases: list[tuple[Tensor, Tensor | None]] = [(values[0], None), (values.long(), None), (values, counts[:5])]
    cases += [(values.clone().fill_(bad), None) for bad in (math.nan, math.inf)]
    cases += [(values, -counts), (values, counts * math.nan)]
    for number, (wrong, given) in enumerate(cases):
        try:
            solver.span(wrong, Grid(8), given, stats)
        except MethodError as error:
            one_line(error, f"case {number}")
        else:
            raise AssertionError(f"case {number}: {tuple(wrong.shape)} {wrong.dtype} is taken")


LAWS = (gives_ranges, rows_are_alone, scales_through, counts_are_repetitions, refuses_nonsense)


def check(cls: Any) -> None:
    """Runs all laws on the class of a range solver.

    Raises:
        AssertionError: says what is wrong.

    >>> from lilliput.quantize.solvers.minmax import MinMax
    >>> check(MinMax)
    """
    for law in LAWS:
        law(cls)
