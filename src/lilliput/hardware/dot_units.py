"""Units that do a whole dot product without a multiplier for each term: XNOR and count; sums by centroid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.errors import DeviceError
from lilliput.hardware.arithmetic import FULL_ADDER, GATE_AREA, GATE_ENERGY, MUX, XOR
from lilliput.hardware.energy import Cost, operation


@dataclass(frozen=True)
class Xnor:
    """Weights and inputs -1 and 1, a bit each (1 for 1): 2 popcount(~(x ^ w)) - n (BNN, XNOR-Net).

    Attributes:
        count: n.

    >>> unit = Xnor(3)
    >>> unit.dot(torch.tensor([1, 0, 1]), torch.tensor([1, 1, 1]))
    tensor(1)
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DeviceError(f"Xnor: count must be at least 1, it is {self.count}")

    @property
    def code_bits(self) -> int:
        """A bit for each weight."""
        return self.count

    @property
    def input_bits(self) -> int:
        """A bit for each input."""
        return self.count

    @property
    def output_bits(self) -> int:
        """Of -n .. n."""
        return self.count.bit_length() + 1

    @property
    def cost(self) -> Cost:
        """Of the whole dot product: n gates and a tree of adders that counts."""
        gates = XOR * self.count + FULL_ADDER * self.count
        return Cost(gates * GATE_ENERGY, gates * GATE_AREA, estimated=True)

    def dot(self, codes: Tensor, inputs: Tensor) -> Tensor:
        """Returns the dot products, int64, over the last axis, from bits that broadcast.

        Raises:
            DeviceError: another length than n, or numbers that are no bits.
        """
        for name, bits in (("codes", codes), ("inputs", inputs)):
            if bits.shape[-1] != self.count or bool(((bits != 0) & (bits != 1)).any()):
                raise DeviceError(f"Xnor: {name} must be {self.count} bits, 0 or 1, along the last axis")
        same = 1 - (codes.long() ^ inputs.long())
        return 2 * same.sum(-1) - self.count

    def words(self, codes: Tensor, inputs: Tensor) -> tuple[int, int]:
        """Both operands of one dot product as the ports take them, the first number lowest."""
        return joined(codes.tolist(), 1), joined(inputs.tolist(), 1)

    def verilog(self, name: str = "unit") -> str:
        """Returns the unit as a module with the ports `code`, `x` and `p`."""
        n, out = self.count, self.output_bits
        return (
            f"module {name}(input [{n - 1}:0] code, input [{n - 1}:0] x, output reg signed [{out - 1}:0] p);\n"
            f"  wire [{n - 1}:0] same = ~(code ^ x);\n  integer i;\n  always @* begin\n    p = -{n};\n"
            f"    for (i = 0; i < {n}; i = i + 1) if (same[i]) p = p + 2;\n  end\nendmodule\n"
        )


