"""What a layer costs under each dataflow: the tiling of least energy, with its accesses to every memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from lilliput.core.errors import DeviceError
from lilliput.hardware import flows
from lilliput.hardware.device import Device
from lilliput.hardware.energy import Accesses, Costs, Energy, Traffic, layer_energy
from lilliput.hardware.layer import Layer
from lilliput.hardware.nest import ORDERS, Numbers, Order, Sizes, Tiles, reloads, replaced
from lilliput.hardware.systolic import Grid

FLOWS: Mapping[str, flows.Flow] = {
    "row_stationary": flows.row_stationary,
    "weight_stationary": flows.weight_stationary,
    "output_stationary_a": flows.output_stationary_a,
    "output_stationary_b": flows.output_stationary_b,
    "output_stationary_c": flows.output_stationary_c,
    "no_local_reuse": flows.no_local_reuse,
    "systolic": flows.weight_stationary,
    "compulsory": flows.compulsory,
}
KEPT = {"weight_stationary": 1, "no_local_reuse": 0} | {f"output_stationary_{v}": 1 for v in "abc"}
"""Words that each processor keeps, where that isn't as many as its registers hold."""
CHUNK = 64


@dataclass(frozen=True)
class Cut:
    """How a layer is cut up.

    Attributes:
        tile: what the buffer holds at a time: batch, filters, channels, rows of output; of one group.
        outer: order of the loops over tiles, outermost first.
        inner: order of the loops within a tile.
        choice: what the array does in one pass, by name.
    """

    tile: tuple[int, int, int, int]
    outer: Order
    inner: Order
    choice: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Analysis:
    """A layer on a device, by one dataflow.

    Attributes:
        flow: its name.
        mapping: how the layer is cut up.
        accesses: of the dense layer with 16 bits.
        cycles: of the array, if memory keeps up.
        utilisation: part of the processors that work, on average over these cycles.
    """

    flow: str
    mapping: Cut
    accesses: Accesses
    cycles: int
    utilisation: float

    def energy(self, layer: Layer, costs: Costs) -> Energy:
        """Returns the energy, with the layer's bits and densities."""
        return layer_energy(layer, self.accesses, costs)


