"""Arrays of unsigned integers at a fixed number of bits each, least significant bit first."""

import numpy as np

from lilliput.core.errors import FileError

GROUPS = 1 << 15  # groups of 8 values handled at a time: bounds the memory beside the result


def usable_width(largest: int) -> int:
    """Bits a value for values up to `largest`: the exact number up to 32, whole bytes above."""
    width = largest.bit_length()
    return width if width <= 32 else -(-width // 8) * 8


def packed_size(count: int, width: int) -> int:
    """Bytes that `count` values of `width` bits take."""
    return -(-count * width // 8)


def pack(values: np.ndarray, width: int) -> bytes:
    """Pack flat unsigned values, each below 2^width.

    >>> pack(np.array([1, 2, 3], np.uint8), 2).hex()
    '39'
    """
    if width == 0 or values.size == 0:
        return b""
    if width > 32:
        columns = values.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : width // 8]
        return columns.tobytes()
    parts = []
    for start in range(0, values.size, 8 * GROUPS):
        chunk = values[start : start + 8 * GROUPS]
        padded = np.zeros(-(-chunk.size // 8) * 8, np.uint64)
        padded[: chunk.size] = chunk
        groups = padded.reshape(-1, 8)
        # 8 values fill exactly `width` bytes; byte j gathers the values that overlap bits 8j .. 8j+7
        out = np.zeros((len(groups), width), np.uint8)
        for i in range(8):
            first, shift = divmod(i * width, 8)
            spread = groups[:, i] << np.uint64(shift)
            for j in range(first, (i * width + width + 7) // 8):
                out[:, j] |= ((spread >> np.uint64(8 * (j - first))) & np.uint64(255)).astype(np.uint8)
        parts.append(out.tobytes())
    return b"".join(parts)[: packed_size(values.size, width)]


def unpack(data: memoryview, count: int, width: int, out: np.ndarray) -> None:
    """Unpack `count` values of `width` bits into the flat array `out`, which holds `width` bits or more.

    Raises:
        FileError: `data` isn't exactly as long as the values need, or its unused last bits aren't zero.
    """
    if len(data) != packed_size(count, width):
        raise FileError(f"{count} values of {width} bits take {packed_size(count, width)} bytes, not {len(data)}")
    spare = len(data) * 8 - count * width
    if spare and data[-1] >> (8 - spare):
        raise FileError("unused bits at the end of packed values are not zero")
    source = np.frombuffer(data, np.uint8)
    if width == 0:
        out[:count] = 0
        return
    if width > 32:
        wide = np.zeros((count, 8), np.uint8)
        wide[:, : width // 8] = source.reshape(count, width // 8)
        out[:count] = wide.reshape(-1).view("<u8").astype(out.dtype)
        return
    work = np.dtype(np.uint16 if width <= 8 else np.uint64)
    mask = np.array((1 << width) - 1, work)
    for start in range(0, count, 8 * GROUPS):
        size = min(8 * GROUPS, count - start)
        groups = -(-size // 8)
        chunk = np.zeros(groups * width, np.uint8)
        stored = source[start * width // 8 :][: groups * width]
        chunk[: stored.size] = stored
        columns = chunk.reshape(groups, width)
        values = np.empty((groups, 8), out.dtype)
        for i in range(8):
            first, shift = divmod(i * width, 8)
            window = columns[:, first].astype(work)
            for j in range(first + 1, (i * width + width + 7) // 8):
                window |= columns[:, j].astype(work) << np.array(8 * (j - first), work)
            values[:, i] = (window >> np.array(shift, work)) & mask
        out[start : start + size] = values.reshape(-1)[:size]
