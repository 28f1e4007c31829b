"""Conformance of penalties: a term of the loss, and the proximal step that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.recipe import Recipe, Rule
from lilliput.testing.spread import generator, same, tried, weights

RATES = (0.0, 1e-3, 0.1, 1.0, 1e3)
SLACK = 1e-9
"""Rounding of an optimum, relative to the objective."""


def claimed(cls: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields (name, weight, penalty) for every weight of the spread that isn't refused; one at least isn't."""
    count = 0
    for name, weight in weights().items():
        value = tried(lambda w=weight: cls(strength=1.0).penalty(w), name)  # type: ignore[misc]
        if value is not None:
            count += 1
            yield name, weight, value
    assert count, "every weight is refused"


def is_a_finite_scalar(cls: Any) -> None:
    """The term is a finite scalar, not negative, zero for a weight of zeros, and in proportion to the strength."""
    for name, weight, value in claimed(cls):
        assert value.shape == (), f"{name}: a term of shape {tuple(value.shape)}"
        if name != "largest":
            assert 0 <= float(value) < float("inf"), f"{name}: the term is {float(value)}"
        assert float(cls(strength=1.0).penalty(torch.zeros_like(weight))) == 0, f"{name}: zeros cost something"
        if name not in {"largest", "subnormal", "in_float16", "in_bfloat16"}:
            twice = float(cls(strength=2.0).penalty(weight))
            assert abs(twice - 2 * float(value)) <= 1e-5 * twice, f"{name}: strength isn't a factor"


def gradient_is_right(cls: Any) -> None:
    """The gradient agrees with finite differences where there is one, and is finite at zero."""
    for name, weight, _ in claimed(cls):
        if not weight.numel() or name == "largest":
            continue
        zero = torch.zeros_like(weight).requires_grad_()
        cls(strength=1.0).penalty(zero).backward()
        assert zero.grad is not None, f"{name}: no gradient"
        assert bool(torch.isfinite(zero.grad).all()), f"{name}: the gradient at zero isn't finite"
        if name in {"linear", "conv", "vector"}:
            point = weight.double().requires_grad_()
            cls(strength=1.0).penalty(point).backward()
            assert point.grad is not None, f"{name}: no gradient"
            way = torch.randn(weight.shape, generator=generator(3), dtype=torch.float64)
            ends = [float(cls(strength=1.0).penalty(point.detach() + sign * 1e-6 * way)) for sign in (1, -1)]
            slope = float((point.grad * way).sum())
            assert abs((ends[0] - ends[1]) / 2e-6 - slope) <= 1e-4 * (1 + abs(slope)), f"{name}: a wrong gradient"


def objective(penalty: Any, rate: float, weight: Tensor, x: Tensor) -> float:
    """Returns |x - weight|^2 / 2 + rate * penalty(x)."""
    return float(0.5 * (x - weight).square().sum() + rate * penalty.penalty(x))


def shrinks_to_the_optimum(cls: Any) -> None:
    """No point near the proximal step, nor the weight itself or zero, has a smaller objective."""
    penalty = cls(strength=1.0)
    for name, weight, _ in claimed(cls):
        if name not in {"linear", "conv", "conv1d", "depthwise", "vector", "in_float64", "constant"}:
            continue
        exact = weight.double()
        for rate in (0.01, 0.1, 0.5):
            found = penalty.shrink(exact, rate)
            least = objective(penalty, rate, exact, found)
            others = [exact, torch.zeros_like(exact), 0.9 * found, 1.1 * found]
            for seed in range(20):
                noise = torch.randn(exact.shape, generator=generator(seed), dtype=torch.float64)
                others += [found + 10.0 ** -(seed % 5 + 1) * noise * ((found != 0) if seed % 2 else 1)]
            for other in others:
                value = objective(penalty, rate, exact, other)
                assert least <= value * (1 + SLACK) + SLACK, f"{name} at {rate}: {least}, but {value} is possible"


def more_removes_more(cls: Any) -> None:
    """Rate 0 changes nothing; with the rate zeros become more, and in the end all; shape and dtype stay."""
    penalty = cls(strength=1.0)
    for name, weight, _ in claimed(cls):
        before = weight.clone()
        found = [penalty.shrink(weight, rate) for rate in RATES]
        assert same(weight, before), f"{name}: the weight was changed"
        assert torch.equal(found[0], weight), f"{name}: rate 0 changes the weight"
        for one, other in pairwise(found):
            assert one.dtype == other.dtype == weight.dtype, f"{name}: the dtype is {other.dtype}"
            assert one.shape == other.shape == weight.shape, f"{name}: the shape is {tuple(other.shape)}"
            assert int((one == 0).sum()) <= int((other == 0).sum()), f"{name}: a larger rate leaves fewer zeros"
        assert name in {"largest", "outlier"} or not bool(found[-1].any()), f"{name}: never becomes zero"


def recipe_round_trip(cls: Any) -> None:
    """The penalty survives being written to TOML and read."""
    recipe = Recipe((Rule(penalty=cls(strength=0.25)),))
    assert Recipe.loads(recipe.dumps()) == recipe, f"{cls()} reads otherwise than it was written"


def refuses_nonsense(cls: Any) -> None:
    """A negative strength is refused by a MethodError."""
    try:
        cls(strength=-1.0)
    except MethodError:
        return
    raise AssertionError("a negative strength is taken")


LAWS = (
    is_a_finite_scalar,
    gradient_is_right,
    shrinks_to_the_optimum,
    more_removes_more,
    recipe_round_trip,
    refuses_nonsense,
)


def check(cls: Any) -> None:
    """Runs all laws on a penalty's class, which has a `strength`.

    Raises:
        AssertionError: says what is wrong.

    >>> from lilliput.prune.lasso import Lasso
    >>> check(Lasso)
    """
    for law in LAWS:
        law(cls)
