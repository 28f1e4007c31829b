"""Offset and a fixed number of bits for each value; an array of equal values costs two bytes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lilliput.coding.parts import integers, packing, varint
from lilliput.core.errors import FileError


@dataclass(frozen=True)
class Bitpack:
    """Fixed-width coding: minimum (zigzag varint), width (1 byte), then value - minimum in `width` bits each.

    The width is 0 for equal values, exact up to 32 bits and whole bytes above. Bits run from the least significant on.

    >>> codes = np.array([[3, 4], [5, 6]], np.uint8)
    >>> data = Bitpack().encode(codes); data.hex()
    '0602e4'
    >>> Bitpack().decode(data, (2, 2), np.dtype(np.uint8)).tolist()
    [[3, 4], [5, 6]]
    """

    cost_is_exact: ClassVar[bool] = True

    def encode(self, array: np.ndarray) -> bytes | None:
        """Bytes of any integer array; an empty one takes none."""
        flat = integers.as_integers(array).reshape(-1)
        if flat.size == 0:
            return b""
        low, high = integers.bounds(flat)
        width = packing.usable_width(high - low)
        head = varint.write(varint.zigzag(low)) + bytes([width])
        if width == 0:
            return head
        unsigned = flat if low == 0 else flat.astype(np.int64) - np.int64(low)  # wraps to the right uint64
        return head + packing.pack(unsigned.astype(np.uint64) if unsigned.dtype.kind == "i" else unsigned, width)

    def cost(self, array: np.ndarray) -> int:
        """Bytes that `encode` writes, exactly."""
        flat = integers.as_integers(array).reshape(-1)
        if flat.size == 0:
            return 0
        low, high = integers.bounds(flat)
        width = packing.usable_width(high - low)
        return len(varint.write(varint.zigzag(low))) + 1 + packing.packed_size(flat.size, width)

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The array of `shape` and `dtype`.

        Raises:
            FileError: the bytes don't hold exactly that many values, or values outside the dtype's range.
        """
        data, count, stored = memoryview(data), integers.numel(shape), integers.check_target(dtype)
        if count == 0:
            if data:
                raise FileError(f"an empty array is coded in {len(data)} bytes instead of none")
            return np.empty(shape, dtype)
        coded, start = varint.read(data, 0)
        low = varint.unzigzag(coded)
        integers.check_range(low, low, dtype)
        if start >= len(data) or data[start] > 64 or (data[start] > 32 and data[start] % 8):
            raise FileError("packed values have no valid width")
        width, body = data[start], data[start + 1 :]
        if len(body) != packing.packed_size(count, width):
            raise FileError(
                f"{count} values of {width} bits take {packing.packed_size(count, width)} bytes, not {len(body)}"
            )
        if width <= 8 * stored.itemsize:
            out = np.empty(count, stored)
        else:
            raise FileError(f"packed values of {width} bits don't fit {dtype}")
        unsigned = out.view(f"u{stored.itemsize}")
        packing.unpack(body, count, width, unsigned)
        integers.check_range(low + int(unsigned.min()), low + int(unsigned.max()), dtype)
        if low:
            unsigned += np.array(low, np.int64).astype(unsigned.dtype)  # modulo 2^bits: the range has been checked
        return integers.finish(out, shape, dtype)
