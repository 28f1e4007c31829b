"""Solvers: how a quantizer finds its ranges and its roundings, and how a recipe spells them."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec

from lilliput.core.errors import MethodError
from lilliput.core.method import find

if TYPE_CHECKING:
    from torch import Tensor

    from lilliput.solve.grid import Grid
    from lilliput.solve.levels import Levels

FAMILY = "quantize/solvers"


class RangeSolver(Protocol):
    """Where a grid begins and ends, for weights and activations; a frozen dataclass in `quantize/solvers/`.

    Attributes:
        needs: what `Stats` must hold.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def span(
        self, values: Tensor, grid: Grid, counts: Tensor | None = None, stats: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the range that the grid should cover, for each row; what is outside will be clipped to it.

        Args:
            values: (rows, n), floating-point, finite; unchanged. Each row gets a range of its own. Of a histogram:
                the centres of its bins.
            grid: the codes that there will be.
            counts: how often each value was seen, (n,) or (rows, n), not negative: the bins of a histogram. None: once.
            stats: what calibration collected for this weight, for solvers that need it.

        Returns:
            low and high, (rows,), of the dtype of `values`, low <= 0 <= high; -high and high if the grid is symmetric.
            Both 0 for a row without values, or with zeros alone.

        Raises:
            MethodError: values or counts that make no sense; stats that are missing.
        """
        ...


class RoundingSolver(Protocol):
    """Which level each weight gets, where the nearest isn't best; a frozen dataclass in `quantize/solvers/`.

    Attributes:
        needs: what `Stats` must hold.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def settle(self, weight: Tensor, levels: Levels, stats: Any = None) -> Tensor:
        """Returns the level of each weight.

        Args:
            weight: (rows, columns), at least float32, of moderate size; unchanged. Exact zeros stay exact zeros.
            levels: what each may become.
            stats: what calibration collected for this weight.

        Returns:
            (rows, columns): values among the levels, and zeros where the weight is zero.

        Raises:
            MethodError: stats that are missing, of another layer, or tell nothing.
        """
        ...


@dataclass(frozen=True)
class Solvers:
    """What a quantizer was told to take.

    Attributes:
        range: finds where the grid begins and ends; None if not said.
        rounding: places the weights; None: each goes to the nearest level.
    """

    range: RangeSolver | None = None
    rounding: RoundingSolver | None = None

    @property
    def needs(self) -> frozenset[str]:
        """What `Stats` must hold for both."""
        found = [solver.needs for solver in (self.range, self.rounding) if solver is not None]
        return frozenset[str]().union(*found)


@cache
def solvers_of(text: str) -> Solvers:
    """Returns the solvers that a recipe spells by name, settings after colons, a range and a rounding joined by `+`.

    `"mse"`, `"percentile:99.9"`, `"gptq"`, `"mse+gptq"`, `"rate:3.5+gptq:damping=0.05"`.

    Raises:
        MethodError: no such solver, two of one kind, or settings that it doesn't take.

    >>> solvers_of("percentile:99.9+gptq").range
    Percentile(percent=99.9)
    """
    found: dict[str, Any] = {}
    for word in text.replace(" ", "").split("+") if text.strip() else ():
        solver = _solver(word)
        kind = "range" if hasattr(solver, "span") else "rounding"
        if kind in found:
            raise MethodError(f"solver '{text}': two solvers for the {kind}; join one that finds the range and one "
                              "that rounds, as in 'mse+gptq'")  # fmt: skip
        found[kind] = solver
    return Solvers(**found)


def _solver(word: str) -> Any:
    name, *settings = word.split(":")
    cls = find(FAMILY, name)
    fields = [field.name for field in dataclasses.fields(cls)]
    kinds = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for number, setting in enumerate(settings):
        key, equals, value = setting.partition("=")
        if not equals:
            key, value = fields[number] if number < len(fields) else "", setting
        if key not in fields or key in given:
            taken = ", ".join(fields) or "no settings"
            raise MethodError(f"solver '{word}': {FAMILY}/{name} takes {taken}, as in '{name}:{fields[0]}=...'"
                              if fields else f"solver '{word}': {FAMILY}/{name} takes {taken}")  # fmt: skip
        try:
            given[key] = msgspec.convert(value, kinds[key], strict=False)
        except msgspec.ValidationError as error:
            raise MethodError(f"solver '{word}': {key}: {error}") from None
    return cls(**given)
