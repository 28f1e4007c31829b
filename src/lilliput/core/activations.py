"""`Quantized`: how what goes into a layer, or comes out of one, is quantized, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lilliput.core.errors import MethodError
from lilliput.core.method import NAME, path_of

OUT = ":out"
"""What a layer's path ends with where the quantizer of its result is meant, not that of its input."""


def side_of(key: str) -> tuple[str, bool]:
    """Returns the layer's path, and whether the quantizer stands behind it.

    Args:
        key: of a table of quantizers, as an artifact has it.

    >>> side_of("features.0"), side_of("features.0:out")
    (('features.0', False), ('features.0', True))
    """
    return (key.removesuffix(OUT), True) if key.endswith(OUT) else (key, False)


@dataclass(frozen=True)
class Quantized:
    """An activation quantizer and the numbers that it works with in one layer.

    Attributes:
        method: of `quantize/activations/`, or `core.recipe.Absent` where a file names one that isn't installed.
        numbers: what calibration or training found, by name, finite; none for fixed levels.
    """

    method: Any
    numbers: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """Returns method and levels in a line for reports."""
        if not callable(getattr(self.method, "describe", None)):
            return str(getattr(self.method, "method", self.method))
        told = self.method.describe(self.numbers)
        return " ".join(part for part in (path_of(self.method).rpartition("/")[2], told) if part)


def check_numbers(numbers: Any, what: str) -> dict[str, float]:
    """Returns the numbers of a quantizer if a file may hold them: finite, by short names, at most 64.

    Raises:
        MethodError: names what is wrong.

    >>> check_numbers({"scale": 0.5}, "here")
    {'scale': 0.5}
    """
    if not isinstance(numbers, Mapping) or len(numbers) > 64:
        raise MethodError(f"{what}: the numbers of a quantizer must be a table of at most 64")
    for name, value in numbers.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise MethodError(f"{what}: {str(name)[:80]!a} can't be the name of a quantizer's number")
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) >= 2**63:
            raise MethodError(f"{what}: {name} = {str(value)[:40]} is no finite number")
    return dict(numbers)


def number(numbers: Mapping[str, float], name: str, method: str) -> float:
    """Returns one of a quantizer's numbers.

    Raises:
        MethodError: it is missing: nothing was calibrated, or the file is damaged.
    """
    if name not in numbers:
        raise MethodError(f"{method}: '{name}' is missing: calibrate with data=, or the file is damaged")
    return numbers[name]
