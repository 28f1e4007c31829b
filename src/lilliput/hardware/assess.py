"""One layer on one device, all told: energy by level, cycles, and whether memory keeps up."""

from __future__ import annotations

from dataclasses import dataclass

from lilliput.hardware.dataflow import Analysis, analyse
from lilliput.hardware.device import Device
from lilliput.hardware.energy import DATA, LEVELS, Energy, run_length
from lilliput.hardware.layer import Layer


@dataclass(frozen=True)
class Assessment:
    """What a layer costs.

    Attributes:
        layer: which.
        analysis: accesses, cycles and utilisation.
        energy: in the unit of the device's costs.
        seconds: at least so long: for arithmetic or for DRAM, whichever takes longer.
        by: `"compute"` or `"memory"`.
    """

    layer: Layer
    analysis: Analysis
    energy: Energy
    seconds: float
    by: str

    def to_dict(self) -> dict[str, object]:
        """Returns it as plain data, for JSON."""
        layer, energy = self.layer, self.energy
        sizes = (layer.channels, layer.filters, *layer.size, *layer.kernel, *layer.stride, layer.groups, layer.batch)
        names = (
            "channels",
            "filters",
            "height",
            "width",
            "kernel_height",
            "kernel_width",
            "stride_down",
            "stride_across",
        )
        return {
            "name": layer.name,
            **dict(zip((*names, "groups", "batch"), sizes)),
            "macs": layer.macs,
            "weight_bits": layer.weight_bits,
            "input_bits": layer.input_bits,
            "weight_density": layer.weight_density,
            "input_density": layer.input_density,
            "flow": self.analysis.flow,
            "accesses": {
                level: {data: getattr(getattr(self.analysis.accesses, level), data) for data in DATA}
                for level in LEVELS
            },
            "energy": {
                "arithmetic": energy.arithmetic,
                **{level: getattr(energy, level).total for level in LEVELS},
                "total": energy.total,
            },
            "energy_by_data": {data: energy.of(data) for data in DATA},
            "cycles": self.analysis.cycles,
            "utilisation": self.analysis.utilisation,
            "seconds": self.seconds,
            "bound": self.by,
        }


def assess(layer: Layer, device: Device, flow: str = "") -> Assessment:
    """Puts energy, cycles and bound of a layer together.

    Args:
        layer: with bits and densities.
        device: on which.
        flow: by default the device's own.

    Raises:
        DeviceError: see `dataflow.analyse`.

    >>> found = assess(Layer(4096, 4096), Device.load("eyeriss"))
    >>> found.by, found.energy.dram.total > found.energy.total / 2
    ('memory', True)
    """
    analysis = analyse(layer, device, flow)
    dram = analysis.accesses.dram
    bits = dram.weight * layer.weight_bits * run_length(layer.weight_bits, layer.weight_density)
    bits += dram.input * layer.input_bits * run_length(layer.input_bits, layer.input_density)
    bits += dram.output * layer.output_bits * run_length(layer.output_bits, layer.output_density)
    memory, arithmetic = bits / 8 / device.bandwidth, analysis.cycles / device.clock
    by = "compute" if arithmetic >= memory else "memory"
    return Assessment(layer, analysis, analysis.energy(layer, device.costs), max(arithmetic, memory), by)
