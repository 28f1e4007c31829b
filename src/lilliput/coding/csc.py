"""Compressed sparse columns: the non-zeros column by column, their rows, and where each column starts."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lilliput.coding.parts import compressed_rows, integers


@dataclass(frozen=True)
class Csc:
    """Compressed sparse columns as the survey has them: rows are axis 0 and columns all others.

    The matrix is transposed and stored as CSR is.

    Payload and exact widths: `parts.compressed_rows.encode`. With a non-zeros of b bits in an m x n matrix the three
    arrays take a b + a ceil(log2 m) + (n + 1) ceil(log2(a + 1)) bits.

    >>> sparse = np.zeros((8, 32), np.int8); sparse[2, 3] = -5
    >>> len(Csc().encode(sparse))
    9
    """

    cost_is_exact: ClassVar[bool] = True

    def encode(self, array: np.ndarray) -> bytes | None:
        """Bytes, or None for an empty array."""
        return compressed_rows.encode(_matrix(array)) if array.size else None

    def cost(self, array: np.ndarray) -> int:
        """Bytes that `encode` writes, exactly; `1 << 62` for an empty array."""
        return compressed_rows.cost(_matrix(array)) if array.size else 1 << 62

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The array of `shape` and `dtype`.

        Raises:
            FileError: see `parts.compressed_rows.decode`.
        """
        rows = shape[0] if shape else 1
        columns = integers.numel(shape[1:])
        flat = compressed_rows.decode(memoryview(data), columns, rows, dtype, transposed=True)
        return integers.finish(flat, shape, dtype)


def _matrix(array: np.ndarray) -> np.ndarray:
    stored = integers.as_integers(array)
    return stored.reshape(len(stored) if stored.ndim else 1, -1).T
