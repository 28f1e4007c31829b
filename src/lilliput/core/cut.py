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


@dataclass(frozen=True)
class Resize:
    """A size that the user's module keeps as an attribute, as its number of heads, and that a cut changes.

    Attributes:
        module: the module's name, empty for the model itself.
        attribute: name of an integer, or of a list or tuple of integers.
        old: before the cut.
        new: after it, of the same kind and length.
    """

    module: str
    attribute: str
    old: tuple[int, ...]
    new: tuple[int, ...]
