"""Maps of levels: one small number for each row, column or kernel position, written compactly."""

import numpy as np

from lilliput.coding.parts import bits
from lilliput.coding.parts.bits import BitReader, BitWriter
from lilliput.coding.parts.curves import LEVEL_BITS
from lilliput.core.errors import FileError


def write(header: BitWriter, levels: np.ndarray) -> None:
    """One bit that says whether any level isn't 0; if so the commonest one and Rice codes of the distances from it."""
    header.fixed(int(levels.any()), 1)
    if levels.any():
        middle = int(np.bincount(levels).argmax())
        header.fixed(middle, LEVEL_BITS)
        header.rice(bits.zigzag(levels.astype(np.int64) - middle))


def size(levels: np.ndarray) -> int:
    """Bits that `write` writes."""
    if not levels.any():
        return 1
    middle = int(np.bincount(levels).argmax())
    return 1 + LEVEL_BITS + bits.rice_bits(bits.zigzag(levels.astype(np.int64) - middle))


def read(header: BitReader, sizes: tuple[int, int, int], levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels (uint8) of the rows, and of the columns: sums of the inner and the positions' levels.

    Raises:
        FileError: some element's level would not be below `levels`.
    """
    maps, highest = [], 0
    for count in sizes:
        stored = np.zeros(1, np.int64)
        if levels > 1 and header.fixed(1):
            stored = header.fixed(LEVEL_BITS) + bits.unzigzag(header.rice(count))
            if not 0 <= int(stored.min()) <= int(stored.max()) < levels:
                raise FileError("a coded stream has a level out of range")
        highest += int(stored.max())
        maps.append(np.broadcast_to(stored.astype(np.uint8), count))
    if highest >= levels:
        raise FileError("a coded stream has a level out of range")
    rows, inner, positions = maps
    return np.ascontiguousarray(rows), (inner[:, None] + positions).reshape(-1)
