"""A buffer and an array of processors at work on one group of a layer: what all simulated dataflows share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lilliput.hardware.dataflow import Cut
from lilliput.hardware.device import Device
from lilliput.hardware.layer import Layer

Values = NDArray[np.float64]
Step = dict[str, slice]
"""What a tile or a pass is about: of filters, channels, images, rows ..., a piece each."""


class Array(ABC):
    """Goes through a layer's tiles and passes, computes, and counts every access.

    Attributes:
        counts: accesses by level and data.
        cycles: of all passes, each as long as its busiest processor.
    """

    def __init__(self, layer: Layer, cut: Cut, device: Device, values: tuple[Values, Values, Values]) -> None:
        """Takes a group's padded inputs (N, C, H, W), weights (K, C, R, S), and zeros for its outputs (N, K, E, F)."""
        self.layer, self.cut, self.device = layer, cut, device
        self.inputs, self.weight, self.output = values
        self.counts: Counter[tuple[str, str]] = Counter()
        self.cycles = 0
        self._held: dict[str, object] = {}
        self._tile: tuple[object, int] = (None, 0)
        self._begun: set[object] = set()
        self._left: set[object] = set()

    @abstractmethod
    def steps(self, tile: Step) -> dict[str, list[Step]]:
        """Returns the passes of a tile by `nest.DIMENSIONS`; the cut's inner order says which changes fastest."""

    @abstractmethod
    def work(self, step: Step) -> None:
        """One pass: brings in what the processors lack, lets them work, and hands the sums to `put`."""

    def run(self) -> None:
        """Goes through all tiles and passes in the order of the cut."""
        for tile in _walk(self.cut.outer, self._tiles()):
            self._load(tile)
            for step in _walk(self.cut.inner, self.steps(tile)):
                self.work(step)
        self.counts["dram", "output"] += self._tile[1]

    def moved(self, level: str, data: str, values: Values, times: int = 1) -> Values:
        """Counts each of these numbers as read or written so many times, and hands them on."""
        self.counts[level, data] += values.size * times
        return values

    def changed(self, what: str, key: object) -> bool:
        """Whether something else is held than this, which is held from now on."""
        if self._held.get(what) == key:
            return False
        self._held[what] = key
        return True

    def put(self, sums: Values, step: Step, image: int) -> None:
        """Adds partial sums (filters, rows, columns) of a pass to what the buffer holds of them."""
        columns = step.get("columns", slice(0, self.layer.output_size[1]))
        self.output[image, step["filters"], step["rows"], columns] += sums
        key = image, *key_of(step, "filters", "rows"), columns.start
        if key in self._begun:
            # Written by the pass before, and read again.
            self.moved("buffer", "output", sums, 2)
        self._begun.add(key)

    def _tiles(self) -> dict[str, list[Step]]:
        images, filters, channels, rows = self.cut.tile
        lines = cuts(slice(0, self.layer.output_size[0]), rows)
        return {
            "filters": [{"filters": part} for part in cuts(slice(0, len(self.weight)), filters)],
            "channels": [{"channels": part} for part in cuts(slice(0, self.weight.shape[1]), channels)],
            "places": [{"images": n, "rows": e} for n in cuts(slice(0, self.layer.batch), images) for e in lines],
        }

    def _load(self, tile: Step) -> None:
        """Brings into the buffer what isn't there, and sends partial sums away that are in the way."""
        channels, images, rows = tile["channels"], tile["images"], tile["rows"]
        if self.changed("tile of weight", key_of(tile, "filters", "channels")):
            self.moved("dram", "weight", self.weight[tile["filters"], channels])
        if self.changed("tile of input", key_of(tile, "channels", "images", "rows")):
            seen = reach(self.layer, 0, rows), reach(self.layer, 1, slice(0, self.layer.output_size[1]))
            self.moved("dram", "input", self.inputs[images, channels][:, :, seen[0]][..., seen[1]])
        key = key_of(tile, "filters", "images", "rows")
        if self._tile[0] == key:
            return
        self.counts["dram", "output"] += self._tile[1]
        self._left.add(self._tile[0])
        words = self.output[images, tile["filters"], rows]
        if key in self._left:
            self.moved("dram", "output", words)
        self._tile = key, words.size
        self._begun.clear()


class Patch:
    """Inputs on their way to the processors: a tap of the kernel can only see what was brought.

    Args:
        layer: its strides and dilations.
        inputs: (channels, H, W).
        rows: of the output that they are for.
        columns: likewise.
    """

    def __init__(self, layer: Layer, inputs: Values, rows: slice, columns: slice) -> None:
        self._layer, self._outputs = layer, (rows, columns)
        self._seen = reach(layer, 0, rows), reach(layer, 1, columns)
        self.values: Values = inputs[:, self._seen[0]][:, :, self._seen[1]]

    def under(self, *tap: int) -> Values:
        """Returns what the tap (r, s) of the kernel multiplies, (channels, rows, columns)."""
        places = []
        for axis, outputs in enumerate(self._outputs):
            first = tap[axis] * self._layer.dilation[axis]
            lines = [first + self._layer.stride[axis] * line for line in range(outputs.start, outputs.stop)]
            places.append(np.searchsorted(self._seen[axis], lines))
        found: Values = self.values[:, places[0]][:, :, places[1]]
        return found


def reach(layer: Layer, axis: int, outputs: slice, taps: slice | None = None) -> list[int]:
    """Returns the lines of the padded input between the first and last that each output looks at.

    Args:
        layer: its strides, dilations and kernel.
        axis: 0 for rows, 1 for columns.
        outputs: rows or columns of the output.
        taps: of the kernel; all by default.

    >>> reach(Layer(1, 1, size=(9, 9), kernel=(3, 3), stride=(4, 4)), 0, slice(0, 2))
    [0, 1, 2, 4, 5, 6]
    """
    taps = slice(0, layer.kernel[axis]) if taps is None else taps
    stride, dilation = layer.stride[axis], layer.dilation[axis]
    offsets = range(taps.start * dilation, (taps.stop - 1) * dilation + 1)
    return sorted({stride * line + offset for line in range(outputs.start, outputs.stop) for offset in offsets})


def cuts(whole: slice, step: int) -> list[slice]:
    """Returns the pieces, so long each but for the last.

    >>> cuts(slice(2, 7), 3)
    [slice(2, 5, None), slice(5, 7, None)]
    """
    return [slice(start, min(start + step, whole.stop)) for start in range(whole.start, whole.stop, step)]


def length(part: slice) -> int:
    """Returns how many places a piece has."""
    return int(part.stop - part.start)


def key_of(step: Step, *names: str) -> tuple[tuple[int, int], ...]:
    """Returns where some pieces of a step begin and end."""
    return tuple((step[name].start, step[name].stop) for name in names)


def _walk(order: tuple[str, ...], steps: dict[str, list[Step]]) -> Iterator[Step]:
    """All combinations of steps, the last of the order changing fastest."""
    if not order:
        yield {}
        return
    for step in steps[order[0]]:
        for rest in _walk(order[1:], steps):
            yield {**step, **rest}
