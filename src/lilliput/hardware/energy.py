"""Energy: what an operation and an access cost in 45 nm, and what a layer's arithmetic and accesses come to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lilliput.core.errors import DeviceError
from lilliput.hardware.layer import Layer

Operation = Literal["add", "multiply"]
Kind = Literal["int", "float"]
LEVELS = ("dram", "buffer", "array", "register")
DATA = ("weight", "input", "output")

TABLE: Mapping[tuple[Operation, Kind], Mapping[int, tuple[float, float]]] = {
    ("add", "int"): {8: (0.03, 36), 16: (0.05, 67), 32: (0.1, 137)},
    ("multiply", "int"): {8: (0.2, 282), 16: (0.8, 1128), 32: (3.1, 3495)},
    ("add", "float"): {16: (0.4, 1360), 32: (0.9, 4184)},
    ("multiply", "float"): {16: (1.1, 1640), 32: (3.7, 7700)},
}
"""pJ and square micrometres at 45 nm and 0.9 V, by width (Horowitz, ISSCC 2014); the 16-bit integer product is ours."""
MEASURED = {("add", "int"): (8, 16, 32), ("multiply", "int"): (8, 32)}
SRAM = {8 << 10: 10.0, 32 << 10: 20.0, 1 << 20: 100.0}
"""pJ of a 64-bit access, by the memory's bytes."""
DRAM_BIT = 20.0
"""pJ of a bit from DRAM: 640 pJ for 32."""
REGISTER_BIT = 1 / 32
"""pJ of a bit from a register file (Han et al. 2016, arXiv 1602.01528)."""
INSTRUCTION = 70.0
"""pJ that a processor spends on an instruction around the operation itself."""


@dataclass(frozen=True)
class Cost:
    """What one operation costs.

    Attributes:
        energy: pJ.
        area: square micrometres.
        estimated: not in the table, but drawn through its neighbours.
    """

    energy: float
    area: float
    estimated: bool = False


def operation(what: Operation, kind: Kind, bits: int) -> Cost:
    """Returns energy and area of an operation of any width.

    Between two widths of the table a power law goes through both; beyond them adders grow linearly with the width and
    multipliers with its square (Horowitz, "Computing's energy problem", ISSCC 2014).

    Args:
        what: `"add"` or `"multiply"`.
        kind: `"int"` or `"float"`.
        bits: of both operands, 1 to 64.

    Raises:
        DeviceError: no such operation or width.

    >>> operation("add", "int", 32), operation("multiply", "int", 16)
    (Cost(energy=0.1, area=137, estimated=False), Cost(energy=0.8, area=1128, estimated=True))
    >>> round(dram(32) / operation("add", "int", 32).energy)
    6400
    """
    if (what, kind) not in TABLE:
        raise DeviceError(f"no operation '{what}' of {kind}; there are " + ", ".join(map(" of ".join, TABLE)))
    if not 1 <= bits <= 64:
        raise DeviceError(f"a width of {bits} bits; give 1 to 64")
    known = TABLE[what, kind]
    if bits in known:
        return Cost(*known[bits], estimated=bits not in MEASURED.get((what, kind), known))
    power = 1.0 if what == "add" else 2.0
    energy, area = (through({w: pair[i] for w, pair in known.items()}, bits, power) for i in (0, 1))
    return Cost(energy, area, estimated=True)


def through(points: Mapping[int, float], x: float, power: float) -> float:
    """Returns the value at x of power laws through neighbouring points, and of `power` beyond the outermost.

    >>> through({1: 2.0, 4: 8.0}, 2, 2.0), through({1: 2.0, 4: 8.0}, 8, 2.0)
    (4.0, 32.0)
    """
    places = sorted(points)
    below = max((p for p in places if p <= x), default=None)
    above = min((p for p in places if p >= x), default=None)
    if below is None or above is None:
        near = places[0] if below is None else places[-1]
        return points[near] * math.pow(x / near, power)
    if below == above:
        return points[below]
    slope = math.log(points[above] / points[below]) / math.log(above / below)
    return points[below] * math.pow(x / below, slope)


def sram(size: int, bits: int) -> float:
    """Returns the pJ of an access to an SRAM.

    Args:
        size: its bytes.
        bits: that are read or written; the energy is proportional to them.

    >>> sram(8 << 10, 32), sram(1 << 20, 64)
    (5.0, 100.0)
    """
    if size < 1 or bits < 1:
        raise DeviceError(f"a memory of {size} bytes read {bits} bits at a time; both must be at least 1")
    return through(SRAM, size, 0.5) * bits / 64


def dram(bits: int) -> float:
    """Returns the pJ of so many bits from DRAM.

    >>> dram(32), round(1e9 * 20 * dram(32) * 1e-12, 3)  # watts of a network of 1e9 connections read 20 times a second
    (640.0, 12.8)
    """
    return DRAM_BIT * bits


