"""The dataflows: how often each moves weights, inputs and partial sums between buffer, array and registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from lilliput.core.errors import DeviceError
from lilliput.hardware.device import Device
from lilliput.hardware.nest import ORDERS, Order, Sizes, Tiles, passes, reloads, up

Triple = tuple[Any, Any, Any]


@dataclass(frozen=True, eq=False)
class Counts:
    """Accesses of many choices at once; arrays (tiles, choices of the array), or what broadcasts to it.

    Attributes:
        order: of the loops within a tile, outermost first.
        choice: what the array does in one pass, by name; arrays (1, choices).
        buffer: words of weights, inputs, and twice the visits of partial sums.
        array: words of each that processors get from the buffer or each other.
        register: words of each, read or written.
        cycles: of all passes, each as long as a full one.
    """

    order: Order
    choice: Mapping[str, Any]
    buffer: Triple
    array: Triple
    register: Triple
    cycles: Any


Flow = Callable[[Sizes, Device, Tiles, Order], Iterator[Counts]]


def row_stationary(sizes: Sizes, device: Device, tiles: Tiles, outer: Order) -> Iterator[Counts]:
    """A processor holds a row of a filter and slides it along a row of the input (Chen, Emer & Sze 2016).

    Rows of a filter are shared along the array, rows of the input along its diagonals, partial sums are handed up.
    """
    c = _row_choices(sizes, device)
    high, wide = sizes.kernel
    folds, rows = folded(high, device.rows)
    dilation = (sizes.extent[0] - 1) // max(high - 1, 1)
    strip = up(tiles.rows, up(tiles.rows, c["most_rows"]))
    strips = passes(sizes.rows, tiles.rows, strip)
    filter_steps = passes(sizes.filters, tiles.filters, c["filters"] * c["filter_sets"])
    channel_steps = passes(sizes.channels, tiles.channels, c["channels"] * c["channel_sets"]) * folds
    trips = {
        "filters": up(tiles.filters, c["filters"] * c["filter_sets"]),
        "channels": up(tiles.channels, c["channels"] * c["channel_sets"]) * folds,
        "places": tiles.batch * up(tiles.rows, strip),
    }
    places, whole = sizes.batch * strips, (outer, tiles.trips(sizes))
    line = sizes.batch * sizes.channels * sizes.width
    chain = high * passes(sizes.channels, tiles.channels, c["channels"]) - channel_steps
    # A processor holds but a window of the row that slides by: where it slides, inputs come anew in every pass, and the
    # order matters to the weights alone.
    slides = sizes.columns > 1
    for order in [ORDERS[0]] if slides else ORDERS:
        inner = (order, trips)
        weight, each = reloads("places", whole, inner, places)
        image, every = reloads("filters", whole, inner, filter_steps, slides)
        read = line * folds * sizes.input_rows(strips, (rows - 1) * dilation + 1) * image
        sets = np.minimum(c["filter_sets"], up(tiles.filters, c["filters"]))
        copies = np.where(every, passes(sizes.filters, tiles.filters, c["filters"]), image * sets)
        fills = sizes.weights * np.where(each, float(sizes.batch * sizes.rows), weight * strip)
        yield Counts(
            order,
            c | {"rows": strip},
            (sizes.weights * weight, read, 2 * sizes.outputs * channel_steps),
            (fills, np.maximum(line * high * sizes.rows * copies, read), sizes.outputs * chain),
            (sizes.macs, sizes.macs, 2 * sizes.macs),
            places * filter_steps * channel_steps * c["filters"] * c["channels"] * wide * sizes.columns,
        )


def _row_choices(sizes: Sizes, device: Device) -> dict[str, Any]:
    """What a pass may be: filters and channels in a processor, rows of output, and sets side by side."""
    high, wide = sizes.kernel
    stacks = device.rows // folded(high, device.rows)[1]
    found = set()
    for filters, channels in product(_some(sizes.filters), _some(sizes.channels)):
        if filters * channels * wide + channels * wide + filters > device.register_words:
            continue
        for stack in range(1, min(stacks, -(-sizes.rows // device.columns)) + 1):
            most = min(sizes.rows, stack * device.columns)
            sets = stacks // stack * max(1, device.columns // sizes.rows)
            for channel_sets in _some(min(sets, -(-sizes.channels // channels))):
                filter_sets = min(sets // channel_sets, -(-sizes.filters // filters))
                found.add((filters, channels, filter_sets, channel_sets, most))
    if not found:
        least = 2 * wide + 1
        raise DeviceError(
            f"device {device.name}: a register file of {device.register_words} words is too small for a row of a "
            f"kernel {wide} wide, which takes {least}"
        )
    table = np.array(sorted(found), dtype=np.float64).T[:, None, :]
    names = ("filters", "channels", "filter_sets", "channel_sets", "most_rows")
    return dict(zip(names, table))


def folded(kernel: int, rows: int) -> tuple[int, int]:
    """Returns in how many folds an array of so many rows takes a kernel's rows, and how many at a time.

    >>> folded(11, 12), folded(7, 4)
    ((1, 11), (2, 4))
    """
    folds = -(-kernel // rows)
    return folds, -(-kernel // folds)


def _some(size: int, most: int = 64) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12 ... up to a size and a bound, and the lesser of both."""
    steps = {2**i for i in range(12)} | {3 * 2**i for i in range(12)}
    return sorted({step for step in steps if step <= min(size, most)} | {min(size, most)})


