"""What a weight may become, entry by entry: the levels of a grid or of a codebook, for those who choose among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lilliput.solve.grid import Grid, whole

Where = slice | int | Tensor
"""Columns: a slice, one of them, or indices."""

Rows = slice | Tensor
"""Rows: a slice, or indices."""


class Levels(Protocol):
    """The levels that each entry of a weight (rows, columns) may take."""

    def near(self, values: Tensor, rows: Rows, columns: Where) -> Tensor:
        """Returns the nearest levels.

        Args:
            values: of these rows and columns; of one column, (rows,).
            rows: which; or the row of each value, which then broadcasts with `columns`.
            columns: which.
        """
        ...

    def around(self, values: Tensor, rows: Rows, columns: Where) -> tuple[Tensor, Tensor]:
        """Returns the level at or below each value and the one above it; the same one twice at the ends."""
        ...


@dataclass(frozen=True, eq=False)
class GridLevels:
    """The levels of a uniform grid.

    Attributes:
        grid: its codes; with 1 bit and symmetric the levels are -scale and scale.
        scale: broadcast to (rows, columns).
        zero: zero points, broadcast to (rows, columns).

    >>> levels = GridLevels(Grid(2), torch.tensor([[0.5]]).expand(1, 3), torch.zeros(1, 3))
    >>> values, everything = torch.tensor([[-2.0, 0.1, 0.3]]), slice(None)
    >>> levels.near(values, everything, everything).tolist()
    [[-0.5, 0.0, 0.5]]
    >>> [side.tolist() for side in levels.around(values, everything, everything)]
    [[[-0.5, 0.0, 0.0]], [[-0.5, 0.5, 0.5]]]
    """

    grid: Grid
    scale: Tensor
    zero: Tensor

    @property
    def signs(self) -> bool:
        """Whether the levels are -scale and scale."""
        return self.grid.symmetric and self.grid.bits == 1

    def near(self, values: Tensor, rows: Rows, columns: Where) -> Tensor:
        """Returns the nearest levels; see `Levels`."""
        scale = self.scale[rows, columns]
        if self.signs:
            return torch.where(values >= 0, scale, -scale)
        return self.grid.near(values, scale, self.zero[rows, columns])

    def around(self, values: Tensor, rows: Rows, columns: Where) -> tuple[Tensor, Tensor]:
        """Returns the levels at or below and above; see `Levels`."""
        scale, zero = self.scale[rows, columns], self.zero[rows, columns]
        if self.signs:
            return torch.where(values >= scale, scale, -scale), torch.where(values >= -scale, scale, -scale)
        floor = torch.floor(values / whole(scale)) + zero
        low, high = self.grid.lowest, self.grid.highest
        return (floor.clamp(low, high) - zero) * scale, ((floor + 1).clamp(low, high) - zero) * scale


@dataclass(frozen=True, eq=False)
class CodebookLevels:
    """The same few values for every entry.

    Attributes:
        values: ascending, (k,), at least one.

    >>> levels = CodebookLevels(torch.tensor([-1.0, 0.0, 2.0]))
    >>> levels.near(torch.tensor([0.9, 1.1, -7.0]), slice(None), 0).tolist()
    [0.0, 2.0, -1.0]
    >>> [side.tolist() for side in levels.around(torch.tensor([0.9, 5.0]), slice(None), 0)]
    [[0.0, 2.0], [2.0, 2.0]]
    """

    values: Tensor

    def near(self, values: Tensor, rows: Rows, columns: Where) -> Tensor:
        """Returns the nearest values, of two equally near the lower; see `Levels`."""
        middles = self.values[:-1] + (self.values[1:] - self.values[:-1]) / 2
        return self.values[torch.bucketize(values.contiguous(), middles)]

    def around(self, values: Tensor, rows: Rows, columns: Where) -> tuple[Tensor, Tensor]:
        """Returns the values at or below and above; see `Levels`."""
        above = torch.bucketize(values.contiguous(), self.values, right=True)
        top = len(self.values) - 1
        return self.values[(above - 1).clamp(0, top)], self.values[above.clamp(0, top)]
