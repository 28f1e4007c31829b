"""A row-stationary array at work: rows of filters meet rows of the input, and sums are handed up."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lilliput.hardware.array import Array, Step, Values, cuts, key_of, length, reach
from lilliput.hardware.flows import folded


class RowStationary(Array):
    """A processor convolves rows of filters with rows of the input (Chen, Emer & Sze, ISCA 2016).

    Processor (i, j) of a set takes row i of the kernel and row stride * j + i of the input, and its sums go up to
    processor (i - 1, j). Sets of other channels add to the same sums; sets of other filters make other ones.
    """

    def steps(self, tile: Step) -> dict[str, list[Step]]:
        """Passes: some filters and channels of some rows of the kernel, for a strip of rows of the output."""
        choice = self.cut.choice
        filters = cuts(tile["filters"], choice["filters"] * choice["filter_sets"])
        channels = cuts(tile["channels"], choice["channels"] * choice["channel_sets"])
        kernel = cuts(slice(0, self.layer.kernel[0]), folded(self.layer.kernel[0], self.device.rows)[1])
        rows = cuts(tile["rows"], choice["rows"])
        return {
            "filters": [{"filters": part} for part in filters],
            "channels": [{"channels": part, "kernel": fold} for part in channels for fold in kernel],
            "places": [{"images": n, "rows": e} for n in cuts(tile["images"], 1) for e in rows],
        }

    def work(self, step: Step) -> None:
        """One pass: loads registers, lets every processor work, and hands sums up and to the buffer."""
        choice, layer = self.cut.choice, self.layer
        filters, channels = cuts(step["filters"], choice["filters"]), cuts(step["channels"], choice["channels"])
        kernel, image = step["kernel"], step["images"].start
        self._load_registers(step, len(filters))
        for some in filters:
            for row in range(step["rows"].start, step["rows"].stop):
                sums = None
                for part in channels:
                    for tap in range(kernel.start, kernel.stop):
                        line = self.inputs[image, part, row * layer.stride[0] + tap * layer.dilation[0]]
                        made = self._processor(self.weight[some, part, tap], line)
                        sums = made if sums is None else sums + self.moved("array", "output", made)
                assert sums is not None
                self.put(sums[:, None], {"filters": some, "rows": slice(row, row + 1)}, image)
        busiest = min(choice["filters"], length(step["filters"])) * min(choice["channels"], length(step["channels"]))
        self.cycles += busiest * layer.kernel[1] * layer.output_size[1]

    def _load_registers(self, step: Step, sets: int) -> None:
        """Weights go along the rows of the array, inputs along its diagonals, each only where it isn't yet."""
        rows, kernel = step["rows"], step["kernel"]
        if self.changed("weight", key_of(step, "filters", "channels", "kernel")):
            words = self.moved("buffer", "weight", self.weight[step["filters"], step["channels"], kernel])
            self.moved("array", "weight", words, length(rows))
        slides = self.layer.output_size[1] > 1
        if self.changed("input", key_of(step, "channels", "kernel", "images", "rows")) or slides:
            across = reach(self.layer, 1, slice(0, self.layer.output_size[1]))
            lines = self.inputs[step["images"].start, step["channels"]][:, :, across]
            self.moved("buffer", "input", lines[:, reach(self.layer, 0, rows, kernel)])
            self.counts["array", "input"] += lines[:, 0].size * length(kernel) * length(rows) * sets

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