def weight_stationary(sizes: Sizes, device: Device, tiles: Tiles, outer: Order) -> Iterator[Counts]:
    """Each processor holds one weight while all places of the tile go by; inputs are broadcast, sums go through."""
    folds = -(-sizes.taps // device.processors)
    room = max(1, device.processors // sizes.taps)
    channels = np.array([_some(min(room, sizes.channels), room)], dtype=np.float64)
    filters = np.minimum(sizes.filters, np.floor(room / channels))
    order: Order = ("filters", "channels", "places")
    channel_steps = passes(sizes.channels, tiles.channels, channels) * folds
    filter_steps = passes(sizes.filters, tiles.filters, filters)
    trips = {
        "filters": up(tiles.filters, filters),
        "channels": up(tiles.channels, channels) * folds,
        "places": tiles.batch * tiles.rows * sizes.columns,
    }
    whole = (outer, tiles.trips(sizes))
    weight, _ = reloads("places", whole, (order, trips), sizes.batch * sizes.rows * sizes.columns)
    image, _ = reloads("filters", whole, (order, trips), filter_steps)
    rows = sizes.input_rows(up(sizes.rows, tiles.rows))
    read = sizes.batch * sizes.channels * sizes.width * rows * image * folds
    fetched = sizes.weights * weight
    yield Counts(
        order,
        {"filters": filters, "channels": channels},
        (fetched, read, 2 * sizes.outputs * channel_steps),
        (fetched, np.maximum(sizes.macs, read), sizes.macs - sizes.outputs * channel_steps),
        (sizes.macs, 0.0, 0.0),
        sizes.batch * sizes.rows * sizes.columns * filter_steps * channel_steps,
    )


def _output_stationary(
    sizes: Sizes, device: Device, tiles: Tiles, filters: Any, rows: Any, columns: Any
) -> Iterator[Counts]:
    """Each processor holds one partial sum while the tile's channels go by; weights and inputs are broadcast."""
    rows = np.minimum(rows, tiles.rows)
    strips, blocks = passes(sizes.rows, tiles.rows, rows), up(sizes.columns, columns)
    filter_steps = passes(sizes.filters, tiles.filters, filters)
    places = sizes.batch * strips * blocks
    read = sizes.batch * sizes.channels * sizes.input_rows(strips) * sizes.input_columns(blocks) * filter_steps
    visits = up(sizes.channels, tiles.channels)
    yield Counts(
        ("filters", "places", "channels"),
        {"filters": filters, "rows": rows, "columns": columns},
        (sizes.weights * places, read, 2 * sizes.outputs * visits),
        (sizes.macs, np.maximum(sizes.macs, read), 0.0),
        (0.0, 0.0, 2 * sizes.macs),
        places * filter_steps * sizes.channels * sizes.taps,
    )


def output_stationary_a(sizes: Sizes, device: Device, tiles: Tiles, outer: Order) -> Iterator[Counts]:
    """Output stationary, many places of one output channel."""
    table = np.array([_block(sizes, device.processors, share) for share in (1, 2, 3, 4)], dtype=np.float64).T
    return _output_stationary(sizes, device, tiles, np.ones((1, 1)), table[:1], table[1:])


def output_stationary_b(sizes: Sizes, device: Device, tiles: Tiles, outer: Order) -> Iterator[Counts]:
    """Output stationary, several places of several output channels."""
    found = []
    for filters in _some(min(sizes.filters, device.processors), device.processors):
        blocks = {_block(sizes, device.processors // filters, share) for share in (1, 2, 3, 4)}
        found += [(filters, *block) for block in sorted(blocks)]
    table = np.array(found, dtype=np.float64).T
    return _output_stationary(sizes, device, tiles, table[:1], table[1:2], table[2:])


def output_stationary_c(sizes: Sizes, device: Device, tiles: Tiles, outer: Order) -> Iterator[Counts]:
    """Output stationary, one place of many output channels."""
    one = np.ones((1, 1))
    return _output_stationary(sizes, device, tiles, one * min(sizes.filters, device.processors), one, one)


def _block(sizes: Sizes, processors: int, share: int) -> tuple[int, int]:
    """Rows and columns of outputs for so many processors, a share of the width at a time."""
    columns = min(-(-sizes.columns // share), processors)
    return min(sizes.rows, processors // columns), columns


def no_local_reuse(sizes: Sizes, device: Device, tiles: Tiles, outer: Order) -> Iterator[Counts]:
    """Nothing stays at the processors: weights come from the buffer for each product, sums return after each step."""
    channels = np.array([_some(min(sizes.channels, device.processors), device.processors)], dtype=np.float64)
    filters = np.minimum(sizes.filters, np.floor(device.processors / channels))
    filter_steps = passes(sizes.filters, tiles.filters, filters)
    channel_steps = passes(sizes.channels, tiles.channels, channels) * sizes.taps
    places = sizes.batch * sizes.rows * sizes.columns
    yield Counts(
        ("filters", "places", "channels"),
        {"filters": filters, "channels": channels},
        (sizes.macs, places * sizes.channels * sizes.taps * filter_steps, 2 * sizes.outputs * channel_steps),
        (sizes.macs, sizes.macs, sizes.macs - sizes.outputs * channel_steps),
        (0.0, 0.0, 0.0),
        places * filter_steps * channel_steps,
    )


def compulsory(sizes: Sizes, device: Device, tiles: Tiles, outer: Order) -> Iterator[Counts]:
    """What no device can avoid: each number once through DRAM, buffer and array, four register accesses a product."""
    inputs = sizes.batch * sizes.channels * sizes.width * sizes.input_rows(1)
    once = (float(sizes.weights), float(inputs), 0.0)
    full = np.ones((1, 1)) * up(sizes.macs, device.processors)
    nothing = (*once[:2], 2.0 * sizes.outputs)
    yield Counts(ORDERS[0], {}, nothing, once, (sizes.macs, sizes.macs, 2 * sizes.macs), full)
