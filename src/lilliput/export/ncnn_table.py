"""ncnn's calibration tables: text, a line of scales for each product's weight, then one for each product's input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lilliput.core.errors import FileError

SUFFIX = "_param_0"
"""Behind a layer's name, on the line of its weight."""


@dataclass(frozen=True)
class Scales:
    """Of one product: whole numbers are values times these, as ncnn2table writes them: 127 / max|x|.

    Attributes:
        weight: one a row; 0 where the row is nothing but zeros.
        source: of what goes in.
    """

    weight: Sequence[float]
    source: float


def write_table(scales: Mapping[str, Scales]) -> str:
    """Returns the text: all weights, then all inputs; empty without any.

    Args:
        scales: by the layer's name in the `.param`.

    >>> print(write_table({"conv1": Scales([12.7, 127.0], 63.5)}), end="")
    conv1_param_0 1.270000000e+01 1.270000000e+02
    conv1 6.350000000e+01
    """
    weights = [f"{name}{SUFFIX} {' '.join(map(_number, own.weight))}\n" for name, own in scales.items()]
    return "".join([*weights, *(f"{name} {_number(own.source)}\n" for name, own in scales.items())])


def read_table(text: str) -> dict[str, Scales]:
    r"""Returns the scales by layer, of a table that ncnn2table or `write_table` wrote.

    Args:
        text: what the file holds.

    Raises:
        FileError: a line that isn't a name and numbers, a name that comes twice, a weight without its input or an
            input without its weight, an input with several scales or one that isn't above zero.

    >>> read_table("conv1_param_0 12.7 127.0 \nconv1 63.5 \n")
    {'conv1': Scales(weight=[12.7, 127.0], source=63.5)}
    """
    found: dict[str, list[float]] = {}
    for place, line in enumerate(text.splitlines(), start=1):
        name, *words = line.split() or [""]
        if not name:
            continue
        if name in found:
            raise FileError(f"ncnn's table, line {place}: {name[:80]} was there before")
        found[name] = [_scale(word, place) for word in words]
        if not words:
            raise FileError(f"ncnn's table, line {place}: {name[:80]} has no scales")
    weights = {name.removesuffix(SUFFIX): own for name, own in found.items() if name.endswith(SUFFIX)}
    sources = {name: own for name, own in found.items() if not name.endswith(SUFFIX)}
    if alone := weights.keys() ^ sources.keys():
        name = min(alone)
        have, need = ("weight", "input") if name in weights else ("input", "weight")
        raise FileError(f"ncnn's table: {name[:80]} has scales of its {have} and none of its {need}")
    for name, own in sources.items():
        if len(own) != 1 or own[0] <= 0:
            raise FileError(f"ncnn's table: the input of {name[:80]} needs one scale above zero, not {own[:4]}")
    return {name: Scales(own, sources[name][0]) for name, own in weights.items()}


def _scale(word: str, place: int) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise FileError(f"ncnn's table, line {place}: '{word[:40]}' is no scale; they are numbers from 0 on")
    return value


def _number(value: float) -> str:
    return f"{value:.9e}"
