"""Conformance of rounding solvers: they stay among their levels, and serve the outputs better than the nearest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.stats import Stats
from lilliput.observe.inputs import Gram
from lilliput.solve.grid import Grid
from lilliput.solve.levels import CodebookLevels, GridLevels, Levels
from lilliput.testing.spread import gaussian, generator, same


def gram_of(columns: int, groups: int = 1, seed: int = 3) -> Stats:
    """Returns stats with the Gram matrix of correlated inputs."""
    inputs = torch.randn(groups, 4 * columns, columns, generator=generator(seed))
    inputs = inputs + 0.7 * inputs.roll(1, 2)
    return Stats({"gram": Gram(inputs.transpose(1, 2) @ inputs / (4 * columns), 4 * columns)})


def one_line(error: MethodError, what: str) -> None:
    """Fails unless the message is one line."""
    assert "\n" not in str(error), f"{what}: {error}"


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
            one_line(error, what)
        else:
            raise AssertionError(f"stats of {what} are taken")


LAWS = (
    stays_among_levels,
    independent_inputs_make_it_nearest,
    is_better_than_nearest,
    refuses_other_data,
)


def check(cls: Any) -> None:
    """Runs all laws on the class of a rounding solver.

    Raises:
        AssertionError: says what is wrong.

    >>> from lilliput.quantize.solvers.gptq import GPTQ
    >>> check(GPTQ)
    """
    for law in LAWS:
        law(cls)
