"""Conformance of schedules: how a method's setting grows over the training."""

from __future__ import annotations

from typing import Any

from lilliput.core.recipe import Recipe, Rule
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.float16 import Float16
from lilliput.quantize.incremental import Incremental

POINTS = tuple(i / 40 for i in range(41))


def ends_at_the_target(cls: Any) -> None:
    """At the end of the training the method is exactly the one of the recipe."""
    for method in methods():
        assert cls().advance(method, 1.0) == method, f"{method} becomes {cls().advance(method, 1.0)} at the end"


def leaves_its_argument(cls: Any) -> None:
    """It gives a method of the same class, the same one for the same progress, and changes nothing."""
    for method in methods():
        for progress in POINTS:
            moved = cls().advance(method, progress)
            assert type(moved) is type(method), f"{method} becomes {moved}"
            assert moved == cls().advance(method, progress), f"{method} at {progress}: two answers"
        assert method in methods(), f"{method} was changed"


def never_goes_back(cls: Any) -> None:
    """Sparsity, quality and portion don't fall while the training goes on."""
    for name in ("sparsity", "quality", "portion"):
        for method in methods():
            values = [getattr(cls().advance(method, p), name, 0.0) for p in POINTS]
            assert values == sorted(values), f"{method}: {name} falls: {values}"


def recipe_round_trip(cls: Any) -> None:
    """The schedule survives being written to TOML and read."""
    recipe = Recipe((Rule(steps=(Magnitude(sparsity=0.9),), schedule=cls()),))
    assert Recipe.loads(recipe.dumps()) == recipe, f"{cls()} reads otherwise than it was written"


def methods() -> tuple[Any, ...]:
    """Returns the methods that schedules are tried on; one of them knows nothing that could grow."""
    return (
        Magnitude(sparsity=0.95),
        Magnitude(sparsity=0.1),
        Magnitude(quality=1.7),
        Magnitude(),
        Float16(),
        Incremental(),
    )


LAWS = (ends_at_the_target, leaves_its_argument, never_goes_back, recipe_round_trip)


def check(cls: Any) -> None:
    """Runs all laws on a schedule's class.

    Raises:
        AssertionError: says what is wrong.

    >>> from lilliput.prune.iterative import Iterative
    >>> check(Iterative)
    """
    for law in LAWS:
        law(cls)
