"""The other dataflows at work: weights stay, sums stay, or nothing stays at the processors."""

from __future__ import annotations

import numpy as np

from lilliput.hardware.array import Array, Patch, Step, Values, cuts, key_of, length


class WeightStationary(Array):
    """Each processor holds one weight while all places of the tile go by; inputs are broadcast, sums go through."""

    pinned: Values

    def steps(self, tile: Step) -> dict[str, list[Step]]:
        """Passes: some filters and channels, all taps or a fold of them, for all places of the tile."""
        choice, taps = self.cut.choice, self.layer.kernel[0] * self.layer.kernel[1]
        folds = cuts(slice(0, taps), -(-taps // -(-taps // self.device.processors)))
        channels = cuts(tile["channels"], choice["channels"])
        return {
            "filters": [{"filters": part} for part in cuts(tile["filters"], choice["filters"])],
            "channels": [{"channels": part, "taps": fold} for part in channels for fold in folds],
            "places": [{"images": tile["images"], "rows": tile["rows"]}],
        }

    def work(self, step: Step) -> None:
        """One pass: pins weights that aren't there, and reads each input once for all processors."""
        images, rows, taps = step["images"], step["rows"], step["taps"]
        columns = slice(0, self.layer.output_size[1])
        if self.changed("weight", key_of(step, "filters", "channels", "taps")):
            weight = self.weight[step["filters"], step["channels"]]
            weight = self.moved("buffer", "weight", weight.reshape(*weight.shape[:2], -1)[..., taps])
            self.pinned = self.moved("array", "weight", weight)
        places = length(images) * length(rows) * length(columns)
        # A single vector of inputs stays while filters change.
        read = self.changed("input", key_of(step, "channels", "taps", "images", "rows")) or places > 1
        for image in range(images.start, images.stop):
            patch = Patch(self.layer, self.inputs[image, step["channels"]], rows, columns)
            if read:
                self.moved("buffer", "input", patch.values)
            sums = np.zeros((length(step["filters"]), length(rows), length(columns)))
            for place, tap in enumerate(range(taps.start, taps.stop)):
                seen = patch.under(*divmod(tap, self.layer.kernel[1]))
                sums += np.einsum("kc,cpq->kpq", self.pinned[..., place], seen)
                products = len(sums) * seen.size
                self.counts["array", "input"] += products
                self.counts["register", "weight"] += products
            self.moved("array", "output", sums, length(taps) * length(step["channels"]) - 1)
            self.put(sums, step, image)
        self.cycles += places


class OutputStationary(Array):
    """Each processor holds one partial sum while the tile's channels go by; weights and inputs are broadcast."""

    def steps(self, tile: Step) -> dict[str, list[Step]]:
        """Passes: some filters of a block of places, for all channels of the tile."""
        choice, columns = self.cut.choice, slice(0, self.layer.output_size[1])
        blocks = [(e, f) for e in cuts(tile["rows"], choice["rows"]) for f in cuts(columns, choice["columns"])]
        return {
            "filters": [{"filters": part} for part in cuts(tile["filters"], choice["filters"])],
            "channels": [{"channels": tile["channels"]}],
            "places": [{"images": n, "rows": e, "columns": f} for n in cuts(tile["images"], 1) for e, f in blocks],
        }

    def work(self, step: Step) -> None:
        """One pass: a weight and a block of inputs for each channel and tap, one product for each processor."""
        image, rows, columns = step["images"].start, step["rows"], step["columns"]
        weight = self.moved("buffer", "weight", self.weight[step["filters"], step["channels"]])
        patch = Patch(self.layer, self.inputs[image, step["channels"]], rows, columns)
        self.moved("buffer", "input", patch.values)
        sums = np.zeros((len(weight), length(rows), length(columns)))
        for tap in np.ndindex(*self.layer.kernel):
            for channel, seen in enumerate(patch.under(*tap)):
                made = weight[:, channel, *tap][:, None, None] * seen
                self.moved("array", "weight", made)
                self.moved("array", "input", made)
                sums += self.moved("register", "output", made, 2)
                self.cycles += 1
        self.put(sums, step, image)


class NoLocalReuse(Array):
    """Nothing stays at the processors: weights come from the buffer for each product, sums return after each step."""

    def steps(self, tile: Step) -> dict[str, list[Step]]:
        """Passes: some filters and channels at one tap and one place."""
        choice, taps = self.cut.choice, self.layer.kernel[0] * self.layer.kernel[1]
        channels, folds = cuts(tile["channels"], choice["channels"]), cuts(slice(0, taps), 1)
        pixels = [(e, f) for e in cuts(tile["rows"], 1) for f in cuts(slice(0, self.layer.output_size[1]), 1)]
        return {
            "filters": [{"filters": part} for part in cuts(tile["filters"], choice["filters"])],
            "channels": [{"channels": part, "taps": fold} for part in channels for fold in folds],
            "places": [{"images": n, "rows": e, "columns": f} for n in cuts(tile["images"], 1) for e, f in pixels],
        }

    def work(self, step: Step) -> None:
        """One pass of one cycle: a product at each processor, added up across the channels."""
        layer, image = self.layer, step["images"].start
        down, across = divmod(step["taps"].start, layer.kernel[1])
        weight = self.moved("buffer", "weight", self.weight[step["filters"], step["channels"], down, across])
        row = step["rows"].start * layer.stride[0] + down * layer.dilation[0]
        column = step["columns"].start * layer.stride[1] + across * layer.dilation[1]
        seen = self.moved("buffer", "input", self.inputs[image, step["channels"], row, column])
        made = self.moved("array", "weight", weight) * self.moved("array", "input", np.tile(seen, (len(weight), 1)))
        sums = made[:, 0].copy()
        for channel in made.T[1:]:
            sums += self.moved("array", "output", channel)
        self.put(sums[:, None, None], step, image)
        self.cycles += 1
