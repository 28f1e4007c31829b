"""Static rANS whose histogram is picked by the sum of a row's, a column's and a kernel position's level."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lilliput.coding.parts import alphabet, curves, integers, levels, model, search, stream, varint
from lilliput.coding.parts.bits import BitReader, BitWriter
from lilliput.coding.parts.model import MOST_SYMBOLS
from lilliput.core.errors import FileError

TABLE = 1 << 20
"""Most entries (levels x 2^precision) of a decoder's table."""


@dataclass(frozen=True)
class Rans:
    """Range asymmetric numeral systems (Duda 2013, arXiv 1311.2540) with levels.

    The array is seen as rows x inner x positions: axis 0, axis 1, and the rest (the kernel positions of a convolution).
    Each of the three has a map of small levels, or none; an element is coded with the histogram of the sum of its three
    levels, and the histograms of all levels lie between a few curves (`parts.curves`). A state x codes a symbol of
    frequency f and first slot c, out of 2^k slots, as x' = (x // f) 2^k + c + x mod f: log2(2^k / f) bits.

    Payload: length of the header (varint), header (bits), lane states (uint32), words (uint16).

    >>> weights = np.repeat(np.array([0, 0, 0, 1, 0, 2, 0, 0], np.int8), 100)
    >>> data = Rans().encode(weights); len(data) < 120
    True
    >>> bool((Rans().decode(data, (800,), np.dtype(np.int8)) == weights).all())
    True
    """

    cost_is_exact: ClassVar[bool] = False

    def encode(self, array: np.ndarray) -> bytes | None:
        """Bytes, or None for an empty array, a constant one, or one of more than 4096 distinct values."""
        stored = integers.as_integers(array)
        flat = stored.reshape(-1)
        letters = alphabet.of_array(flat) if flat.size else None
        if letters is None or not 2 <= len(letters) <= MOST_SYMBOLS:
            return None
        return _encode(search.fit(letters, flat, axes(array.shape)), flat, axes(array.shape))

    def cost(self, array: np.ndarray) -> int:
        """An estimate: the order-0 entropy and a usual header; levels may save a good part of it."""
        flat = integers.as_integers(array).reshape(-1)
        letters = alphabet.of_array(flat) if flat.size else None
        if letters is None or not 2 <= len(letters) <= MOST_SYMBOLS:
            return 1 << 62
        return int(1.002 * alphabet.entropy(letters.counts) / 8) + 12 + len(letters) // 2

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The array of `shape` and `dtype`.

        Raises:
            FileError: anything about the bytes isn't as the encoder writes it.
        """
        data, stored = memoryview(data), integers.check_target(dtype)
        if integers.numel(shape) == 0:
            raise FileError("an empty array has no coded stream")
        length, start = varint.read(data, 0)
        if length > len(data) - start:
            raise FileError("a coded stream is shorter than its header")
        header = BitReader(data[start : start + length])
        precision, lanes = 12 + header.fixed(2), 1 << header.fixed(4)
        values = alphabet.read_values(header, MOST_SYMBOLS, dtype)
        if values.size < 2:
            raise FileError("a coded stream has an alphabet of one value")
        family = curves.read(header, values.size)
        if family.levels << precision > TABLE:
            raise FileError("the histograms of a coded stream are too many")
        rows, columns = levels.read(header, axes(shape), family.levels)
        header.close()
        layout = stream.Layout(rows, columns, family.frequencies(precision), precision, lanes)
        out = np.empty(layout.size, stored)
        stream.decode(data[start + length :], layout, values, out)
        return integers.finish(out, shape, dtype)


def axes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Rows, inner and positions of a shape.

    >>> axes((64, 32, 3, 3)), axes((10,)), axes(())
    ((64, 32, 9), (10, 1, 1), (1, 1, 1))
    """
    padded = (*shape, 1, 1)
    return padded[0], padded[1], integers.numel(shape[2:])


def _encode(fitted: model.Model, flat: np.ndarray, sizes: tuple[int, int, int]) -> bytes:
    header = BitWriter()
    lanes = model.lanes_for(fitted.data_bits)
    header.fixed(fitted.precision - 12, 2)
    header.fixed(lanes.bit_length() - 1, 4)
    fitted.letters.write(header)
    fitted.family.write(header)
    if fitted.family.levels > 1:
        for one in fitted.maps:
            levels.write(header, one)
    rows, inner, positions = (np.broadcast_to(one, size) for one, size in zip(fitted.maps, sizes))
    columns = (inner[:, None] + positions).reshape(-1)
    layout = stream.Layout(rows, columns, fitted.family.frequencies(fitted.precision), fitted.precision, lanes)
    head = header.to_bytes()
    return varint.write(len(head)) + head + stream.encode(fitted.letters.symbols(flat), layout)
