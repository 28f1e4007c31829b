"""The rANS stream: interleaved lanes of 32-bit states with 16-bit words; NumPy here, the same bytes from C++.

Symbol i belongs to lane i mod lanes. The decoder takes one word wherever a state falls below 2^16, in the order of the
symbols; so the encoder walks backwards. A lane starts the encoder at 2^16, and the decoder must end there.
"""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from lilliput.core.errors import FileError
from lilliput.core.native import extension

LOWEST = 1 << 16
"""Every state lies in 2^16 .. 2^32 - 1."""
STEPS = 64
"""Steps of all lanes whose levels are looked up at once: bounds the memory beside the result."""
FEW = 16
"""Up to this many lanes, Python's own integers are faster than NumPy's arrays."""


@dataclass(frozen=True)
class Layout:
    """Which histogram each element uses: level = rows[i // columns.size] + columns[i % columns.size].

    Attributes:
        rows: (R,) uint8 levels.
        columns: (C,) uint8 levels.
        frequencies: (levels, symbols) int64, each row sums to 2^precision.
        precision: 12..15.
        lanes: a power of two.
    """

    rows: np.ndarray
    columns: np.ndarray
    frequencies: np.ndarray
    precision: int
    lanes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.rows.size * self.columns.size)

    def levels(self, start: int, stop: int) -> np.ndarray:
        """Levels of the elements start .. stop - 1 of the flattened array."""
        width = self.columns.size
        first, last = start // width, -(-stop // width)
        if width <= stop - start:
            block = (self.rows[first:last, None] + self.columns).reshape(-1)
            found: np.ndarray = block[start - first * width : stop - first * width]
            return found
        pieces = [self.columns[max(start - r * width, 0) : stop - r * width] + self.rows[r] for r in range(first, last)]
        return np.concatenate(pieces)


def encode(symbols: np.ndarray, layout: Layout) -> bytes:
    """States of all lanes (uint32), then the words (uint16), little-endian, in the order in which they are read.

    Args:
        symbols: flat uint8 or uint16, each with a frequency of 1 or more at its level.
        layout: the model.
    """
    native = extension(symbols.size, "coding weights")
    if native is not None:
        shape = (np.ascontiguousarray(layout.rows), np.ascontiguousarray(layout.columns))
        table = layout.frequencies.astype(np.uint16)
        return bytes(native.rans_encode(symbols.astype(np.uint16, copy=False) if symbols.itemsize > 2 else symbols,
                                        *shape, table, layout.precision, layout.lanes))  # fmt: skip
    return (_encode_few if layout.lanes <= FEW else _encode_many)(symbols, layout)


