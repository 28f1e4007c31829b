"""Loops around a layer: which tiles the buffer holds, in which order they come, and how often data is fetched again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.core.errors import DeviceError
from lilliput.hardware.layer import Layer

Numbers = NDArray[np.float64]
Order = tuple[str, str, str]
DIMENSIONS = ("filters", "channels", "places")
"""What is looped over; places are images and rows of the output."""
ORDERS: tuple[Order, ...] = tuple(permutations(DIMENSIONS))  # type: ignore[arg-type]
"""Outermost first."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of one group of a layer."""

    batch: int
    filters: int
    channels: int
    rows: int
    columns: int
    kernel: tuple[int, int]
    extent: tuple[int, int]
    stride: tuple[int, int]
    width: int

    @classmethod
    def of(cls, layer: Layer) -> Sizes:
        """Takes them from a layer."""
        own = layer.filters // layer.groups, layer.channels // layer.groups
        return cls(layer.batch, *own, *layer.output_size, layer.kernel, layer.extent, layer.stride, width=layer.used[1])

    @property
    def taps(self) -> int:
        """Weights of a kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def weights(self) -> int:
        """Weights of the group."""
        return self.filters * self.channels * self.taps

    @property
    def outputs(self) -> int:
        """Outputs of the group."""
        return self.batch * self.filters * self.rows * self.columns

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the group."""
        return self.outputs * self.channels * self.taps

    def input_rows(self, pieces: Any, extent: int | None = None) -> Any:
        """Rows of the input that are looked at if the output's rows come in so many pieces; see `layer.span`."""
        reach, stride = self.extent[0] if extent is None else extent, self.stride[0]
        if stride >= reach:
            return self.rows * reach + 0 * pieces
        return stride * (self.rows - pieces) + reach * pieces

    def input_columns(self, pieces: Any) -> Any:
        """Likewise, across."""
        reach, stride = self.extent[1], self.stride[1]
        if stride >= reach:
            return self.columns * reach + 0 * pieces
        return stride * (self.columns - pieces) + reach * pieces


@dataclass(frozen=True, eq=False)
class Tiles:
    """What the buffer holds at a time, many choices at once; each array is (choices, 1).

    Attributes:
        batch: images.
        filters: output channels.
        channels: input channels.
        rows: rows of the output.
    """

    batch: Numbers
    filters: Numbers
    channels: Numbers
    rows: Numbers

    def trips(self, sizes: Sizes) -> dict[str, Numbers]:
        """How often each dimension's loop over tiles runs."""
        return {
            "filters": up(sizes.filters, self.filters),
            "channels": up(sizes.channels, self.channels),
            "places": up(sizes.batch, self.batch) * up(sizes.rows, self.rows),
        }

    def words(self, sizes: Sizes) -> Numbers:
        """Words that inputs, weights and partial sums of a tile take."""
        high = np.minimum((self.rows - 1) * sizes.stride[0] + sizes.extent[0], self.rows * sizes.extent[0])
        inputs = self.batch * self.channels * high * sizes.width
        weights = self.filters * self.channels * sizes.taps
        return np.asarray(inputs + weights + self.batch * self.filters * self.rows * sizes.columns)

    def __getitem__(self, which: Any) -> Tiles:
        return Tiles(self.batch[which], self.filters[which], self.channels[which], self.rows[which])

    @classmethod
    def whole(cls, sizes: Sizes) -> Tiles:
        """The one tile that is the whole group."""
        return cls(*(np.full((1, 1), float(n)) for n in (sizes.batch, sizes.filters, sizes.channels, sizes.rows)))

    @classmethod
    def that_fit(cls, sizes: Sizes, words: int, name: str = "") -> Tiles:
        """All choices, of equal parts of each dimension, that fit into a buffer.

        Raises:
            DeviceError: not even the smallest fits.
        """
        lists = [parts(n) for n in (sizes.batch, sizes.filters, sizes.channels, sizes.rows)]
        grid = np.array(list(product(*lists)), dtype=np.float64)
        every = cls(*(grid[:, i : i + 1] for i in range(4)))
        taken = every.words(sizes)[:, 0]
        if not (taken <= words).any():
            where = f"layer '{name}'" if name else "this layer"
            raise DeviceError(
                f"a buffer of {words} words is too small for one tile of {where}, which takes {taken.min():.0f}"
            )
        return every[taken <= words]


def parts(size: int) -> list[int]:
    """Returns the lengths of equal parts of a dimension: by 1, 2, 3, 4, 6, 8, 12 ... and down to single ones.

    >>> parts(13)
    [1, 2, 3, 4, 5, 7, 13]
    """
    counts = [2**i for i in range(size.bit_length())] + [3 * 2**i for i in range(size.bit_length())]
    return sorted({-(-size // count) for count in counts if count <= size} | {1})


def up(size: Any, step: Any) -> Any:
    """Returns size / step rounded up."""
    return np.ceil(size / step)


def passes(size: int, tile: Any, step: Any) -> Any:
    """Returns how many steps a dimension takes, if each tile begins a new one.

    >>> float(passes(10, 4.0, 3.0))  # 2 + 2 + 1
    5.0
    """
    return np.floor(size / tile) * up(tile, step) + up(np.mod(size, tile), step)


def reloads(
    data: str,
    outer: tuple[Order, Mapping[str, Any]],
    inner: tuple[Order, Mapping[str, Any]],
    total: Any,
    always: bool = False,
) -> tuple[Any, Any]:
    """Returns how often data is fetched into the array, and whether anew for each inner step.

    Data that doesn't depend on a dimension stays while that dimension's loop runs, unless a loop further in, of a
    dimension on which it depends, has replaced it by then.

    Args:
        data: the dimension on which it doesn't depend: `"places"` for weights, `"filters"` for inputs.
        outer: order and trips of the loops over tiles.
        inner: likewise of the loops within a tile.
        total: how often outer and inner loop of that dimension run together.
        always: the array has no room for the data of a whole step, so that nothing stays from one to the next.
    """
    again_inner = replaced(data, *inner) | always
    last = any_of([trips > 1 for dimension, trips in inner[1].items() if dimension != data])
    again_outer = replaced(data, *outer) | last | always
    return np.where(again_inner, total, np.where(again_outer, outer[1][data], 1.0)), again_inner


def replaced(data: str, order: Order, trips: Mapping[str, Any]) -> Any:
    """Whether a loop inside the one over `data` runs more than once."""
    inside = order[order.index(data) + 1 :]
    return any_of([trips[dimension] > 1 for dimension in inside])


def any_of(conditions: Sequence[Any]) -> Any:
    """Whether any of several arrays of truths is true, place by place."""
    found: Any = np.zeros((1, 1), dtype=bool)
    for condition in conditions:
        found = found | condition
    return found
