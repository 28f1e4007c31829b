"""A structural cut as plain data: which indices of one axis of one parameter stay."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """Keeps some indices along one axis of a parameter or buffer.

    Attributes:
        parameter: its name in the state dict.
        axis: which axis, counted from 0.
        kept: the indices that stay, ascending.
        size: length of the axis before the cut.
    """

    parameter: str
    axis: int
    kept: tuple[int, ...]
    size: int