def analyse(layer: Layer, device: Device, flow: str = "", slack: float = 0.01) -> Analysis:
    """Finds the cheapest way to run a layer by a dataflow.

    Of a value that is used a b c d times, a times from DRAM, b times from the buffer for each of these, c times in the
    array, d times from a register, moving costs a E_dram + a b E_buffer + a b c E_array + a b c d E_register; of a sum
    of as many, (2a - 1) E_dram + 2a (b - 1) E_buffer + a b (c - 1) E_array + 2 a b c d E_register (Chen, Emer & Sze,
    ISCA 2016). The splits are of a model of our own, which `simulate.simulate` counts after; the search runs over
    equal parts of batch, filters, channels and rows, over all orders of loops, and over what an array does in a pass.

    Args:
        layer: its bits and densities play no part: counts are those of the dense layer.
        device: where another flow than its own is asked for, registers that the flow leaves unused go to the buffer.
        flow: one of `FLOWS`; by default the device's own.
        slack: how much more energy, relatively, the array may spend if it is done sooner.

    Raises:
        DeviceError: no such flow; a buffer or register file too small for one tile.

    >>> fc = Layer(4, 2)
    >>> found = analyse(fc, Device.load("eyeriss"))
    >>> found.accesses.dram, found.cycles
    (Traffic(weight=8.0, input=4.0, output=2.0), 2)
    """
    flow = flow or device.dataflow
    if flow not in FLOWS:
        raise DeviceError(f"no dataflow '{flow}'; there are {', '.join(FLOWS)}")
    if flow != device.dataflow and flow in KEPT:
        device = device.traded(KEPT[flow] * device.word_bits // 8)
    # The search is remembered by shape alone, whatever the bits, densities and name.
    plain = Layer(layer.channels, layer.filters, layer.size, layer.kernel, layer.stride, layer.padding, layer.dilation)
    try:
        found = _found(replace(plain, groups=layer.groups, batch=layer.batch), device, flow, slack)
    except DeviceError as error:
        where = f"layer '{layer.name}': " if layer.name else ""
        raise DeviceError(f"{where}{error}") from None
    if flow == "systolic":
        cycles = Grid.of(device).layer_cycles(layer)
        found = replace(found, cycles=cycles, utilisation=layer.macs / (cycles * device.processors))
    return found


@lru_cache(maxsize=4096)
def _found(layer: Layer, device: Device, flow: str, slack: float) -> Analysis:
    sizes = Sizes.of(layer)
    whole = Tiles.whole(sizes)
    tiles = whole if flow == "compulsory" else Tiles.that_fit(sizes, device.buffer_words)
    search = _Search(sizes, device, FLOWS[flow])
    # No tile costs less within the chip than the whole layer in one: where that bound and the DRAM alone cost more than
    # the best so far, a tile needn't be looked at.
    least = min(float(search.inside(part).min()) for part in FLOWS[flow](sizes, device, whole, ORDERS[0]))
    outside = {order: search.outside(tiles, order) for order in ORDERS}
    for order, cost in outside.items():
        places = np.argsort(cost[:, 0], kind="stable")
        for start in range(0, len(places), CHUNK):
            chosen = places[start : start + CHUNK]
            chosen = chosen[cost[chosen, 0] + least <= search.energy * (1 + 1e-9)]
            if not len(chosen):
                break
            search.look(tiles[chosen], order, cost[chosen])
    search.hurry(slack)
    return search.analysis(flow, layer.groups)


class _Search:
    """The best tile so far, by energy."""

    tile: Tiles
    order: Order
    counts: flows.Counts
    place: int
    shape: tuple[int, ...]

    def __init__(self, sizes: Sizes, device: Device, flow: flows.Flow) -> None:
        self.sizes, self.device, self.flow = sizes, device, flow
        self.energy = float("inf")

    def dram(self, tiles: Tiles, order: Order) -> tuple[Numbers, Numbers, Numbers]:
        """Words of weights and inputs from DRAM, and how often each partial sum comes from there or goes there."""
        trips, one = tiles.trips(self.sizes), np.ones_like(tiles.rows)
        still = dict.fromkeys(trips, one)
        weight, _ = reloads("places", (order, trips), (order, still), trips["places"])
        image, _ = reloads("filters", (order, trips), (order, still), trips["filters"])
        visits = np.where(replaced("channels", order, trips), trips["channels"], 1.0)
        sizes = self.sizes
        rows = sizes.input_rows(np.ceil(sizes.rows / tiles.rows))
        return sizes.weights * weight, sizes.batch * sizes.channels * sizes.width * rows * image, visits

    def outside(self, tiles: Tiles, order: Order) -> Numbers:
        """Energy of DRAM, less that of the buffer for the visits of partial sums that DRAM has instead."""
        weight, image, visits = self.dram(tiles, order)
        costs, outputs = self.device.costs, self.sizes.outputs
        words = weight + image + (2 * visits - 1) * outputs
        return np.asarray(costs.dram * words - 2 * costs.buffer * visits * outputs)

    def inside(self, counts: flows.Counts) -> Numbers:
        """Energy of buffer, array and registers, all visits of partial sums to the buffer taken in."""
        costs = self.device.costs
        parts = ((costs.buffer, counts.buffer), (costs.array, counts.array), (costs.register, counts.register))
        total: Any = 0.0
        for cost, triple in parts:
            for words in triple:
                total = total + cost * np.asarray(words)
        return np.atleast_2d(total)

    def look(self, tiles: Tiles, order: Order, outside: Numbers) -> None:
        """Looks at some tiles in one order, with all that the array may do."""
        for counts in self.flow(self.sizes, self.device, tiles, order):
            energy = outside + self.inside(counts)
            best = float(energy.min())
            if best >= self.energy * (1 - 1e-9):
                continue
            self.energy = best
            row = int(np.unravel_index(int(energy.argmin()), energy.shape)[0])
            self.tile, self.order = tiles[row : row + 1], order

    def hurry(self, slack: float) -> None:
        """Picks, for the best tile, what the array does: the fastest that costs little more."""
        fewest = float("inf")
        outside = self.outside(self.tile, self.order)
        for counts in self.flow(self.sizes, self.device, self.tile, self.order):
            energy = outside + self.inside(counts)
            fine = energy <= self.energy * (1 + slack + 1e-9)
            cycles = np.where(fine, np.broadcast_to(counts.cycles, energy.shape), np.inf)
            if float(cycles.min()) < fewest:
                fewest = float(cycles.min())
                self.counts, self.place, self.shape = counts, int(cycles.argmin()), energy.shape

    def analysis(self, flow: str, groups: int) -> Analysis:
        """The best as plain numbers, of all groups."""
        counts, tile = self.counts, self.tile

        def at(value: Any) -> float:
            return float(np.broadcast_to(value, self.shape).flat[self.place]) * groups

        weight, image, visits = (float(value[0, 0]) for value in self.dram(tile, self.order))
        outputs = self.sizes.outputs * groups
        dram = Traffic(weight * groups, image * groups, (2 * visits - 1) * outputs)
        sums = at(counts.buffer[2]) - 2 * visits * outputs
        buffer = Traffic(at(counts.buffer[0]), at(counts.buffer[1]), sums)
        rest = (Traffic(*map(at, counts.array)), Traffic(*map(at, counts.register)))
        cycles = round(at(counts.cycles))
        choice = {name: round(at(value)) // groups for name, value in counts.choice.items()}
        batch, filters, channels, rows = (
            round(float(a[0, 0])) for a in (tile.batch, tile.filters, tile.channels, tile.rows)
        )
        cut = Cut((batch, filters, channels, rows), self.order, counts.order, choice)
        busy = self.sizes.macs * groups / (cycles * self.device.processors)
        return Analysis(flow, cut, Accesses(dram, buffer, *rest), cycles, busy)


def active_processors(layer: Layer, rows: int, columns: int) -> int:
    """Returns how many processors of a row-stationary array work at a time on the spatial sets that fit into it.

    A set is R x E, in strips as wide as the array; unused rows hold further strips, then further sets (Chen, Krishna,
    Emer & Sze, JSSC 2017).

    >>> conv2 = Layer(96, 256, size=(27, 27), kernel=(5, 5), padding=(2, 2), groups=2)
    >>> active_processors(conv2, 12, 14)
    135
    """
    if rows < 1 or columns < 1:
        raise DeviceError(f"an array of {rows} x {columns} processors; both must be at least 1")
    kernel = flows.folded(layer.kernel[0], rows)[1]
    stacks, high = rows // kernel, layer.output_size[0]
    strips = -(-high // columns)
    together = min(stacks, strips)
    per_pass = -(-high // -(-strips // together))
    beside = max(1, columns // high) if strips == 1 else 1
    own = layer.filters // layer.groups * (layer.channels // layer.groups)
    return kernel * per_pass * min(stacks // together * beside, own)
