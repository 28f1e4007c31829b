"""A network as a few kinds of steps with fixed sizes and fixed arithmetic, for machines without any library.

Each step says exactly what it computes, in which order and in which type, so that what is written in C and the NumPy
code here give the same bits. Values are float32. Where a layer's input is on levels (or is signs) and its weight is
whole numbers times a scale for each row, products are summed in int32, y = float(sum) (scale step) + bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput.core.errors import ModelError
from lilliput.export.quantized import codes_of
from lilliput.graph.layers import Norm

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
F = np.float32
HIGH = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight as rows.

    Attributes:
        form: `"float"`, `"int8"`, `"shift"` (plus or minus powers of two, and 0), `"ternary"` or `"binary"`.
        values: (rows, columns), float32 for `"float"`, else integers.
        scale: (rows,), float32; None for `"float"`.
    """

    form: str
    values: NDArray[Any]
    scale: Floats | None


def weight_of(packed: Any, tensor: Tensor) -> Weight:
    """Finds whole numbers and scales of rows that make a weight exactly, as few bits a number as may be.

    Args:
        packed: as the artifact holds it.
        tensor: unpacked.

    >>> weight_of(None, torch.tensor([[0.5, -0.5], [0.25, 0.25]])).form
    'binary'
    """
    rows = tensor.detach().flatten(1).numpy().astype(F)
    held = codes_of(packed)
    if held is not None:
        values = held.codes.reshape(rows.shape).astype(np.int64)
        scale = np.broadcast_to(held.scale, rows.shape[:1]).astype(F)
    else:
        found = [_whole(row) for row in rows]
        if any(each is None for each in found):
            return Weight("float", rows, None)
        values = np.stack([each[0] for each in found if each is not None])
        scale = np.array([each[1] for each in found if each is not None], F)
    if not np.array_equal(values.astype(F) * scale[:, None], rows):
        return Weight("float", rows, None)
    sizes = set(np.unique(np.abs(values)).tolist())
    if sizes <= {1}:
        return Weight("binary", values, scale)
    if sizes <= {0, 1}:
        return Weight("ternary", values, scale)
    powers = all(size == 0 or size & (size - 1) == 0 for size in sizes)
    return Weight("shift" if powers and max(sizes) <= 2**14 else "int8", values, scale)


def _whole(row: Floats) -> tuple[Integers, float] | None:
    """Whole numbers up to 127, or powers of two up to 2^14, and a scale; None if there are none."""
    least = np.abs(row[row != 0]).min() if row.any() else F(1)
    for part in (1, 2, 3, 4, 5, 6, 7, 8):
        unit = F(least / F(part))
        values = np.round(row.astype(np.float64) / unit).astype(np.int64)
        sizes = set(np.abs(values[values != 0]).tolist())
        fits = max(sizes, default=0) <= 127 or (all(s & (s - 1) == 0 for s in sizes) and max(sizes) <= 2**14)
        if fits and np.array_equal(values.astype(F) * unit, row):
            return values, float(unit)
    return None


@dataclass(frozen=True, eq=False)
class Levels:
    """codes = clip(round(x / scale) + zero, low, high) - zero; as floats, codes scale. Signs: codes are +1 and -1."""

    source: int
    scale: float
    zero: int = 0
    low: int = 0
    high: int = 0
    signs: bool = False

    def codes(self, x: Floats) -> Integers:
        """Returns the codes."""
        if self.signs:
            return np.asarray(np.where(x >= 0, 1, -1), np.int64)
        steps = np.rint(x / F(self.scale)) + F(self.zero)
        return np.asarray(np.clip(steps, F(self.low), F(self.high)).astype(np.int64) - self.zero)

    def compute(self, values: Sequence[Any]) -> Floats:
        """Returns the floats."""
        return self.codes(values[self.source]).astype(F) * F(self.scale)


