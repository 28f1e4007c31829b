"""Non-zeros row by row: the survey's three arrays, and the bytes that CSR and CSC share."""

import numpy as np

from lilliput.coding.parts import integers, packing, varint
from lilliput.core.errors import FileError


def survey_arrays(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AA, JA and IC as the survey states them, 2a + n + 1 numbers for a non-zeros in n rows.

    Args:
        matrix: 2-D.

    Returns:
        AA, the non-zeros row by row; JA, the 1-based position in AA of each row's first non-zero, closed by a + 1; IC,
        the 1-based column of each non-zero.

    >>> [part.tolist() for part in survey_arrays(np.array([[0, 5], [0, 0], [7, 8]]))]
    [[5, 7, 8], [1, 2, 2, 4], [2, 1, 2]]
    """
    rows, columns = np.nonzero(matrix)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(matrix)))])
    return matrix[rows, columns], starts + 1, columns + 1


def size_bits(entries: int, rows: int, columns: int, value_bits: int) -> tuple[int, int, int]:
    """Bits of the three arrays: a b + a ceil(log2 columns) + (rows + 1) ceil(log2(a + 1))."""
    column_bits = max(columns - 1, 0).bit_length()
    return entries * value_bits, entries * column_bits, (rows + 1) * entries.bit_length()


def _value_range(matrix: np.ndarray) -> tuple[int, int, int]:
    """Number of non-zeros, the smallest of them, and bits for their distance from it."""
    values = matrix[matrix != 0]
    if values.size == 0:
        return 0, 0, 0
    low, high = integers.bounds(values)
    return values.size, low, packing.usable_width(high - low)


def cost(matrix: np.ndarray) -> int:
    """Bytes that `encode` writes."""
    entries, low, width = _value_range(matrix)
    head = len(varint.write(entries)) + len(varint.write(varint.zigzag(low))) + 1
    return head + sum(-(-one // 8) for one in size_bits(entries, matrix.shape[0], matrix.shape[1], width))


def encode(matrix: np.ndarray) -> bytes:
    """The bytes of a matrix.

    Number of non-zeros (varint), smallest of them (zigzag varint), bits a value (1 byte); then values less the
    smallest, columns from 0, and row starts from 0, each bit-packed and padded to whole bytes.
    """
    entries, low, width = _value_range(matrix)
    values, starts, columns = survey_arrays(matrix)
    head = varint.write(entries) + varint.write(varint.zigzag(low)) + bytes([width])
    above = (values.astype(np.int64) - np.int64(low)).view(np.uint64)  # wraps to the right difference
    column_bits = max(matrix.shape[1] - 1, 0).bit_length()
    return (
        head
        + packing.pack(above, width)
        + packing.pack((columns - 1).astype(np.uint64), column_bits)
        + packing.pack((starts - 1).astype(np.uint64), entries.bit_length())
    )


def decode(data: memoryview, rows: int, columns: int, dtype: np.dtype, *, transposed: bool = False) -> np.ndarray:
    """The elements of the matrix, or of its transpose, as a flat array of the storage dtype.

    Raises:
        FileError: sizes that don't fit, row starts that fall, columns that don't rise within a row, a zero among the
            values, or a value out of the dtype's range.
    """
    stored = integers.check_target(dtype)
    entries, start = varint.read(data, 0)
    coded, start = varint.read(data, start)
    low = varint.unzigzag(coded)
    width = data[start] if start < len(data) else 255
    if entries > rows * columns or width > 8 * stored.itemsize or (width > 32 and width % 8):
        raise FileError("a compressed matrix has a field out of range, or is cut off")
    sizes = [-(-one // 8) for one in size_bits(entries, rows, columns, width)]
    if len(data) != start + 1 + sum(sizes):
        raise FileError(
            f"a compressed matrix of {entries} entries takes {start + 1 + sum(sizes)} bytes, not {len(data)}"
        )
    if rows * columns == 0 or (entries == 0 and (low or width)):
        raise FileError("a compressed matrix is empty, or has a value range without values")
    if entries == 0:
        return np.zeros(rows * columns, stored)
    body = data[start + 1 :]
    integers.check_range(low, low, dtype)
    above = np.empty(entries, f"u{stored.itemsize}")
    packing.unpack(body[: sizes[0]], entries, width, above)
    column, starts = np.empty(entries, np.int64), np.empty(rows + 1, np.int64)
    column_bits = max(columns - 1, 0).bit_length()
    packing.unpack(body[sizes[0] : sizes[0] + sizes[1]], entries, column_bits, column)
    packing.unpack(body[sizes[0] + sizes[1] :], rows + 1, entries.bit_length(), starts)
    counts = np.diff(starts)
    if starts[0] != 0 or starts[-1] != entries or (counts < 0).any():
        raise FileError("the row starts of a compressed matrix don't rise from 0 to the number of entries")
    out = np.zeros(rows * columns, stored)
    integers.check_range(low, low + int(above.max()), dtype)
    above += np.array(low, np.int64).astype(above.dtype)  # modulo 2^bits: the range has been checked
    row = np.repeat(np.arange(rows), counts)
    if int(column.max()) >= columns or (np.diff(row * columns + column) <= 0).any() or not above.all():
        raise FileError("a compressed matrix has columns that don't rise within a row, or a zero entry")
    out[column * rows + row if transposed else row * columns + column] = above.view(stored)
    return out