@dataclass(frozen=True)
class Centroids:
    """Shared weights: inputs are added up for each shared value, and each sum is multiplied once.

    sum_k c_k sum_{i: code_i = k} x_i, n additions and K multiplications in place of n; with whole numbers it is exactly
    the dot product (Han et al. 2016, arXiv 1602.01528 keep the table; summing first is the other order of the same).

    Attributes:
        bits: of the signed inputs.
        count: n, terms of a dot product.
        values: the K shared values, whole numbers.
        value_bits: of a shared value.

    >>> unit = Centroids(8, 3, (5, -2))
    >>> unit.dot(torch.tensor([0, 1, 0]), torch.tensor([1, 10, 2]))
    tensor(-5)
    """

    bits: int
    count: int
    values: tuple[int, ...]
    value_bits: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 24 or self.count < 1 or not 1 <= len(self.values) <= 256:
            raise DeviceError(f"Centroids: {self.bits} bits, {self.count} terms, {len(self.values)} values")
        half = 1 << (self.value_bits - 1)
        if not all(-half <= value < half for value in self.values):
            raise DeviceError(f"Centroids: values must fit {self.value_bits} bits")

    @property
    def index_bits(self) -> int:
        """Of a weight's code."""
        return max(1, (len(self.values) - 1).bit_length())

    @property
    def sum_bits(self) -> int:
        """Of a centroid's sum."""
        return self.bits + math.ceil(math.log2(self.count))

    @property
    def code_bits(self) -> int:
        """Of all weights of a dot product."""
        return self.count * self.index_bits

    @property
    def input_bits(self) -> int:
        """Of all inputs of a dot product."""
        return self.count * self.bits

    @property
    def output_bits(self) -> int:
        """Of any dot product."""
        return self.sum_bits + self.value_bits + math.ceil(math.log2(len(self.values)))

    @property
    def cost(self) -> Cost:
        """Of the whole dot product: n additions with a selection, K multiplications, K - 1 additions."""
        gates = (FULL_ADDER + MUX) * self.sum_bits * self.count
        gates += FULL_ADDER * self.output_bits * (len(self.values) - 1)
        product = operation("multiply", "int", max(self.sum_bits, self.value_bits))
        energy, area = (len(self.values) * each for each in (product.energy, product.area))
        return Cost(gates * GATE_ENERGY + energy, gates * GATE_AREA + area, estimated=True)

    def dot(self, codes: Tensor, inputs: Tensor) -> Tensor:
        """Returns the dot products, int64, over the last axis, of codes and inputs that broadcast.

        Raises:
            DeviceError: another length, codes of no value, or inputs that don't fit.
        """
        if codes.shape[-1] != self.count or inputs.shape[-1] != self.count:
            raise DeviceError(f"Centroids: codes and inputs must have {self.count} numbers along the last axis")
        if bool(((codes < 0) | (codes >= len(self.values))).any()):
            raise DeviceError(f"Centroids: codes must lie in 0 .. {len(self.values) - 1}")
        half = 1 << (self.bits - 1)
        if bool(((inputs < -half) | (inputs >= half)).any()):
            raise DeviceError(f"Centroids: inputs must lie in {-half} .. {half - 1}")
        total = torch.zeros((), dtype=torch.int64)
        for index, value in enumerate(self.values):
            total = total + value * torch.where(codes == index, inputs.long(), 0).sum(-1)
        return total

    def words(self, codes: Tensor, inputs: Tensor) -> tuple[int, int]:
        """Both operands of one dot product as the ports take them, the first number lowest."""
        return joined(codes.tolist(), self.index_bits), joined(inputs.tolist(), self.bits)

    def verilog(self, name: str = "unit") -> str:
        """Returns the unit as a module with the ports `code`, `x` and `p`."""
        width, wide, out, many = self.index_bits, self.sum_bits, self.output_bits, len(self.values)
        sums = " + ".join(f"$signed({_constant(value, out)}) * wide{k}" for k, value in enumerate(self.values))
        widened = "".join(f"  wire signed [{out - 1}:0] wide{k} = sums[{k}];\n" for k in range(many))
        return (
            f"module {name}(input [{self.code_bits - 1}:0] code, input [{self.input_bits - 1}:0] x,\n"
            f"    output signed [{out - 1}:0] p);\n"
            f"  reg signed [{wide - 1}:0] sums [0:{many - 1}];\n  integer i;\n  always @(code or x) begin\n"
            f"    for (i = 0; i < {many}; i = i + 1) sums[i] = 0;\n"
            f"    for (i = 0; i < {self.count}; i = i + 1)\n"
            f"      sums[code[i*{width} +: {width}]] = sums[code[i*{width} +: {width}]]\n"
            f"        + $signed(x[i*{self.bits} +: {self.bits}]);\n  end\n{widened}  assign p = {sums};\nendmodule\n"
        )


def _constant(value: int, bits: int) -> str:
    return f"{bits}'d{value % (1 << bits)}"


def joined(numbers: list[int], bits: int) -> int:
    """Returns numbers side by side in one word, the first lowest, in two's complement.

    >>> joined([1, -1], 4)
    241
    """
    word = 0
    for place, number in enumerate(numbers):
        word |= (number % (1 << bits)) << (place * bits)
    return word