@dataclass(frozen=True)
class Costs:
    """Energy of one 16-bit access to each level, and of one 16-bit multiply-accumulate, all in the same unit.

    The defaults are Eyeriss's, relative to a multiply-accumulate (Chen, Emer & Sze 2016).

    Attributes:
        dram: memory outside the chip.
        buffer: the global buffer on the chip.
        array: from one processing element to another.
        register: the register file of a processing element.
        mac: a multiply-accumulate.
        unit: their unit, for tables.
    """

    dram: float = 200.0
    buffer: float = 6.0
    array: float = 2.0
    register: float = 1.0
    mac: float = 1.0
    unit: str = "MAC"

    def __post_init__(self) -> None:
        for name in (*LEVELS, "mac"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise DeviceError(f"the energy of {name} must be 0 or more, it is {value}")

    @classmethod
    def of_45_nm(cls, buffer_bytes: int, register_bytes: int = 512) -> Costs:
        """Makes costs in pJ from the table; a hop in the array is taken as two register accesses, as in Eyeriss.

        >>> costs = Costs.of_45_nm(128 << 10)
        >>> costs.dram, round(costs.buffer, 1), costs.register, round(costs.mac, 2)
        (320.0, 9.5, 0.5, 0.9)
        """
        register = math.sqrt(max(1.0, register_bytes / 512)) * 16 * REGISTER_BIT
        product = operation("multiply", "int", 16).energy + operation("add", "int", 32).energy
        return cls(dram(16), sram(buffer_bytes, 16), 2 * register, register, product, "pJ")

    def multiply_accumulate(self, weight_bits: int, input_bits: int) -> float:
        """Returns the energy of a multiply-accumulate: nine tenths grow with the product of widths, one with their sum.

        >>> Costs().multiply_accumulate(16, 16), Costs().multiply_accumulate(8, 8)
        (1.0, 0.275)
        """
        return self.mac * (0.9 * weight_bits * input_bits / 256 + 0.1 * (weight_bits + input_bits) / 32)


@dataclass(frozen=True)
class Traffic:
    """Accesses to one level, in words, by what is read or written."""

    weight: float = 0.0
    input: float = 0.0
    output: float = 0.0

    @property
    def total(self) -> float:
        """Of all three."""
        return self.weight + self.input + self.output

    def scaled(self, weight: float, input: float, output: float) -> Traffic:
        """Returns each kind times a factor of its own."""
        return Traffic(self.weight * weight, self.input * input, self.output * output)


@dataclass(frozen=True)
class Accesses:
    """Accesses of a dense layer to every level, in words."""

    dram: Traffic
    buffer: Traffic
    array: Traffic
    register: Traffic


@dataclass(frozen=True)
class Energy:
    """Energy of a layer, in the costs' unit.

    Attributes:
        arithmetic: of the multiply-accumulates that aren't skipped.
        dram: of the accesses to each level, by data.
        buffer: likewise.
        array: likewise.
        register: likewise.
    """

    arithmetic: float
    dram: Traffic
    buffer: Traffic
    array: Traffic
    register: Traffic

    @property
    def total(self) -> float:
        """Arithmetic and all levels."""
        return self.arithmetic + self.dram.total + self.buffer.total + self.array.total + self.register.total

    def of(self, data: str) -> float:
        """Returns the energy of moving the `"weight"`, `"input"` or `"output"` at all levels."""
        return float(sum(getattr(getattr(self, level), data) for level in LEVELS))


def run_length(bits: int, density: float, run_bits: int = 5) -> float:
    """Returns the part of a dense stream that Eyeriss's run-length code takes, at most 1: else it is stored plainly.

    A 64-bit word holds three runs of zeros, 5 bits each, with the value that ends each, and a bit. A run too long for
    its bits ends in a zero that is written out; zeros are taken as independent.

    >>> run_length(16, 1.0), round(run_length(16, 0.5), 3), run_length(16, 0.0) < 0.05
    (1.0, 0.667, True)
    """
    longest = float(2**run_bits)
    entries = 1 / longest if density <= 0 else density / -math.expm1(longest * math.log1p(-min(density, 1 - 1e-12)))
    return min(1.0, entries * (run_bits + bits) * 64 / 63 / bits)


def layer_energy(layer: Layer, accesses: Accesses, costs: Costs) -> Energy:
    """Returns what a layer costs, as Yang, Chen & Sze 2017 (arXiv 1611.05128) estimate it.

    Arithmetic: products of two non-zero numbers only. Accesses: those of the dense layer, times bits / 16, times how
    far the data is compressed: in DRAM and the buffer run-length coded (partial sums in the buffer are not), in the
    array by density, and at the registers nothing is read for a product that is skipped.

    Args:
        layer: with bits and densities.
        accesses: of the dense layer, from `dataflow`.
        costs: of the device.

    >>> once = Traffic(4, 4, 1)
    >>> layer_energy(Layer(4, 1), Accesses(once, once, once, Traffic(4, 4, 8)), Costs()).total  # 9 * 208 + 16 + 4
    1892.0
    """
    weight, image, result = layer.weight_density, layer.input_density, layer.output_density
    both = weight * image
    coded = [run_length(layer.weight_bits, weight), run_length(layer.input_bits, image)]
    bits = (layer.weight_bits / 16, layer.input_bits / 16, layer.output_bits / 16)
    factors = {
        "dram": (*coded, run_length(layer.output_bits, result)),
        "buffer": (*coded, 1.0),
        "array": (weight, image, 1.0),
        "register": (both, both, both),
    }
    levels = {}
    for level in LEVELS:
        cost = getattr(costs, level)
        levels[level] = getattr(accesses, level).scaled(*(cost * f * b for f, b in zip(factors[level], bits)))
    arithmetic = layer.macs * both * costs.multiply_accumulate(layer.weight_bits, layer.input_bits)
    return Energy(arithmetic, **levels)
