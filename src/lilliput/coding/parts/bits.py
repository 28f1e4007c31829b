"""The bit-level header of a payload: fixed fields, Elias gamma and Rice codes, least significant bit first."""

import numpy as np

from lilliput.core.errors import FileError

RICE_LIMIT = 15
"""Largest Rice parameter: its field has four bits."""
MOST_RICE = 1 << 20
"""Most numbers that are Rice coded together."""
LONGEST = 1 << 22
"""Most bytes of a header: it is handled a bit at a time, so this bounds the memory that takes."""


def zigzag(values: np.ndarray) -> np.ndarray:
    """Signed to unsigned: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return np.where(values >= 0, 2 * values, -2 * values - 1)


def unzigzag(values: np.ndarray) -> np.ndarray:
    """Inverse of `zigzag`."""
    return np.where(values & 1, -(values >> 1) - 1, values >> 1)


def rice_parameter(values: np.ndarray) -> int:
    """The Rice parameter that codes these non-negative values in the fewest bits."""
    return _rice(values)[0]


def rice_bits(values: np.ndarray) -> int:
    """Bits that `BitWriter.rice` writes for these values, its parameter included."""
    return 4 + _rice(values)[1]


def _rice(values: np.ndarray) -> tuple[int, int]:
    """The best parameter and the bits without it."""
    k = np.arange(RICE_LIMIT + 1)
    totals = (values >> k[:, None]).sum(axis=1) + values.size * (1 + k)
    best = int(totals.argmin())
    return best, int(totals[best])


class BitWriter:
    """Collects bits; `to_bytes` pads the last byte with zeros.

    >>> writer = BitWriter()
    >>> writer.fixed(5, 3); writer.gamma(0); writer.to_bytes().hex()
    '05'
    """

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []

    def fixed(self, value: int, width: int) -> None:
        """Write `value` in `width` bits."""
        self._chunks.append(np.array([value >> i & 1 for i in range(width)], np.uint8))

    def gamma(self, value: int) -> None:
        """Elias gamma code of value + 1: the number of further bits in unary (ones, then a zero), then those bits."""
        further = (value + 1).bit_length() - 1
        self.fixed((1 << further) - 1, further + 1)
        self.fixed((value + 1) & ((1 << further) - 1), further)

    def rice(self, values: np.ndarray) -> None:
        """Rice code of a flat array: parameter k in 4 bits, all quotients v >> k in unary, then all low parts."""
        values = values.astype(np.int64)
        k = rice_parameter(values)
        self.fixed(k, 4)
        ends = np.cumsum((values >> k) + 1)
        unary = np.ones(int(ends[-1]) if values.size else 0, np.uint8)
        unary[ends - 1] = 0
        low = (values[:, None] >> np.arange(k)) & 1
        self._chunks += [unary, low.astype(np.uint8).reshape(-1)]

    def to_bytes(self) -> bytes:
        """All bits so far."""
        bits = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.uint8)
        return np.packbits(bits, bitorder="little").tobytes()


class BitReader:
    """Reads what `BitWriter` wrote; raises FileError wherever the bits end too early."""

    def __init__(self, data: memoryview) -> None:
        if len(data) > LONGEST:
            raise FileError(f"the header of a coded stream has {len(data)} bytes: at most {LONGEST} are allowed")
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        self._at = 0

    def _take(self, count: int) -> np.ndarray:
        if count > self._bits.size - self._at:
            raise FileError("the header of a coded stream ends early")
        self._at += count
        return self._bits[self._at - count : self._at]

    def fixed(self, width: int) -> int:
        """A field of `width` bits."""
        return int(sum(int(bit) << i for i, bit in enumerate(self._take(width))))

    def gamma(self) -> int:
        """A number written by `BitWriter.gamma`, below 2^64."""
        further = 0
        while self._take(1)[0]:
            further += 1
            if further > 64:
                raise FileError("the header of a coded stream holds a number beyond 64 bits")
        return (1 << further) + self.fixed(further) - 1

    def rice(self, count: int) -> np.ndarray:
        """`count` numbers written by `BitWriter.rice`, as int64."""
        k = self.fixed(4)
        if count > MOST_RICE or count * (1 + k) > self._bits.size - self._at:
            raise FileError("the header of a coded stream ends early")
        ends = np.flatnonzero(self._bits[self._at :] == 0)[:count]
        if ends.size < count:
            raise FileError("the header of a coded stream ends early")
        self._take(int(ends[-1]) + 1 if count else 0)
        quotients = np.diff(ends, prepend=-1) - 1
        low = self._take(count * k).reshape(count, k).astype(np.int64)
        values: np.ndarray = (quotients.astype(np.int64) << k) | (low << np.arange(k)).sum(axis=1)
        return values

    def close(self) -> None:
        """Check that nothing but the padding of the last byte is left.

        Raises:
            FileError: whole bytes, or bits that aren't zero, are left.
        """
        rest = self._bits[self._at :]
        if rest.size >= 8 or rest.any():
            raise FileError("the header of a coded stream is longer than its content")
