"""Millions of values as a few sorted groups with exact counts and sums, without sorting them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.core.native import extension

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Up to here a sort is cheap, and every group is one value.
SORTED = 1 << 18
# Number of buckets: sign, exponent and 11 bits of the mantissa where the values spread over all magnitudes.
BUCKET_BITS = 20
# A bucket with more than this share of the values is split into single float32 values.
HEAVY = 1 << 10
CHUNK = 1 << 20


def keys(values: NDArray[Any]) -> Integers:
    """The bits of the values' float32 form as integers in the order of the values; -0 and +0 share one.

    >>> keys(np.array([-1.0, -0.0, 0.0, 1.0], dtype=np.float32)).tolist()
    [1082130431, 2147483648, 2147483648, 3212836864]
    """
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31 != 0, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Groups:
    """Values grouped by nearness, in ascending order; the groups don't overlap.

    Attributes:
        values: what was grouped: 1-D, float32 or float64, any order, finite.
        means: mean of each group in float64, ascending; the value itself where a group has one value only.
        counts: number of values in each group, > 0.
        sums: their sums in float64.
        buckets: the bucket of each group, or -1 where all its values are the same.
        low: the smallest key of all values.
        shift: the bucket of a value is `(key - low) >> shift`.
    """

    values: NDArray[Any]
    means: Floats
    counts: Integers
    sums: Floats
    buckets: Integers
    low: int = 0
    shift: int = 0

    def holding(self, points: Floats, beside: int = 0) -> Integers:
        """Indices of the groups of several values whose buckets hold these points, or are so near to them."""
        middle = (keys(points) - self.low) >> self.shift
        wanted = np.concatenate([middle + step for step in range(-beside, beside + 1)])
        return np.flatnonzero(np.isin(self.buckets, wanted[wanted >= 0]))

    def opened(self, groups: Integers) -> Groups:
        """Returns the same with some groups of several values replaced by their single values."""
        marked = np.zeros((1 << BUCKET_BITS) + 1, dtype=np.uint8)
        marked[self.buckets[groups]] = 1
        # A bucket that was split into single values is no group of several, so that it is never marked.
        found = _gather(self, marked, int(self.counts[groups].sum()))
        single, counts = np.unique(found.astype(np.float64) + 0.0, return_counts=True)
        means = np.concatenate([np.delete(self.means, groups), single])
        order = np.argsort(means, kind="stable")
        return Groups(
            self.values,
            means[order],
            np.concatenate([np.delete(self.counts, groups), counts])[order],
            np.concatenate([np.delete(self.sums, groups), single * counts])[order],
            np.concatenate([np.delete(self.buckets, groups), np.full(len(single), -1)])[order],
            self.low,
            self.shift,
        )


def group(values: NDArray[Any]) -> Groups:
    """Groups values: by value where they are few, else by the leading bits of their float32 form.

    Buckets are as wide as the values call for: up to 2^20 of them from the least to the greatest key, about
    2^-11 of a value's magnitude each where all magnitudes occur, and one for each float32 where they lie close
    together.

    Args:
        values: 1-D float32 or float64 array of finite values within float32's range, at least one.

    Returns:
        The groups. Time: one or two passes; memory: some ten MB, however many values.

    >>> group(np.array([2.0, 1.0, 2.0])).counts
    array([1, 2])
    """
    if len(values) <= SORTED:
        single, counts = np.unique(values.astype(np.float64) + 0.0, return_counts=True)
        return Groups(values, single, counts, single * counts, np.full(len(single), -1))
    low, high = (int(key) for key in keys(np.array([values.min(), values.max()])))
    shift = max(0, (high - low).bit_length() - BUCKET_BITS)
    counts, sums = _sums(values, (low, shift), np.empty(0, dtype=np.int32), ((high - low) >> shift) + 1)
    buckets = np.arange(len(counts))
    buckets[(counts == 1) | (shift == 0 and values.dtype == np.float32)] = -1
    heavy = np.flatnonzero(counts > len(values) // HEAVY)
    if shift and len(heavy):
        slots = np.full(len(counts), -1, dtype=np.int32)
        slots[heavy] = np.arange(len(heavy), dtype=np.int32) << shift
        inner_counts, inner_sums = _sums(values, (low, shift), slots, len(heavy) << shift)
        place = np.repeat(heavy, 1 << shift)
        counts, sums = _spliced(counts, heavy, place, inner_counts), _spliced(sums, heavy, place, inner_sums)
        buckets = _spliced(buckets, heavy, place, np.full(len(place), -1))
    held = counts > 0
    counts, sums = counts[held], sums[held]
    means = np.maximum.accumulate(sums / counts)
    return Groups(values, means, counts, sums, buckets[held], low, shift)


def _spliced(array: NDArray[Any], removed: Integers, place: Integers, inserted: NDArray[Any]) -> NDArray[Any]:
    """`array` with the entries `removed` replaced by those `inserted` whose `place` is the same."""
    kept = np.delete(np.arange(len(array)), removed)
    order = np.argsort(np.concatenate([kept, place]), kind="stable")
    return np.concatenate([array[kept], inserted])[order]


def _sums(
    values: NDArray[Any], window: tuple[int, int], slots: NDArray[np.int32], cells: int
) -> tuple[Integers, Floats]:
    """Count and sum of the values of each bucket, or of each key of those buckets that have a slot."""
    counts, sums = np.zeros(cells, dtype=np.int64), np.zeros(cells)
    low, shift = window
    native = extension(len(values), "k-means")
    if native is not None:
        native.kmeans1d_bucket_sums(values, low, shift, slots, counts, sums)
        return counts, sums
    for start in range(0, len(values), CHUNK):
        chunk = values[start : start + CHUNK]
        key = keys(chunk) - low
        cell = key >> shift
        if len(slots):
            base = slots[cell]
            inside = base >= 0
            chunk, cell = chunk[inside], base[inside] + (key[inside] & ((1 << shift) - 1))
        counts += np.bincount(cell, minlength=cells)
        np.add.at(sums, cell, chunk.astype(np.float64))  # one after the other, as the compiled code does it
    return counts, sums


def _gather(groups: Groups, marked: NDArray[np.uint8], length: int) -> NDArray[Any]:
    """The values of all marked buckets, in their order."""
    values, low, shift = groups.values, groups.low, groups.shift
    native = extension(len(values), "k-means")
    if native is not None:
        found = np.empty(length, dtype=values.dtype)
        native.kmeans1d_bucket_gather(values, low, shift, marked, found)
        return found
    chunks = (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
    return np.concatenate([chunk[marked[(keys(chunk) - low) >> shift] != 0] for chunk in chunks])