def _encode_many(symbols: np.ndarray, layout: Layout) -> bytes:
    """All lanes a step at a time."""
    lanes, precision = layout.lanes, np.uint32(layout.precision)
    frequency = layout.frequencies.astype(np.uint32)
    start = (np.cumsum(layout.frequencies, axis=1) - layout.frequencies).astype(np.uint32)
    states = np.full(lanes, LOWEST, np.uint32)
    words: list[np.ndarray] = []
    block = lanes * STEPS
    for first in range((symbols.size - 1) // block * block, -1, -block):
        chunk = symbols[first : first + block].astype(np.int64)
        place = layout.levels(first, first + chunk.size).astype(np.int64) * frequency.shape[1] + chunk
        f, c = frequency.reshape(-1)[place], start.reshape(-1)[place]
        full = (f.astype(np.uint64) << np.uint64(32 - layout.precision)).astype(np.uint64)
        for at in range((chunk.size - 1) // lanes * lanes, -1, -lanes):
            piece = slice(at, min(at + lanes, chunk.size))
            x, fs = states[: piece.stop - piece.start], f[piece]
            over = x >= full[piece]
            words.append((x[over] & np.uint32(0xFFFF)).astype("<u2"))
            x = np.where(over, x >> np.uint32(16), x)
            quotient = x // fs
            states[: x.size] = (quotient << precision) + (x - quotient * fs) + c[piece]
    return states.astype("<u4").tobytes() + b"".join(part.tobytes() for part in reversed(words))


def _encode_few(symbols: np.ndarray, layout: Layout) -> bytes:
    """One symbol at a time with Python's integers."""
    size, lanes, precision = layout.frequencies.shape[1], layout.lanes, layout.precision
    frequency = layout.frequencies.reshape(-1).tolist()
    start = (np.cumsum(layout.frequencies, axis=1) - layout.frequencies).reshape(-1).tolist()
    states, words = [LOWEST] * lanes, []
    place = layout.levels(0, symbols.size).astype(np.int64) * size + symbols
    lane = symbols.size & lanes - 1
    for at in reversed(place.tolist()):
        lane = lane - 1 & lanes - 1
        x, f = states[lane], frequency[at]
        if x >= f << 32 - precision:
            words.append(x & 0xFFFF)
            x >>= 16
        quotient, remainder = divmod(x, f)
        states[lane] = (quotient << precision) + remainder + start[at]
    return np.array(states, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()


def decode(data: memoryview, layout: Layout, values: np.ndarray, out: np.ndarray) -> None:
    """Decode `layout.size` elements into the flat array `out`.

    Args:
        data: what `encode` gave.
        layout: the same model.
        values: value of each symbol, of the dtype of `out`.
        out: flat, of `layout.size` elements.

    Raises:
        FileError: a state out of range, too few or too many words, or a lane that doesn't end where it began.
    """
    if len(data) < 4 * layout.lanes or len(data) % 2:
        raise FileError("a coded stream is cut off in the states of its lanes")
    native = extension(out.size, "decoding weights")
    if native is not None:
        fault = native.rans_decode(np.frombuffer(data, np.uint8), np.ascontiguousarray(layout.rows),
                                   np.ascontiguousarray(layout.columns), layout.frequencies.astype(np.uint16),
                                   layout.precision, layout.lanes, values.view(f"u{values.itemsize}"),
                                   out.view(f"u{out.itemsize}"))  # fmt: skip
        if fault:
            raise FileError(str(fault))
        return
    states = np.frombuffer(data, "<u4", layout.lanes).astype(np.uint32)
    words = np.frombuffer(data, "<u2", offset=4 * layout.lanes)
    if (states < LOWEST).any():
        raise FileError("a lane of a coded stream starts out of range")
    few = layout.lanes <= FEW
    used = (_decode_few if few else _decode_many)(states, words, layout, values, out)
    if used != words.size:
        raise FileError("a coded stream holds more words than its values need")
    if (states != LOWEST).any():
        raise FileError("a lane of a coded stream doesn't end where it began")


def _tables(layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each level and slot: symbol, frequency, and slot minus the first slot of the symbol."""
    levels, size = layout.frequencies.shape
    counts = layout.frequencies.reshape(-1)
    symbol = np.repeat(np.tile(np.arange(size, dtype=np.uint16), levels), counts)
    frequency = np.repeat(counts.astype(np.uint32), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return symbol, frequency, (np.arange(counts.sum()) - first).astype(np.uint32)


def _decode_many(states: np.ndarray, words: np.ndarray, layout: Layout, values: np.ndarray, out: np.ndarray) -> int:
    """All lanes a step at a time; changes `states` and `out`, returns the number of words taken."""
    lanes = layout.lanes
    symbol, frequency, bias = _tables(layout)
    decoded, frequency, bias = values[symbol], frequency.astype(np.int64), bias.astype(np.int64)
    leveled = len(layout.frequencies) > 1
    ends = wide = states.astype(np.int64)  # 64 bits: then slots are indices as they are
    slots, factor, below = np.empty((STEPS, lanes), np.int64), np.empty(lanes, np.int64), np.empty(lanes, bool)
    stream = np.concatenate([words, np.zeros(lanes, words.dtype)]).astype(np.int64)
    # arrays without axes: NumPy would convert Python's integers anew at every step
    mask, precision, lowest, sixteen = (
        np.array(n) for n in ((1 << layout.precision) - 1, layout.precision, LOWEST, 16)
    )
    at = 0
    for start in range(0, out.size, lanes * STEPS):
        stop = min(start + lanes * STEPS, out.size)
        offsets = layout.levels(start, stop).astype(np.int64) << layout.precision if leveled else None
        for step, first in enumerate(range(0, stop - start, lanes)):
            slot = slots[step]
            if stop - start - first < lanes:  # the last step: not all lanes have an element left
                wide, slot, factor, below = (one[: stop - start - first] for one in (wide, slot, factor, below))
            np.bitwise_and(wide, mask, slot)
            if offsets is not None:
                np.add(slot, offsets[first : first + lanes], slot)
            np.right_shift(wide, precision, wide)
            np.multiply(wide, frequency.take(slot, None, factor, "clip"), wide)
            np.add(wide, bias.take(slot, None, factor, "clip"), wide)
            low = np.less(wide, lowest, below).nonzero()[0]
            refilled = np.left_shift(wide[low], sixteen)
            wide[low] = np.bitwise_or(refilled, stream[at : at + low.size], refilled)
            at += low.size
            if at > words.size:
                raise FileError("a coded stream ends before its values do")
        out[start:stop] = decoded.take(slots.reshape(-1)[: stop - start])
    states[:] = ends
    return at


def _decode_few(states: np.ndarray, words: np.ndarray, layout: Layout, values: np.ndarray, out: np.ndarray) -> int:
    """One symbol at a time with Python's integers; changes `states` and `out`, returns the number of words taken."""
    columns, mask, lanes = layout.columns.size, (1 << layout.precision) - 1, layout.lanes
    size, counts = layout.frequencies.shape[1], layout.frequencies.reshape(-1)
    frequency, first = counts.tolist(), (np.cumsum(counts) - counts).tolist()  # slots of all levels, one behind another
    columns_at = (layout.columns.astype(np.int64) << layout.precision).tolist()
    x, stream, at, lane = states.tolist(), memoryview(words.astype(np.uint16).tobytes()).cast("H"), 0, 0
    for row, level in enumerate(layout.rows.tolist()):
        line = []
        for offset in columns_at:
            state = x[lane]
            slot = (level << layout.precision) + offset + (state & mask)
            place = bisect_right(first, slot) - 1
            line.append(place % size)
            state = frequency[place] * (state >> layout.precision) + slot - first[place]
            if state < LOWEST:
                if at >= len(stream):
                    raise FileError("a coded stream ends before its values do")
                state = state << 16 | stream[at]
                at += 1
            x[lane] = state
            lane = lane + 1 & lanes - 1
        out[row * columns : (row + 1) * columns] = values[line]
    states[:] = x
    return at
