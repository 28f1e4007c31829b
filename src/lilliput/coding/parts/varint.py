"""Integers of variable length at the head of a payload: 7 bits a byte, least significant first."""

from lilliput.core.errors import FileError

LONGEST = 10  # bytes that 64 bits can take


def zigzag(value: int) -> int:
    """Signed to unsigned: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """Inverse of `zigzag`."""
    return -(value >> 1) - 1 if value & 1 else value >> 1


def write(value: int) -> bytes:
    """The bytes of a non-negative integer below 2^64.

    >>> write(300).hex()
    'ac02'
    """
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read(data: memoryview, start: int) -> tuple[int, int]:
    """The integer at byte `start`, and the position behind it.

    Raises:
        FileError: the bytes end inside the number, it doesn't fit 64 bits, or it isn't in its shortest form.
    """
    value = 0
    for i, byte in enumerate(data[start : start + LONGEST]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            if value >> 64 or (i and not byte):
                break
            return value, start + i + 1
    raise FileError("a coded stream holds a number that is cut off, too long or not in its shortest form")
