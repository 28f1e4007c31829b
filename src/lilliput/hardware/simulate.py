"""Runs a layer on a simulated array: the output is the convolution, and every access is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lilliput.core.errors import DeviceError
from lilliput.hardware.array import Array
from lilliput.hardware.dataflow import Cut, analyse
from lilliput.hardware.device import Device
from lilliput.hardware.energy import DATA, LEVELS, Accesses, Traffic
from lilliput.hardware.layer import Layer
from lilliput.hardware.row_stationary import RowStationary
from lilliput.hardware.stationary import NoLocalReuse, OutputStationary, WeightStationary

ARRAYS: Mapping[str, type[Array]] = {
    "row_stationary": RowStationary,
    "weight_stationary": WeightStationary,
    "output_stationary_a": OutputStationary,
    "output_stationary_b": OutputStationary,
    "output_stationary_c": OutputStationary,
    "no_local_reuse": NoLocalReuse,
}
"""The dataflows that are simulated, by their names in `dataflow.FLOWS`; `systolic.Grid.multiply` is another."""


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


def simulate(
    layer: Layer, inputs: Tensor, weight: Tensor, device: Device, flow: str = "", cut: Cut | None = None
) -> Run:
    """Runs a layer on an array of processors by a dataflow (Chen, Emer & Sze, ISCA 2016).

    What `dataflow.analyse` says of a layer is counted here: tiles come into the buffer, passes fetch what their
    processors lack, sums leave. On sizes that divide evenly the counts are equal, level by level.

    Args:
        layer: what `inputs` and `weight` must fit.
        inputs: (N, C, H, W), without padding.
        weight: (K, C / groups, R, S).
        device: its rows and columns, and where no cut is given its memories.
        flow: one of `ARRAYS`; by default the device's own.
        cut: by default the one that `dataflow.analyse` finds cheapest.

    Raises:
        DeviceError: tensors of other shapes than the layer's, a dataflow that isn't simulated.

    >>> layer = Layer(1, 1, size=(3, 3), kernel=(2, 2))
    >>> run = simulate(layer, torch.arange(9.0).reshape(1, 1, 3, 3), torch.ones(1, 1, 2, 2), Device.load("eyeriss"))
    >>> run.output.tolist(), run.accesses.dram
    ([[[[8.0, 12.0], [20.0, 24.0]]]], Traffic(weight=4, input=9, output=4))
    """
    flow = flow or device.dataflow
    if flow not in ARRAYS:
        raise DeviceError(f"the dataflow '{flow}' isn't simulated; there are {', '.join(ARRAYS)}")
    own = layer.channels // layer.groups
    wanted = (layer.batch, layer.channels, *layer.size), (layer.filters, own, *layer.kernel)
    if (tuple(inputs.shape), tuple(weight.shape)) != wanted:
        raise DeviceError(
            f"inputs {tuple(inputs.shape)} and weight {tuple(weight.shape)} must be {wanted[0]}, {wanted[1]}"
        )
    cut = analyse(layer, device, flow).mapping if cut is None else cut
    (down, across), each = layer.padding, layer.filters // layer.groups
    padded = torch.nn.functional.pad(inputs.double(), (across, across, down, down)).numpy()
    output = np.zeros((layer.batch, layer.filters, *layer.output_size))
    counts: Counter[tuple[str, str]] = Counter()
    cycles = 0
    for group in range(layer.groups):
        part = slice(group * own, (group + 1) * own), slice(group * each, (group + 1) * each)
        values = padded[:, part[0]], weight[part[1]].double().numpy(), output[:, part[1]]
        array = ARRAYS[flow](layer, cut, device, values)
        array.run()
        counts += array.counts
        cycles += array.cycles
    levels = [Traffic(*(counts[level, data] for data in DATA)) for level in LEVELS]
    return Run(torch.from_numpy(output), Accesses(*levels), cycles)
