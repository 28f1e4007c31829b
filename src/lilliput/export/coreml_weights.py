"""Weights of Core ML's files in few bits: scaled integers, tables of values, zeros left out, whichever is smallest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lilliput.core.packed import Packed, unpack

Array = np.ndarray[Any, Any]
BITS = (1, 2, 3, 4, 6, 8)
"""Of the indices of a table."""


@dataclass(frozen=True, eq=False)
class Scaled:
    """(codes - zero) scale, a scale for each block of the weight.

    Attributes:
        bits: 4 or 8.
        codes: of the weight's shape; uint8 where there is a zero, else int8.
        scale: float32, of the weight's rank; its sizes divide the weight's.
        zero: of the scale's shape, or None.
    """

    bits: int
    codes: Array
    scale: Array
    zero: Array | None

    @property
    def size(self) -> float:
        """Bytes."""
        each = 0 if self.zero is None else self.bits / 8
        return self.codes.size * self.bits / 8 + self.scale.size * (4.0 + each)

    @property
    def values(self) -> Array:
        """The weight, float32."""
        shifts = np.float32(0) if self.zero is None else spread(self.zero.astype(np.float32), self.codes.shape)
        return (self.codes.astype(np.float32) - shifts) * spread(self.scale, self.codes.shape)


@dataclass(frozen=True, eq=False)
class Table:
    """One of a few values for each weight; zeros besides, which are left out.

    Attributes:
        bits: of an index; 0: no table, `values` are the weights that aren't left out.
        values: float32, the table, sorted; (rows, values) where each row has a table of its own.
        indices: uint8, of the weights that are there.
        kept: bool, of the weight's shape, what is there; None: all.
        shape: of the weight.
    """

    bits: int
    values: Array
    indices: Array
    kept: Array | None
    shape: tuple[int, ...]

    @property
    def size(self) -> float:
        """Bytes."""
        mask = 0.0 if self.kept is None else self.kept.size / 8
        if not self.bits:
            return mask + 4 * self.values.size
        tables = len(self.values) if self.values.ndim == 2 else 1
        return mask + self.indices.size * self.bits / 8 + 4.0 * tables * (1 << self.bits)


Weight = Scaled | Table


def weight_of(packed: Packed | Tensor | None, weight: Tensor) -> Weight | None:
    """Finds the smallest way to hold a weight exactly; None where 32 bits are the smallest.

    Args:
        packed: as an artifact holds it.
        weight: the same unpacked.

    >>> import torch
    >>> found = weight_of(None, torch.tensor([[0.5, -0.5, 0.5, 0.5] * 8]))
    >>> found.bits, found.values.tolist(), found.kept
    (1, [-0.5, 0.5], None)
    """
    array = weight.detach().numpy()
    if array.dtype != np.float32 or array.ndim < 2 or not array.size:
        return None
    found = [one for one in (scaled_of(packed), *_tables(array)) if one is not None]
    best = min(found, key=lambda one: one.size, default=None)
    return None if best is None or best.size >= 4 * array.size else best


def _tables(array: Array) -> list[Table]:
    """With all values in the table, and with zeros left out, with and without a table for the others."""
    found = [_table(array.reshape(-1), None, array.shape), _of_rows(array)]
    kept = array != 0
    if kept.any() and not kept.all():
        rest = array[kept]
        found += [Table(0, rest, np.zeros(0, np.uint8), kept, array.shape), _table(rest, kept, array.shape)]
    return [one for one in found if one is not None]


def _table(numbers: Array, kept: Array | None, shape: tuple[int, ...]) -> Table | None:
    values, indices = np.unique(numbers, return_inverse=True)
    bits = next((bits for bits in BITS if len(values) <= 1 << bits), None)
    return None if bits is None else Table(bits, values, indices.astype(np.uint8).reshape(-1), kept, shape)


def _of_rows(array: Array) -> Table | None:
    """A table for each row: signs times the row's magnitude, for one."""
    each = [np.unique(row, return_inverse=True) for row in array.reshape(len(array), -1)]
    most = max(len(values) for values, _ in each)
    bits = next((bits for bits in BITS if most <= 1 << bits), None)
    if bits is None:
        return None
    table = np.stack([np.pad(values, (0, (1 << bits) - len(values))) for values, _ in each])
    indices = np.concatenate([indices.reshape(-1) for _, indices in each]).astype(np.uint8)
    return Table(bits, table, indices, None, array.shape)


def scaled_of(packed: Packed | Tensor | None) -> Scaled | None:
    """Reads a weight of `quantize/uniform` as scaled integers.

    Args:
        packed: any weight of an artifact.

    Returns:
        None for other weights, and where the integers don't give the very same numbers.

    >>> import torch
    >>> from lilliput.quantize.uniform import Uniform
    >>> found = scaled_of(Uniform(bits=4, per="group", group=32).pack(torch.randn(8, 64)))
    >>> found.bits, found.codes.shape, found.scale.shape
    (4, (8, 64), (8, 2))
    """
    if not isinstance(packed, Packed) or packed.method != "quantize/uniform" or "levels" in packed.parts:
        return None
    wanted = unpack(packed).numpy()
    codes, scale = unpack(packed.parts["codes"]).numpy(), unpack(packed.parts["scale"]).numpy()
    if codes.dtype not in (np.int8, np.uint8) or scale.dtype != np.float32 or wanted.dtype != np.float32:
        return None
    codes, sides = codes.reshape(wanted.shape), _sides(wanted.shape, scale.size)
    if sides is None:
        return None
    zero = unpack(packed.parts["zero"]).numpy() if "zero" in packed.parts else None
    if zero is not None:
        if codes.min() < 0 or zero.min() < 0:
            return None
        codes, zero = codes.astype(np.uint8), np.broadcast_to(zero.astype(np.uint8).reshape(-1), scale.size)
        zero = zero.reshape(sides)
    ends = (codes, codes if zero is None else zero)
    low, high = min(int(e.min()) for e in ends), max(int(e.max()) for e in ends)
    bits = 4 if (high < 16 if zero is not None else low >= -8 and high < 8) else 8
    found = Scaled(bits, codes, np.where(scale > 0, scale, np.float32(1)).reshape(sides), zero)
    return found if np.array_equal(found.values, wanted) else None


def _sides(shape: tuple[int, ...], scales: int) -> tuple[int, ...] | None:
    """The shape of scales: one for all, for each row, or for each block of a row."""
    ones = (1,) * (len(shape) - 1)
    if scales in (1, shape[0]):
        return (scales, *ones)
    inner = math.prod(shape[2:])
    if scales % shape[0] or (blocks := scales // shape[0]) < 1 or shape[1] % blocks or inner != 1:
        return None
    return (shape[0], blocks, *ones[1:])


def spread(array: Array, shape: tuple[int, ...]) -> Array:
    """Repeats numbers of blocks for each element.

    Args:
        array: of the same rank; its sizes divide those of the shape.
        shape: of the result.
    """
    for axis, size in enumerate(shape):
        array = array.repeat(size // array.shape[axis], axis)
    return array
