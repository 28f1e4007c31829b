"""The alphabet of an array: its values in rising order, and each element as the index of its value."""

import itertools
from dataclasses import dataclass

import numpy as np

from lilliput.coding.parts import integers, varint
from lilliput.coding.parts.bits import BitReader, BitWriter
from lilliput.core.errors import FileError

SPAN = 1 << 17
"""Value ranges up to this wide are counted directly, wider ones by sorting."""


@dataclass(frozen=True)
class Alphabet:
    """Distinct values (int64, rising), and how often each occurs (int64)."""

    values: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return int(self.values.size)

    def symbols(self, flat: np.ndarray) -> np.ndarray:
        """Index of each element's value: uint8 for up to 256 values, else uint16 or uint32."""
        kind = np.uint8 if len(self) <= 256 else np.uint16 if len(self) <= 65536 else np.uint32
        low, high = int(self.values[0]), int(self.values[-1])
        if high - low == len(self) - 1 and flat.itemsize == 1 and kind == np.uint8:
            return flat.view(np.uint8) - np.uint8(low & 255) if low else flat.view(np.uint8)
        if high - low >= SPAN:
            return np.searchsorted(self.values, flat).astype(kind)
        table = np.zeros(high - low + 1, kind)
        table[self.values - low] = np.arange(len(self), dtype=kind)
        return table[flat.astype(np.int64) - low] if low else table[flat]

    def filled(self) -> "Alphabet":
        """The alphabet with every value between the smallest and the largest, absent ones counted 0 times."""
        low, high = int(self.values[0]), int(self.values[-1])
        counts = np.zeros(high - low + 1, np.int64)
        counts[self.values - low] = self.counts
        return Alphabet(np.arange(low, high + 1), counts)

    def write(self, out: BitWriter) -> None:
        """Write the values: smallest, number of values, then the gaps between them unless all are 1."""
        listed = self.values.tolist()
        out.gamma(varint.zigzag(listed[0]))
        out.gamma(len(self) - 1)
        gapped = listed[-1] - listed[0] >= len(self)
        out.fixed(int(gapped), 1)
        if gapped:
            for before, after in itertools.pairwise(listed):
                out.gamma(after - before - 1)


def read_values(source: BitReader, limit: int, dtype: np.dtype) -> np.ndarray:
    """The values that `Alphabet.write` wrote, as an array of the storage dtype.

    Args:
        source: the header.
        limit: most values allowed.
        dtype: what the decoded array shall be.

    Raises:
        FileError: too many values, or values that the dtype can't hold.
    """
    low, count = varint.unzigzag(source.gamma()), source.gamma() + 1
    if count > limit:
        raise FileError(f"a coded stream has an alphabet of {count} values: at most {limit} are allowed")
    steps = [low]
    steps += [source.gamma() + 1 for _ in range(count - 1)] if source.fixed(1) else [1] * (count - 1)
    values = list(itertools.accumulate(steps))
    integers.check_range(values[0], values[-1], dtype)
    return np.array(values, integers.check_target(dtype))


def of_array(flat: np.ndarray) -> Alphabet:
    """The alphabet of a flat, non-empty integer array."""
    low, high = integers.bounds(flat)
    if high - low >= SPAN:
        values, counts = np.unique(flat, return_counts=True)
        return Alphabet(values.astype(np.int64), counts.astype(np.int64))
    counts = np.zeros(high - low + 1, np.int64)
    for start in range(0, flat.size, 1 << 20):  # bincount copies to 64 bits: keep that copy small
        chunk = flat[start : start + (1 << 20)].astype(np.int64)
        counts += np.bincount(chunk - low if low else chunk, minlength=counts.size)
    present = np.flatnonzero(counts)
    return Alphabet(present + low, counts[present])


def entropy(counts: np.ndarray) -> float:
    """Order-0 entropy of these counts in bits, over all elements: sum of n log2(N / n).

    >>> entropy(np.array([1, 1, 2]))
    6.0
    """
    live = counts[counts > 0].astype(np.float64)
    return float((live * np.log2(live.sum() / live)).sum()) if live.size > 1 else 0.0