@dataclass(frozen=True, eq=False)
class Product:
    """A convolution, or a linear layer as one of a single place.

    Attributes:
        source: step that it takes.
        weight: (out, in / groups x height x width).
        bias: (out,), zeros without one.
        kernel: height and width; so are stride, padding and dilation.
        groups: of channels.
        image: it takes (channels, height, width).
    """

    source: int
    weight: Weight
    bias: Floats
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    image: bool = False

    def factors(self, step: float | None) -> Floats:
        """What a row's sum is multiplied by.

        Args:
            step: of the codes that go in; None for floats.
        """
        scale = np.ones(len(self.bias), F) if self.weight.scale is None else self.weight.scale
        return scale if step is None else scale * F(step)

    def compute(self, x: NDArray[Any], step: float | None) -> Floats:
        """Returns the result.

        Args:
            x: codes, with a step; or floats, summed one after another: over channels, then rows, then columns.
            step: of the codes.
        """
        columns = self._columns(x)
        group, each = len(self.bias) // self.groups, self.weight.values.shape[1]
        sums = []
        for row in range(len(self.bias)):
            own = columns[(row // group) * each :][:each]
            weight = self.weight.values[row]
            if step is not None:
                total = weight.astype(np.int64) @ own.astype(np.int64)
            else:
                total = np.zeros(own.shape[1], F)
                for place in range(each):
                    total = total + weight[place].astype(F) * own[place]
            sums.append(total.astype(F))
        found = np.stack(sums) * self.factors(step)[:, None] + self.bias[:, None]
        return found.reshape(len(self.bias), *self.size(x.shape)) if self.image else found[:, 0]

    def size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of the result."""
        if not self.image:
            return (1, 1)
        sides = [
            (shape[1 + a] + 2 * self.padding[a] - self.dilation[a] * (self.kernel[a] - 1) - 1) // self.stride[a] + 1
            for a in (0, 1)
        ]
        return sides[0], sides[1]

    def _columns(self, x: NDArray[Any]) -> NDArray[Any]:
        if not self.image:
            return x.reshape(-1, 1)
        height, width = self.size(x.shape)
        wide = np.pad(x, ((0, 0), (self.padding[0],) * 2, (self.padding[1],) * 2))
        parts = []
        for channel in wide:
            for down in range(self.kernel[0]):
                for right in range(self.kernel[1]):
                    first, second = down * self.dilation[0], right * self.dilation[1]
                    rows = channel[first : first + (height - 1) * self.stride[0] + 1 : self.stride[0]]
                    parts.append(rows[:, second : second + (width - 1) * self.stride[1] + 1 : self.stride[1]].ravel())
        return np.stack(parts)


@dataclass(frozen=True, eq=False)
class Clip:
    """min(max(x, low), high)."""

    source: int
    low: float
    high: float

    def compute(self, values: Sequence[Any]) -> Floats:
        """Returns the result."""
        return np.asarray(np.minimum(np.maximum(values[self.source], F(self.low)), F(self.high)), F)


@dataclass(frozen=True, eq=False)
class Affine:
    """x factor + shift, for each channel."""

    source: int
    factor: Floats
    shift: Floats

    def compute(self, values: Sequence[Any]) -> Floats:
        """Returns the result."""
        x = values[self.source]
        sides = (-1,) + (1,) * (x.ndim - 1)
        return np.asarray(x * self.factor.reshape(sides) + self.shift.reshape(sides), F)


@dataclass(frozen=True, eq=False)
class Add:
    """x + y."""

    source: int
    other: int

    def compute(self, values: Sequence[Any]) -> Floats:
        """Returns the result."""
        return values[self.source] + values[self.other]  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Pool:
    """Largest, or mean, of each window; padding counts for neither."""

    source: int
    mean: bool
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of the result."""
        sides = [(shape[1 + a] + 2 * self.padding[a] - self.kernel[a]) // self.stride[a] + 1 for a in (0, 1)]
        return sides[0], sides[1]

    def compute(self, values: Sequence[Any]) -> Floats:
        """Returns the result."""
        x = values[self.source]
        height, width = self.size(x.shape)
        found = np.zeros((len(x), height, width), F)
        for down in range(height):
            for right in range(width):
                top, left = (at * s - p for at, s, p in zip((down, right), self.stride, self.padding))
                window = x[:, max(top, 0) : top + self.kernel[0], max(left, 0) : left + self.kernel[1]].reshape(
                    len(x), -1
                )
                total = window[:, 0]
                for place in range(1, window.shape[1]):
                    total = total + window[:, place] if self.mean else np.maximum(total, window[:, place])
                found[:, down, right] = total / F(window.shape[1]) if self.mean else total
        return found


@dataclass(frozen=True, eq=False)
class Shape:
    """The same numbers in another shape."""

    source: int
    shape: tuple[int, ...]

    def compute(self, values: Sequence[Any]) -> Floats:
        """Returns the result."""
        return values[self.source].reshape(self.shape)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Steps:
    """A whole network.

    Attributes:
        steps: each takes earlier values: value 0 is the input, value i + 1 the result of step i.
        shapes: of all values, without the batch.
        output: which value comes out.
    """

    steps: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    output: int

    def coded(self, step: Any) -> Levels | None:
        """The levels on which a product's input is, if it is computed with integers."""
        if not isinstance(step, Product) or step.weight.form == "float" or step.source == 0:
            return None
        source = step.source
        while source and isinstance(self.steps[source - 1], Shape):
            source = self.steps[source - 1].source
        found = self.steps[source - 1] if source else None
        if not isinstance(found, Levels):
            return None
        reach = 1 if found.signs else max(found.high - found.zero, found.zero - found.low)
        largest = int(np.abs(step.weight.values).sum(1).max()) * reach
        return found if largest <= HIGH else None

    def __call__(self, x: Floats) -> Floats:
        """Computes one input, of the shape of value 0."""
        values: list[Any] = [x.astype(F)]
        codes: dict[int, Any] = {}
        for place, step in enumerate(self.steps):
            if isinstance(step, Product):
                levels = self.coded(step)
                given = values[step.source]
                if levels is not None:
                    given = codes[id(levels)].reshape(given.shape)
                values.append(step.compute(given, None if levels is None else levels.scale))
            else:
                values.append(step.compute(values))
            if isinstance(step, Levels):
                codes[id(step)] = step.codes(values[step.source])
            if values[-1].shape != self.shapes[place + 1]:
                raise ModelError(f"step {place} gives {values[-1].shape}, not {self.shapes[place + 1]}")
        return values[self.output]  # type: ignore[no-any-return]


def affine_of(norm: Norm, tensors: Mapping[str, Tensor]) -> tuple[Floats, Floats]:
    """Returns factor and shift of a BatchNorm, each (channels,), computed in float64.

    Args:
        norm: which.
        tensors: the graph's, by name.
    """
    mean, var = (tensors[name].double() for name in (norm.mean, norm.var))
    factor = 1 / torch.sqrt(var + norm.eps)
    if norm.weight is not None:
        factor = factor * tensors[norm.weight].double()
    shift = -mean * factor
    if norm.bias is not None:
        shift = shift + tensors[norm.bias].double()
    return factor.numpy().astype(F), shift.numpy().astype(F)
