"""Layouts of sparse weights that the kernels read: blocks in lists by rows, and steps of tiles for single weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed, unpack, weight_method

ROWS, COLUMNS = 16, 64
"""Outputs and inputs of a tile."""
NONE = 1 << 15
"""Marks a word that holds no weight."""
LEAST = 0.45
"""The part of the weights that must be zero; with less a dense layer is as fast; two of four are half."""
COSTS = {1: 1.0, 4: 0.66, 16: 0.63}
"""Time for a stored value in a block of so many outputs, zeros in it counted, beside a single one."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix (outputs, columns) in blocks of some outputs by one column, in lists by rows of blocks.

    Attributes:
        start: (rows of blocks + 1,), int32: the blocks of row i are start[i] .. start[i + 1].
        column: (blocks,), int32.
        value: (blocks, outputs in a block), float32; beyond the last output 0.
    """

    start: Tensor
    column: Tensor
    value: Tensor

    @property
    def block(self) -> int:
        """Outputs in a block: 1, 4 or 16."""
        return self.value.shape[1]

    def dense(self, outputs: int, columns: int) -> Tensor:
        """Returns the matrix."""
        rows = len(self.start) - 1
        row = torch.repeat_interleave(torch.arange(rows), (self.start[1:] - self.start[:-1]).long())
        matrix = self.value.new_zeros(rows, columns, self.block)
        matrix.index_put_((row, self.column.long()), self.value, accumulate=True)
        return matrix.transpose(1, 2).reshape(rows * self.block, columns)[:outputs]

    def check_places(self, columns: int, name: str) -> None:
        """Checks what the lists say, as the kernels do on their way.

        Raises:
            MethodError: they point outside of the matrix.
        """
        start, count = self.start, len(self.column)
        right = int(start[0]) == 0 and int(start[-1]) == count and bool((start[1:] >= start[:-1]).all())
        if not right or (count and not 0 <= int(self.column.min()) <= int(self.column.max()) < columns):
            refuse(name, columns)


def check(start: Tensor, column: Tensor, value: Tensor, outputs: int, name: str) -> None:
    """Checks shapes and types of `Blocks`, what a kernel believes.

    Raises:
        MethodError: names what is wrong.
    """
    fits = value.dim() == 2 and value.shape[1] in COSTS and column.shape == value.shape[:1]
    types = start.dtype == torch.int32 and column.dtype == torch.int32 and value.dtype == torch.float32
    if not fits or not types or start.shape != (-(-outputs // value.shape[1]) + 1,):
        shapes = [(tuple(t.shape), t.dtype) for t in (start, column, value)]
        raise MethodError(f"{name}: lists of {shapes} aren't those of a sparse matrix of {outputs} rows")


def refuse(name: str, columns: int) -> None:
    """Raises the MethodError of lists that point outside of their matrix."""
    raise MethodError(f"{name}: a list of the packed weight points outside of its {columns} columns; it is damaged")


def blocks(matrix: Tensor, block: int = 0, groups: int = 1) -> Blocks:
    """Lays out a matrix in the blocks that ask for the least time.

    Args:
        matrix: (outputs, columns), float32.
        block: 1, 4 or 16 outputs; 0 for the best.
        groups: of a convolution: no block lies in two of them.

    >>> blocks(torch.tensor([[0.0, 2.0], [0.0, 3.0], [1.0, 0.0]]), 4).value.tolist()
    [[0.0, 0.0, 1.0, 0.0], [2.0, 3.0, 0.0, 0.0]]
    """
    outputs = len(matrix)
    sizes = [b for b in ((block,) if block else COSTS) if groups == 1 or outputs // groups % b == 0]
    if not sizes or not set(sizes) <= set(COSTS):
        raise MethodError(f"no blocks of {block} outputs in {outputs} of {groups} groups; there are 1, 4, 16")
    best = block or min(sizes, key=lambda b: COSTS[b] * b * int(torch.count_nonzero(_live(matrix, b))))
    live = _live(matrix, best)
    row, column = live.nonzero(as_tuple=True)
    padded = functional.pad(matrix, (0, 0, 0, -outputs % best)).reshape(len(live), best, matrix.shape[1])
    start = functional.pad(live.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return Blocks(start, column.to(torch.int32), padded[row, :, column].contiguous())


def _live(matrix: Tensor, block: int) -> Tensor:
    """Which blocks hold anything: (rows of blocks, columns)."""
    rows = functional.pad(matrix != 0, (0, 0, 0, -len(matrix) % block))
    return rows if block == 1 else rows.reshape(-1, block, matrix.shape[1]).any(1)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Where the single weights of a matrix (outputs, inputs) lie in tiles of 16 x 64; see sparse_linear.cpp.

    Attributes:
        steps: (tiles in a row,), uint8: steps of each tile.
        slot: (weights in tiles,), int64: where each lies in (outputs / 16, all steps, 16).
        taken: (outputs, inputs), bool: the weights in tiles; the rest is in lists.
        place: (weights in tiles,), uint8: input within the tile.
    """

    steps: Tensor
    slot: Tensor
    taken: Tensor
    place: Tensor

    @property
    def size(self) -> tuple[int, int, int]:
        """Of what holds all slots."""
        return -(-len(self.taken) // ROWS), int(self.steps.sum()), ROWS

    def filled(self, values: Tensor, nothing: int) -> Tensor:
        """Returns all slots, those of the weights with these values and the others with `nothing`."""
        slots = torch.full(self.size, nothing, dtype=values.dtype)
        slots.view(-1)[self.slot] = values
        return slots


def tiles(live: Tensor, dear: float) -> Tiles:
    """Divides the weights of a matrix among tiles and lists, so that the time is least.

    Args:
        live: (outputs, inputs), bool: which weights there are.
        dear: how much more time a weight in a list takes than a slot of a step.
    """
    outputs, inputs = live.shape
    width, groups = -(-inputs // COLUMNS), -(-outputs // ROWS)
    row, column = live.nonzero(as_tuple=True)
    tile = column // COLUMNS
    line = row * width + tile
    counts = torch.bincount(line, minlength=outputs * width)
    rank = torch.arange(len(line)) - (counts.cumsum(0) - counts)[line]
    steps = _steps(counts.reshape(outputs, width), groups, dear)
    first = steps.cumsum(0) - steps
    kept = rank < steps[tile]
    row, column, tile, rank = row[kept], column[kept], tile[kept], rank[kept]
    slot = ((row // ROWS) * int(steps.sum()) + first[tile] + rank) * ROWS + row % ROWS
    taken = torch.zeros_like(live)
    taken[row, column] = True
    return Tiles(steps.to(torch.uint8), slot, taken, (column % COLUMNS).to(torch.uint8))


def _steps(counts: Tensor, groups: int, dear: float) -> Tensor:
    """Steps of each tile in a row, from the weights that each output has in each tile."""
    width = counts.shape[1]
    histogram = torch.bincount(
        (torch.arange(width) * (COLUMNS + 1) + counts).flatten(), minlength=width * (COLUMNS + 1)
    )
    over = histogram.reshape(width, -1).flip(1).cumsum(1).flip(1)  # outputs with so many weights or more
    left = functional.pad(over[:, 1:].flip(1).cumsum(1).flip(1), (0, 1))  # weights beyond so many steps
    return (dear * left + groups * ROWS * torch.arange(COLUMNS + 1)).argmin(1)


def sparse_weight(packed: Packed) -> Tensor | None:
    """Returns the weight of a layer in float32 if it has zeros enough to be worth it, else None.

    Args:
        packed: `prune/sparse`, or any method that keeps zeros (`share/kmeans`, `quantize/uniform`, ...).
    """
    if packed.dtype != torch.float32 or len(packed.shape) < 2 or 0 in packed.shape:
        return None
    # Constants made from a seed (`share/seeded`) are no method of weights and say nothing of zeros.
    if packed.method != "prune/sparse" and not getattr(weight_method(packed.method), "keeps_zeros", False):
        return None
    mask = packed.parts.get("mask")
    if isinstance(mask, Tensor) and int(torch.count_nonzero(mask)) > (1 - LEAST) * mask.numel():
        return None
    weight = unpack(packed).detach().cpu()
    return weight if int(torch.count_nonzero(weight)) <= (1 - LEAST) * weight.numel() else None
