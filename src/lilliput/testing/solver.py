"""Conformance of solvers: ranges that hold zero and scale with the values; roundings that stay among their levels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.stats import Stats
from lilliput.observe.inputs import Gram
from lilliput.solve.grid import Grid
from lilliput.solve.levels import CodebookLevels, GridLevels, Levels
from lilliput.testing.spread import gaussian, generator, same

GRIDS = (Grid(8), Grid(2), Grid(3, symmetric=False))


def gram_of(columns: int, groups: int = 1, seed: int = 3) -> Stats:
    """Returns stats with the Gram matrix of correlated inputs."""
    inputs = torch.randn(groups, 4 * columns, columns, generator=generator(seed))
    inputs = inputs + 0.7 * inputs.roll(1, 2)
    return Stats({"gram": Gram(inputs.transpose(1, 2) @ inputs / (4 * columns), 4 * columns)})


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
            _one_line(error, f"case {number}")
        else:
            raise AssertionError(f"case {number}: {tuple(wrong.shape)} {wrong.dtype} is taken")


def _one_line(error: MethodError, what: str) -> None:
    assert "\n" not in str(error), f"{what}: {error}"


RANGE_LAWS = (gives_ranges, rows_are_alone, scales_through, counts_are_repetitions, refuses_nonsense)


def choices(weight: Tensor) -> dict[str, Levels]:
    """Returns levels of every sort for a weight, by name."""
    scale = weight.abs().amax(1, keepdim=True) / 3
    nothing = torch.zeros_like(scale)
    return {
        "3 bits": GridLevels(Grid(3), scale.expand(weight.shape), nothing.expand(weight.shape)),
        "1 bit": GridLevels(Grid(1), scale.expand(weight.shape), nothing.expand(weight.shape)),
        "affine": GridLevels(Grid(2, False), 2 * scale.expand(weight.shape), (nothing + 1).expand(weight.shape)),
        "codebook": CodebookLevels(torch.tensor([-0.2, -0.03, 0.04, 0.1, 0.3], dtype=weight.dtype)),
    }


def stays_among_levels(cls: Any) -> None:
    """Each weight gets one of the two levels that are there, a zero stays zero; the weight isn't changed."""
    for kind in (torch.float32, torch.float64):
        weight = gaussian(6, 24).to(kind)
        weight[2, 3] = weight[4] = 0
        before = weight.clone()
        for name, levels in choices(weight).items():
            found = cls().settle(weight, levels, gram_of(24))
            assert same(weight, before), f"{name}: the weight was changed"
            assert found.shape == weight.shape, f"{name}: {tuple(found.shape)}"
            assert found.dtype == kind, f"{name}: {found.dtype}"
            assert not bool(found[weight == 0].any()), f"{name}: a zero became another value"
            again = levels.near(found, slice(None), slice(None))
            live = weight != 0
            assert torch.allclose(again[live], found[live]), f"{name}: not among the levels"
            assert same(found, cls().settle(weight, levels, gram_of(24))), f"{name}: another result the second time"


def independent_inputs_make_it_nearest(cls: Any) -> None:
    """Where inputs don't go together, nothing is better than the nearest level."""
    weight = gaussian(6, 24)
    plain = Stats({"gram": Gram(torch.eye(24)[None] * 2.5, 9)})
    for name, levels in choices(weight).items():
        found, near = cls().settle(weight, levels, plain), levels.near(weight, slice(None), slice(None))
        farther = (weight - found).abs() > (weight - near).abs() * (1 + 1e-5)
        assert not bool(farther.any()), f"{name}: {int(farther.sum())} of {near.numel()} aren't the nearest"


def is_better_than_nearest(cls: Any) -> None:
    """The outputs change less than by rounding to nearest, in the sum over weights, in groups too."""
    for groups in (1, 2):
        for name in choices(gaussian(8, 16)) if groups == 1 else ("3 bits",):
            sums = torch.zeros(2, dtype=torch.float64)
            for seed in range(2):
                weight, stats = gaussian(8, 16, seed=seed), gram_of(16, groups, seed)
                levels = choices(weight)[name]
                for place, found in enumerate(
                    (cls().settle(weight, levels, stats), levels.near(weight, slice(None), slice(None)))
                ):
                    change = (weight - found).reshape(groups, -1, 16)
                    sums[place] += ((change @ stats.values["gram"].matrix) * change).sum()
            assert float(sums[0]) < float(sums[1]), f"{name}, {groups} groups: {sums.tolist()}"


def refuses_other_data(cls: Any) -> None:
    """No stats, those of another layer, inputs that are all zero or NaN: a MethodError of one line."""
    weight = gaussian(6, 24)
    levels = choices(weight)["3 bits"]
    zeros, nans = (Stats({"gram": Gram(torch.full((1, 24, 24), bad), 9)}) for bad in (0.0, math.nan))
    for what, stats in {"none": None, "other": gram_of(23), "zeros": zeros, "NaN": nans}.items():
        try:
            cls().settle(weight, levels, stats)
        except MethodError as error:
            _one_line(error, what)
        else:
            raise AssertionError(f"stats of {what} are taken")


ROUNDING_LAWS = (
    stays_among_levels,
    independent_inputs_make_it_nearest,
    is_better_than_nearest,
    refuses_other_data,
)


def check(cls: Any) -> None:
    """Runs all laws on the class of a range solver or a rounding solver.

    Raises:
        AssertionError: says what is wrong.

    >>> from lilliput.quantize.solvers.minmax import MinMax
    >>> check(MinMax)
    """
    for law in RANGE_LAWS if hasattr(cls, "span") else ROUNDING_LAWS:
        law(cls)
