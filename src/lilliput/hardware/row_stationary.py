"""A row-stationary array at work: every processor computes, every access is counted, the output is the convolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from lilliput.core.errors import DeviceError
from lilliput.hardware.dataflow import Cut, analyse
from lilliput.hardware.device import Device
from lilliput.hardware.energy import DATA, Accesses, Traffic
from lilliput.hardware.flows import folded
from lilliput.hardware.layer import Layer

Values = NDArray[np.float64]
Place = tuple[slice, slice, int, slice, slice]
"""Filters, channels, image, rows of the output, rows of the kernel: what one pass is about."""


@dataclass(frozen=True)
class Run:
    """What a simulated layer gave.

    Attributes:
        output: (N, K, E, F), float64; exact where all sums are whole numbers below 2^53.
        accesses: counted one by one.
        cycles: of all passes, each as long as its busiest processor.
    """

    output: Tensor
    accesses: Accesses
    cycles: int


def simulate(layer: Layer, inputs: Tensor, weight: Tensor, device: Device, cut: Cut | None = None) -> Run:
    """Runs a layer on a row-stationary array (Chen, Emer & Sze, ISCA 2016).

    A processor convolves rows of filters with rows of the input: processor (i, j) of a set takes row i of the kernel
    and row stride * j + i of the input, and its sums go up to processor (i - 1, j). Sets of other channels add to the
    same sums; sets of other filters make other ones.

    Args:
        layer: what `inputs` and `weight` must fit.
        inputs: (N, C, H, W), without padding.
        weight: (K, C / groups, R, S).
        device: its rows and columns, and where no cut is given its memories.
        cut: by default the one that `dataflow.analyse` finds cheapest.

    Raises:
        DeviceError: tensors of other shapes than the layer's.

    >>> layer = Layer(1, 1, size=(3, 3), kernel=(2, 2))
    >>> run = simulate(layer, torch.arange(9.0).reshape(1, 1, 3, 3), torch.ones(1, 1, 2, 2), Device.load("eyeriss"))
    >>> run.output.tolist(), run.accesses.dram
    ([[[[8.0, 12.0], [20.0, 24.0]]]], Traffic(weight=4, input=9, output=4))
    """
    own = layer.channels // layer.groups
    wanted = (layer.batch, layer.channels, *layer.size), (layer.filters, own, *layer.kernel)
    if (tuple(inputs.shape), tuple(weight.shape)) != wanted:
        raise DeviceError(
            f"inputs {tuple(inputs.shape)} and weight {tuple(weight.shape)} must be {wanted[0]}, {wanted[1]}"
        )
    cut = analyse(layer, device, "row_stationary").mapping if cut is None else cut
    (down, across), each = layer.padding, layer.filters // layer.groups
    padded = torch.nn.functional.pad(inputs.double(), (across, across, down, down)).numpy()
    output = np.zeros((layer.batch, layer.filters, *layer.output_size))
    counts: Counter[tuple[str, str]] = Counter()
    cycles = 0
    for group in range(layer.groups):
        part = slice(group * own, (group + 1) * own), slice(group * each, (group + 1) * each)
        sets = _Array(layer, cut, device, (padded[:, part[0]], weight[part[1]].double().numpy(), output[:, part[1]]))
        sets.run()
        counts += sets.counts
        cycles += sets.cycles
    levels = [Traffic(*(counts[level, data] for data in DATA)) for level in ("dram", "buffer", "array", "register")]
    return Run(torch.from_numpy(output), Accesses(*levels), cycles)


class _Array:
    """Buffer and array for one group of a layer, with what they hold at the moment."""

    def __init__(self, layer: Layer, cut: Cut, device: Device, values: tuple[Values, Values, Values]) -> None:
        self.layer, self.cut = layer, cut
        self.inputs, self.weight, self.output = values
        self.kernel_rows = folded(layer.kernel[0], device.rows)[1]
        self.counts: Counter[tuple[str, str]] = Counter()
        self.held: dict[str, object] = {}
        self.begun: set[object] = set()
        self.left: set[object] = set()
        self.cycles = 0

    def run(self) -> None:
        """Goes through all tiles and passes in the order of the cut."""
        for tile in _walk(self.cut.outer, self._tile_steps()):
            self._load(tile)
            for step in _walk(self.cut.inner, self._pass_steps(tile)):
                self._pass(step)
        self.counts["dram", "output"] += self.held["tile of output"][1]  # type: ignore[index]

    def _tile_steps(self) -> dict[str, list[dict[str, slice]]]:
        images, filters, channels, rows = self.cut.tile
        high = self.layer.output_size[0]
        places = [
            {"images": n, "rows": e}
            for n in _cuts(slice(0, self.layer.batch), images)
            for e in _cuts(slice(0, high), rows)
        ]
        return {
            "filters": [{"filters": part} for part in _cuts(slice(0, len(self.weight)), filters)],
            "channels": [{"channels": part} for part in _cuts(slice(0, self.weight.shape[1]), channels)],
            "places": places,
        }

    def _pass_steps(self, tile: dict[str, slice]) -> dict[str, list[dict[str, slice]]]:
        choice = self.cut.choice
        filters = _cuts(tile["filters"], choice["filters"] * choice["filter_sets"])
        channels = _cuts(tile["channels"], choice["channels"] * choice["channel_sets"])
        kernel = _cuts(slice(0, self.layer.kernel[0]), self.kernel_rows)
        images = _cuts(tile["images"], 1)
        return {
            "filters": [{"filters": part} for part in filters],
            "channels": [{"channels": part, "kernel": fold} for part in channels for fold in kernel],
            "places": [{"images": n, "rows": e} for n in images for e in _cuts(tile["rows"], choice["rows"])],
        }

    def _load(self, tile: dict[str, slice]) -> None:
        """Brings into the buffer what isn't there, and sends partial sums away that are in the way."""
        channels, images, rows = (_length(tile[name]) for name in ("channels", "images", "rows"))
        key = _key(tile, "filters", "channels")
        if self._changed("tile of weight", key):
            self.counts["dram", "weight"] += self.weight[tile["filters"], tile["channels"]].size
        if self._changed("tile of input", _key(tile, "channels", "images", "rows")):
            high = len(self._input_rows(tile["rows"], slice(0, self.layer.kernel[0])))
            self.counts["dram", "input"] += channels * images * high * self.layer.used[1]
        key = _key(tile, "filters", "images", "rows")
        words = _length(tile["filters"]) * images * rows * self.layer.output_size[1]
        before = self.held.get("tile of output")
        if before is None or before[0] != key:  # type: ignore[index]
            if before is not None:
                self.counts["dram", "output"] += before[1]  # type: ignore[index]
                self.left.add(before[0])  # type: ignore[index]
            if key in self.left:
                self.counts["dram", "output"] += words
            self.held["tile of output"] = (key, words)
            self.begun.clear()

    def _changed(self, what: str, key: object) -> bool:
        if self.held.get(what) == key:
            return False
        self.held[what] = key
        return True

    def _input_rows(self, rows: slice, kernel: slice) -> set[int]:
        """Rows of the input between the first and last that these outputs look at with these rows of the kernel."""
        stride, dilation = self.layer.stride[0], self.layer.dilation[0]
        reach = range(kernel.start * dilation, (kernel.stop - 1) * dilation + 1)
        return {stride * row + offset for row in range(rows.start, rows.stop) for offset in reach}

    def _pass(self, step: dict[str, slice]) -> None:
        """One pass: loads registers, lets every processor work, and hands sums up and to the buffer."""
        choice, layer = self.cut.choice, self.layer
        filters = _cuts(step["filters"], choice["filters"])
        channels = _cuts(step["channels"], choice["channels"])
        rows, kernel, image = step["rows"], step["kernel"], step["images"].start
        self._load_registers(step, len(filters))
        for some in filters:
            for row in range(rows.start, rows.stop):
                sums = None
                for part in channels:
                    for tap in range(kernel.start, kernel.stop):
                        line = self.inputs[image, part, row * layer.stride[0] + tap * layer.dilation[0]]
                        made = self._processor(self.weight[some, part, tap], line)
                        if sums is None:
                            sums = made
                        else:
                            sums = sums + made
                            self.counts["array", "output"] += made.size
                assert sums is not None
                self.output[image, some, row] += sums
                key = (some.start, image, row)
                if key in self.begun:
                    # Written by the pass before, and read again.
                    self.counts["buffer", "output"] += 2 * sums.size
                self.begun.add(key)
        busiest = min(choice["filters"], _length(step["filters"])) * min(choice["channels"], _length(step["channels"]))
        self.cycles += busiest * layer.kernel[1] * layer.output_size[1]

    def _load_registers(self, step: dict[str, slice], sets: int) -> None:
        """Weights go along the rows of the array, inputs along its diagonals, each only where it isn't yet."""
        rows, kernel, channels = step["rows"], step["kernel"], _length(step["channels"])
        if self._changed("weight", _key(step, "filters", "channels", "kernel")):
            words = self.weight[step["filters"], step["channels"], kernel].size
            self.counts["buffer", "weight"] += words
            self.counts["array", "weight"] += words * _length(rows)
        slides = self.layer.output_size[1] > 1
        if self._changed("input", _key(step, "channels", "kernel", "images", "rows")) or slides:
            width = self.layer.used[1]
            self.counts["buffer", "input"] += channels * len(self._input_rows(rows, kernel)) * width
            self.counts["array", "input"] += channels * _length(kernel) * _length(rows) * width * sets

    def _processor(self, weight: Values, line: Values) -> Values:
        """Slides rows of filters (filters, channels, S) along rows of the input (channels, W); gives (filters, F)."""
        layer = self.layer
        windows = sliding_window_view(line, layer.extent[1], axis=1)
        windows = windows[:, :: layer.stride[1], :: layer.dilation[1]]
        sums: Values = np.einsum("kcs,cfs->kf", weight, windows)
        products = weight.size * windows.shape[1]
        self.counts["register", "weight"] += products
        self.counts["register", "input"] += products
        self.counts["register", "output"] += 2 * products
        return sums


def _walk(order: tuple[str, ...], steps: dict[str, list[dict[str, slice]]]) -> Iterator[dict[str, slice]]:
    """All combinations of steps, the last of the order changing fastest."""
    if not order:
        yield {}
        return
    for step in steps[order[0]]:
        for rest in _walk(order[1:], steps):
            yield {**step, **rest}


def _cuts(whole: slice, step: int) -> list[slice]:
    return [slice(start, min(start + step, whole.stop)) for start in range(whole.start, whole.stop, step)]


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _key(step: dict[str, slice], *names: str) -> tuple[tuple[int, int], ...]:
    return tuple((step[name].start, step[name].stop) for name in names)
