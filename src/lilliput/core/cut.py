"""Structural cuts as plain data: what a recipe asks for, and which indices of which axes of which parameters stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lilliput.core.errors import MethodError

Pattern = Literal["channel", "filter", "neuron", "head", "block"]


@dataclass(frozen=True)
class CutRule:
    """What a recipe removes for good, before its other rules see the model.

    Attributes:
        match: shell pattern for the name of a weight whose outputs the channels are; for blocks, of a module.
        share: part of each fitting group's channels that goes, 0 <= share < 1; at least one channel stays. Of blocks
            the part of all fitting ones.
        pattern: which groups of channels: `"channel"` all; `"filter"` outputs of convolutions; `"neuron"` those of
            other layers; `"head"` whole attention heads. `"block"`: whole residual blocks, which go before channels.
        criterion: scores weights, a method of `prune/`; what scores lowest in sum goes (of blocks, in the mean over
            their weights). None: squares of the weights.
        multiple: the number of channels that stay is rounded up to a multiple of it.
        absorb: move what a removed channel gave into the biases behind it where that is exact.
        why: a word on why, kept and shown in reports.

    >>> CutRule(share=1.0)
    Traceback (most recent call last):
    lilliput.core.errors.MethodError: cut: share = 1.0 must be at least 0 and below 1: a layer needs a channel
    """

    match: str = "*"
    share: float = 0.5
    pattern: Pattern = "channel"
    criterion: Any = None
    multiple: int = 1
    absorb: bool = False
    why: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise MethodError(f"cut: share = {self.share} must be at least 0 and below 1: a layer needs a channel")
        if not 1 <= self.multiple <= 2**31:
            raise MethodError(f"cut: multiple = {self.multiple} must be at least 1")
        if self.criterion is not None and not callable(getattr(self.criterion, "score", None)):
            raise MethodError(f"cut: criterion = {self.criterion!r} has no score; give a criterion of prune/")


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


@dataclass(frozen=True)
class Skip:
    """A residual block that is gone: its module gives back what goes in.

    Attributes:
        module: its name.
        then: what is still done to it: nothing, or `"relu"`.
        packed: it is given back as a tuple of one.
    """

    module: str
    then: Literal["", "relu"] = ""
    packed: bool = False
