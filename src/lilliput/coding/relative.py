"""Deep Compression's sparse format: the distance from one non-zero to the next, with fillers for long ones."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lilliput.coding.bitpack import Bitpack
from lilliput.coding.huffman import Huffman
from lilliput.coding.parts import alphabet, integers, varint
from lilliput.core.errors import FileError

WIDTHS = range(2, 9)
"""Widths of a gap in bits that are tried."""
PIECES: tuple[Bitpack | Huffman, ...] = (Bitpack(), Huffman())
"""Codings of the two streams; the index is what the file holds."""


@dataclass(frozen=True)
class Relative:
    """Relative index of Han, Mao and Dally (2016, arXiv 1510.00149), row-major.

    Each entry is a gap of p bits, the number of zeros since the entry before, and a value. A run of g zeros takes
    floor(g / 2^p) fillers, entries of value 0 with the gap 2^p - 1. Zeros behind the last non-zero aren't stored. Gaps
    and values are two streams, each bit-packed or Huffman coded, whichever is smaller; p is chosen from 2 to 8 by the
    streams' entropies.

    Payload: number of entries (varint), p (1 byte), coding of the gaps and of the values (4 bits each of a byte),
    number of bytes of the gaps (varint), gaps, values.

    >>> sparse = np.zeros(100, np.int8); sparse[[5, 60]] = 7
    >>> data = Relative().encode(sparse)
    >>> np.flatnonzero(Relative().decode(data, (100,), np.dtype(np.int8))).tolist()
    [5, 60]
    """

    cost_is_exact: ClassVar[bool] = True

    def encode(self, array: np.ndarray) -> bytes | None:
        """Bytes, or None where more than half of the elements aren't 0: there it never pays."""
        flat = integers.as_integers(array).reshape(-1)
        if 2 * np.count_nonzero(flat) > flat.size or flat.size == 0:
            return None
        width = best_width(flat)
        return _encode(*entries(flat, width), width)

    def cost(self, array: np.ndarray) -> int:
        """Bytes that `encode` writes, exactly; `1 << 62` where it doesn't."""
        flat = integers.as_integers(array).reshape(-1)
        if 2 * np.count_nonzero(flat) > flat.size or flat.size == 0:
            return 1 << 62
        return _cost(*entries(flat, best_width(flat)))

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The array of `shape` and `dtype`.

        Raises:
            FileError: streams of another length, a gap too wide, a filler where none belongs, or a position beyond
                the end.
        """
        data, size, stored = memoryview(data), integers.numel(shape), integers.check_target(dtype)
        count, start = varint.read(data, 0)
        if count > size or start + 2 > len(data):
            raise FileError("a relative index has more entries than its array, or is cut off")
        width, kinds = data[start], data[start + 1]
        if width not in WIDTHS or kinds & 15 >= len(PIECES) or kinds >> 4 >= len(PIECES):
            raise FileError("a relative index has a field out of range")
        length, start = varint.read(data, start + 2)
        if length > len(data) - start:
            raise FileError("a relative index is cut off")
        out = np.zeros(size, stored)
        if count == 0:
            if start != len(data) or length:
                raise FileError("a relative index without entries holds bytes")
            return integers.finish(out, shape, dtype)
        gaps = PIECES[kinds & 15].decode(data[start : start + length], (count,), np.dtype(np.uint8))
        values = PIECES[kinds >> 4].decode(data[start + length :], (count,), dtype).view(stored)
        if int(gaps.max()) >> width:
            raise FileError("a relative index has a gap wider than it says")
        filler = values == 0
        if (gaps[filler] != (1 << width) - 1).any() or filler[-1]:
            raise FileError("a relative index has an entry of value 0 that is no filler")
        at = -1
        for first in range(0, count, 1 << 18):  # keeps the 64-bit positions small
            part = slice(first, first + (1 << 18))
            positions = np.cumsum(gaps[part] + np.int64(1)) + at
            at = int(positions[-1])
            if at >= size:
                raise FileError("a relative index points beyond the end of its array")
            out[positions] = values[part]
        return integers.finish(out, shape, dtype)


def entries(flat: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaps (uint8) and values of all entries, fillers included.

    >>> gaps, values = entries(np.array([0, 3, 0, 0, 0, 0, 0, 1]), 2); gaps.tolist(), values.tolist()
    ([1, 3, 1], [3, 0, 1])
    """
    positions = np.flatnonzero(flat)
    zeros = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum((zeros >> width) + 1)
    total = int(ends[-1]) if ends.size else 0
    gaps = np.full(total, (1 << width) - 1, np.uint8)
    values = np.zeros(total, flat.dtype)
    gaps[ends - 1] = zeros & ((1 << width) - 1)
    values[ends - 1] = flat[positions]
    return gaps, values


def best_width(flat: np.ndarray) -> int:
    """The width of a gap for which packed gaps or their entropy, and the values' entropy, add up to the least."""
    positions = np.flatnonzero(flat)
    if positions.size == 0:
        return WIDTHS[0]
    zeros = np.diff(positions, prepend=-1) - 1
    values = alphabet.of_array(flat[positions]).counts
    totals = []
    for width in WIDTHS:
        fillers = int((zeros >> width).sum())
        gaps = np.bincount(zeros & ((1 << width) - 1), minlength=1 << width)
        gaps[-1] += fillers
        gap_bits = min(alphabet.entropy(gaps), float(width * gaps.sum()))
        totals.append(gap_bits + alphabet.entropy(np.append(values, fillers)))
    return WIDTHS[int(np.argmin(totals))]


def expected_fillers(density: float, width: int) -> float:
    """Fillers per non-zero when each element is non-zero with probability `density`: q^R / (1 - q^R), R = 2^width.

    >>> round(expected_fillers(0.11, 4), 3)
    0.183
    """
    empty = (1 - density) ** (1 << width)
    return empty / (1 - empty)


def _cost(gaps: np.ndarray, values: np.ndarray) -> int:
    if gaps.size == 0:
        return 4
    gap_bytes = min(piece.cost(gaps) for piece in PIECES)
    head = len(varint.write(gaps.size)) + 2 + len(varint.write(gap_bytes))
    return head + gap_bytes + min(piece.cost(values) for piece in PIECES)


def _encode(gaps: np.ndarray, values: np.ndarray, width: int) -> bytes:
    if gaps.size == 0:
        return bytes([0, width, 0, 0])
    kinds, streams = 0, []
    for i, stream in enumerate((gaps, values)):
        costs = [piece.cost(stream) for piece in PIECES]
        best = costs.index(min(costs))
        kinds |= best << (4 * i)
        streams.append(PIECES[best].encode(stream) or b"")
    head = varint.write(gaps.size) + bytes([width, kinds]) + varint.write(len(streams[0]))
    return head + streams[0] + streams[1]
