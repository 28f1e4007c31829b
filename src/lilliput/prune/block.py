"""The pattern of blocks: small rectangles of the lowered matrix, as sparse matrix kernels like them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.solve import groups
from lilliput.solve.selection import largest


@dataclass(frozen=True)
class Block:
    """Keeps the blocks of the matrix (outputs, inputs x window) whose scores have the largest sums.

    A kernel that handles `rows` outputs at a time then reads each input once for all of them (16 x 1 in Elsen et al.
    2020, arXiv 1911.09723). round(sparsity * blocks) blocks go, one at least stays; at the edges blocks are smaller.
    Spelled `block:16x1`.

    Attributes:
        rows: outputs in a block.
        columns: inputs in a block; of a convolution, places of the window within an input first.

    >>> import torch
    >>> Block(rows=2).select(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), 0.5)
    tensor([[ True, False],
            [ True, False]])
    """

    rows: int = 4
    columns: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise MethodError(f"prune/block: a block of {self.rows} x {self.columns} holds nothing")

    def select(self, scores: Tensor, sparsity: float) -> Tensor:
        """Returns the mask of the weights to keep; see `core.method.Pattern`."""
        height, width = self._matrix(tuple(scores.shape))
        tiles = self._tiles(scores)
        count = groups.remaining(tiles.shape[0] * tiles.shape[2], sparsity)
        chosen = largest(groups.sums(tiles, (1, 3)), count).expand(tiles.shape)
        whole = chosen.reshape(tiles.shape[0] * self.rows, tiles.shape[2] * self.columns)
        return whole[:height, :width].reshape(scores.shape).clone()

    def units(self, scores: Tensor) -> Tensor:
        """Returns the score of each block, the sum over its weights."""
        return groups.sums(self._tiles(scores), (1, 3)).flatten()

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return groups.group_count(shape, "filter"), groups.size_of_groups(shape, "filter")

    def _tiles(self, scores: Tensor) -> Tensor:
        height, width = self._matrix(tuple(scores.shape))
        edges = (0, -width % self.columns, 0, -height % self.rows)
        padded = functional.pad(scores.reshape(height, width), edges, value=-torch.inf)
        return padded.reshape(padded.shape[0] // self.rows, self.rows, padded.shape[1] // self.columns, self.columns)
