"""Units that take a multiplier's place, bit for bit, with what they cost, and as Verilog."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.errors import DeviceError
from lilliput.hardware.energy import Cost, operation

# Gates of a standard cell library, in NAND gates; a full adder's share of the 45 nm adder gives energy and area of one.
FULL_ADDER, HALF_ADDER, XOR, AND, MUX = 9.0, 4.0, 2.5, 1.5, 3.0
MEMORY_BIT = 0.25
GATE_ENERGY = operation("add", "int", 8).energy / 8 / FULL_ADDER
GATE_AREA = operation("add", "int", 8).area / 8 / FULL_ADDER


@dataclass(frozen=True)
class Unit(ABC):
    """A unit that gives a product of a coded weight and a whole number of `bits` bits.

    Attributes:
        bits: of the input.
    """

    bits: int

    signed = True
    """Whether the input is; else it is 0 .. 2^bits - 1."""
    scale_bits = 0
    """Products come out times 2 to this, so that all are whole."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 24:
            raise DeviceError(f"{type(self).__name__}: bits must be 1 to 24, it is {self.bits}")

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits of a weight's code."""

    @property
    @abstractmethod
    def output_bits(self) -> int:
        """Bits of the signed product."""

    @property
    @abstractmethod
    def gates(self) -> float:
        """NAND gates, about."""

    @abstractmethod
    def encode(self, values: Tensor) -> Tensor:
        """Returns the codes of weights, int64; raises DeviceError for one that the unit doesn't know."""

    @abstractmethod
    def product(self, codes: Tensor, inputs: Tensor) -> Tensor:
        """Returns the products, int64, of codes and inputs that broadcast; by the operations that the unit has."""

    @abstractmethod
    def body(self) -> str:
        """Verilog between the ports, of `code` and `x`, and `endmodule`; it drives `p`."""

    @property
    def cost(self) -> Cost:
        """Energy in pJ and area in square micrometres of a product, estimated from its gates."""
        return Cost(self.gates * GATE_ENERGY, self.gates * GATE_AREA, estimated=True)

    @property
    def saving(self) -> float:
        """How many times less energy than a multiplier of the input's width."""
        return operation("multiply", "int", max(self.bits, 2)).energy / self.cost.energy

    def busy(self, codes: Tensor) -> int:
        """How many products of these codes take energy at all."""
        return codes.numel()

    def check(self, codes: Tensor, inputs: Tensor) -> None:
        """Raises DeviceError unless the codes and inputs fit the unit's ports."""
        low, high = (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.signed else (0, (1 << self.bits) - 1)
        for name, tensor, least, most in (
            ("inputs", inputs, low, high),
            ("codes", codes, 0, (1 << self.code_bits) - 1),
        ):
            if tensor.numel() and not (least <= int(tensor.min()) and int(tensor.max()) <= most):
                raise DeviceError(f"{type(self).__name__}: {name} must lie in {least} .. {most}")

    def accumulator_bits(self, terms: int) -> int:
        """Bits of a register that holds any sum of so many products."""
        return self.output_bits + math.ceil(math.log2(max(terms, 1)))

    def linear(self, codes: Tensor, inputs: Tensor) -> Tensor:
        """Runs a linear layer through the unit.

        Args:
            codes: (K, n).
            inputs: (N, n), whole numbers.

        Returns:
            (N, K), int64: what the layer gives, times 2 ^ `scale_bits`.
        """
        return torch.stack([self.product(row, inputs).sum(-1) for row in codes], -1)

    def verilog(self, name: str = "unit") -> str:
        """Returns the unit as a module with the ports `code`, `x` and `p`."""
        kind = "signed " if self.signed else ""
        return (
            f"module {name}(input [{self.code_bits - 1}:0] code, input {kind}[{self.bits - 1}:0] x,\n"
            f"    output signed [{self.output_bits - 1}:0] p);\n{self.body()}endmodule\n"
        )

    def widened(self) -> str:
        """Verilog for the input, sign-extended to the output's width."""
        return f"  wire signed [{self.output_bits - 1}:0] wide = x;\n"


def known(values: Tensor, fits: Tensor, what: str) -> None:
    """Raises DeviceError, with the first of them, if some values don't fit."""
    if not bool(fits.all()):
        raise DeviceError(f"weights must be {what}; one is {values[~fits].flatten()[0].item():g}")


@dataclass(frozen=True)
class SignFlip(Unit):
    """Weights -1 and 1: p = (x ^ m) - m with m = -1 where the weight is negative (BinaryConnect, BWN).

    The product of -1 and the least input takes one bit more than the input.

    >>> unit = SignFlip(8)
    >>> unit.product(unit.encode(torch.tensor([-1, 1])), torch.tensor([-128, -128])), unit.output_bits
    (tensor([ 128, -128]), 9)
    """

    code_bits = 1

    @property
    def output_bits(self) -> int:
        """One more than the input's."""
        return self.bits + 1

    @property
    def gates(self) -> float:
        """An exclusive or for each bit, and the carry that adds 1."""
        return (XOR + HALF_ADDER) * self.output_bits

    def encode(self, values: Tensor) -> Tensor:
        """1 for -1, 0 for 1."""
        known(values, values.abs() == 1, "-1 or 1")
        return (values < 0).long()

    def product(self, codes: Tensor, inputs: Tensor) -> Tensor:
        """Returns (x ^ m) - m."""
        self.check(codes, inputs)
        mask = -codes.long()
        return (inputs.long() ^ mask) - mask

    def body(self) -> str:
        """Verilog."""
        width = self.output_bits
        return self.widened() + f"  wire [{width - 1}:0] m = {{{width}{{code[0]}}}};\n  assign p = (wide ^ m) - m;\n"


@dataclass(frozen=True)
class Skip(Unit):
    """Weights -1, 0 and 1 as {sign, not zero}; where they are zero nothing toggles (TWN, TTQ).

    >>> unit = Skip(8)
    >>> unit.encode(torch.tensor([-1, 0, 1])), unit.busy(torch.tensor([3, 0, 1]))
    (tensor([3, 0, 1]), 2)
    """

    code_bits = 2

    @property
    def output_bits(self) -> int:
        """One more than the input's."""
        return self.bits + 1

    @property
    def gates(self) -> float:
        """A sign flip with a gate for each bit."""
        return (XOR + HALF_ADDER + AND) * self.output_bits

    def encode(self, values: Tensor) -> Tensor:
        """3, 0, 1 for -1, 0, 1."""
        known(values, (values == 0) | (values.abs() == 1), "-1, 0 or 1")
        return (values != 0).long() + 2 * (values < 0).long()

    def product(self, codes: Tensor, inputs: Tensor) -> Tensor:
        """Returns the flipped or zeroed inputs; raises DeviceError for the code 2, minus nothing."""
        self.check(codes, inputs)
        if bool((codes == 2).any()):
            raise DeviceError("Skip: the code 2, a sign without a magnitude, doesn't exist")
        mask = -(codes.long() >> 1)
        return ((inputs.long() ^ mask) - mask) * (codes.long() & 1)

    def busy(self, codes: Tensor) -> int:
        """Those that aren't zero."""
        return int(torch.count_nonzero(codes))

    def body(self) -> str:
        """Verilog."""
        width = self.output_bits
        return (
            self.widened()
            + f"  wire [{width - 1}:0] m = {{{width}{{code[1]}}}};\n"
            + f"  assign p = code[0] ? (wide ^ m) - m : {width}'d0;\n"
        )


@dataclass(frozen=True)
class Shift(Unit):
    """Weights 0 and +-2^e, low <= e <= high: {0, +-1, +-2, +-4} or INQ's; codes {sign, e - low + 1 or 0}.

    Exactly: x << (e - low), and the sum is scaled back by 2^low once. Or `truncating`: x >> -e for each product, as
    cheap shifters do, which rounds down and makes sums half a unit too small for each.

    Attributes:
        low: smallest exponent.
        high: largest.
        truncating: shift right product by product.

    >>> unit = Shift(8, -2, 0)
    >>> unit.product(unit.encode(torch.tensor([0.5, -1.0, 0.0])), torch.tensor(5)), unit.scale_bits
    (tensor([ 10, -20,   0]), 2)
    >>> rough = Shift(8, -2, 0, truncating=True)
    >>> rough.product(rough.encode(torch.tensor(0.5)), torch.tensor([5, -5]))
    tensor([ 2, -3])
    """

    low: int = -6
    high: int = 0
    truncating: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -24 <= self.low <= self.high <= 24:
            raise DeviceError(f"Shift: exponents {self.low} .. {self.high} must rise and lie in -24 .. 24")

    @property
    def scale_bits(self) -> int:  # type: ignore[override]
        """Guard bits below the unit."""
        return 0 if self.truncating else -self.low

    @property
    def code_bits(self) -> int:
        """Sign, and zero or one of the exponents."""
        return 1 + (self.high - self.low + 1).bit_length()

    @property
    def output_bits(self) -> int:
        """The input's, the furthest shift's, and one for the sign's flip."""
        return self.bits + 1 + (max(self.high, 0) if self.truncating else self.high - self.low)

    @property
    def gates(self) -> float:
        """A barrel shifter, a sign flip and a gate."""
        stages = (self.high - self.low).bit_length()
        return (MUX * stages + XOR + HALF_ADDER + AND) * self.output_bits

    def encode(self, values: Tensor) -> Tensor:
        """Codes of 0 and of powers of two."""
        mantissa, exponent = torch.frexp(values.double())
        below = exponent - 1 - self.low
        fits = (values == 0) | ((mantissa.abs() == 0.5) & (below >= 0) & (below <= self.high - self.low))
        known(values, fits, f"0 or +-2^{self.low} .. 2^{self.high}")
        return torch.where(values == 0, 0, below.long() + 1 + ((values < 0).long() << (self.code_bits - 1)))

    def product(self, codes: Tensor, inputs: Tensor) -> Tensor:
        """Returns the shifted inputs, negated where the code says so."""
        self.check(codes, inputs)
        index = codes.long() & ((1 << self.code_bits - 1) - 1)
        if bool((index > self.high - self.low + 1).any()):
            raise DeviceError(f"Shift: a code beyond the exponent {self.high}")
        far = (index - 1).clamp(min=0) + (self.low if self.truncating else 0)
        moved = torch.where(far >= 0, inputs.long() << far.clamp(min=0), inputs.long() >> (-far).clamp(min=0))
        moved = torch.where(index == 0, 0, moved)
        return torch.where(codes.long() >> (self.code_bits - 1) == 1, -moved, moved)

    def busy(self, codes: Tensor) -> int:
        """Those that aren't zero."""
        return int(torch.count_nonzero(codes))

    def body(self) -> str:
        """Verilog."""
        shift = self.low if self.truncating else 0
        cases = []
        for index in range(1, self.high - self.low + 2):
            far = index - 1 + shift
            moved = f"wide <<< {far}" if far >= 0 else f"wide >>> {-far}"
            cases.append(f"      {index}: s = {moved};\n")
        top = self.code_bits - 1
        return (
            self.widened()
            + f"  reg signed [{self.output_bits - 1}:0] s;\n  always @* begin\n    case (code[{top - 1}:0])\n"
            + "".join(cases)
            + f"      default: s = 0;\n    endcase\n  end\n  assign p = code[{top}] ? -s : s;\n"
        )


@dataclass(frozen=True)
class Table(Unit):
    """DoReFa-Net's products, looked up: weights 2i - (2^b - 1), i < 2^b, unsigned inputs; the scales are taken out.

    Attributes:
        weight_bits: b.

    >>> unit = Table(2, weight_bits=2)
    >>> unit.product(unit.encode(torch.tensor([-3, -1, 1, 3])), torch.tensor(2))
    tensor([-6, -2,  2,  6])
    """

    weight_bits: int = 2

    signed = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_bits < 1 or self.weight_bits + self.bits > 12:
            raise DeviceError(f"Table: {self.weight_bits} + {self.bits} bits; a table has at most 12 together")

    @property
    def code_bits(self) -> int:
        """Those of the weight."""
        return self.weight_bits

    @property
    def output_bits(self) -> int:
        """Of the largest product, with its sign."""
        return self.weight_bits + self.bits + 1

    @property
    def gates(self) -> float:
        """A memory of all products."""
        return MEMORY_BIT * self.output_bits * (1 << (self.weight_bits + self.bits))

    def encode(self, values: Tensor) -> Tensor:
        """Returns i of 2i - (2^b - 1)."""
        most = (1 << self.weight_bits) - 1
        codes = (values.double() + most) / 2
        known(values, (codes == codes.round()) & (codes >= 0) & (codes <= most), f"odd steps in -{most} .. {most}")
        return codes.long()

    def entries(self) -> Tensor:
        """All products, at the place i 2^bits + j; int64."""
        weights = 2 * torch.arange(1 << self.weight_bits) - ((1 << self.weight_bits) - 1)
        return (weights[:, None] * torch.arange(1 << self.bits)).flatten()

    def product(self, codes: Tensor, inputs: Tensor) -> Tensor:
        """Returns what the table holds."""
        self.check(codes, inputs)
        return self.entries()[(codes.long() << self.bits) | inputs.long()]

    def body(self) -> str:
        """Verilog."""
        lines = "".join(f"      {place}: s = {value};\n" for place, value in enumerate(self.entries().tolist()))
        return (
            f"  reg signed [{self.output_bits - 1}:0] s;\n  always @* begin\n    case ({{code, x}})\n{lines}"
            "      default: s = 0;\n    endcase\n  end\n  assign p = s;\n"
        )


@dataclass(frozen=True)
class ShiftAdd(Unit):
    """ShiftCNN: a weight is the sum of `terms` signed powers of two, each picked from a codebook of its own.

    Codebook n holds 0, +-2^-n, +-2^-n-1, ... (n from 0); of each input the shifted copies are made once for all
    weights, so that a weight costs but selections and additions (Gudovskiy & Rigazio 2017, arXiv 1706.02393).

    Attributes:
        terms: 1 to 4.
        word: bits of a term's code, 2 to 5.

    >>> unit = ShiftAdd(8, terms=2)
    >>> unit.product(unit.encode(torch.tensor(0.75)), torch.tensor(3)) / 2**unit.scale_bits
    tensor(2.2500)
    """

    terms: int = 2
    word: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (1 <= self.terms <= 4 and 2 <= self.word <= 5):
            raise DeviceError(f"ShiftAdd: {self.terms} terms of {self.word} bits; give 1 to 4 of 2 to 5")

    @property
    def powers(self) -> int:
        """Of a codebook."""
        return int((1 << self.word - 1) - 1)

    @property
    def scale_bits(self) -> int:  # type: ignore[override]
        """The deepest shift."""
        return self.terms - 1 + self.powers - 1

    @property
    def code_bits(self) -> int:
        """Of all terms; the first lies lowest."""
        return self.terms * self.word

    @property
    def output_bits(self) -> int:
        """Input, deepest shift, sign, and what the additions need."""
        return self.bits + self.scale_bits + 1 + math.ceil(math.log2(self.terms))

    @property
    def gates(self) -> float:
        """For each term a selection, a sign flip, and an addition."""
        return (MUX * self.powers + XOR + AND + FULL_ADDER) * self.output_bits * self.terms

    def encode(self, values: Tensor) -> Tensor:
        """Codes by the paper's greedy rule, nearest power first; the weights must be sums that it finds exactly."""
        rest, codes = values.double(), torch.zeros(values.shape, dtype=torch.int64)
        for term in range(self.terms):
            mantissa, exponent = torch.frexp(rest)
            # m 2^e with m in [0.5, 1): above 0.75 the next power is nearer.
            index = -(exponent - 1 + (mantissa.abs() > 0.75).long()) - term + 1
            index = torch.where((rest != 0) & (index >= 1) & (index <= self.powers), index, 0)
            rest = rest - torch.where(index > 0, torch.sign(rest) * torch.exp2(1.0 - term - index), 0.0)
            negative = (mantissa < 0).long() * (index > 0).long()
            codes |= (index.long() | (negative << self.word - 1)) << (term * self.word)
        known(values, rest == 0, f"sums of {self.terms} powers of two from the codebooks")
        return codes

    def product(self, codes: Tensor, inputs: Tensor) -> Tensor:
        """Returns the sum of the terms' shifted inputs."""
        self.check(codes, inputs)
        total = torch.zeros_like(codes.long() + inputs.long())
        for term in range(self.terms):
            code = (codes.long() >> (term * self.word)) & ((1 << self.word) - 1)
            index = code & self.powers
            moved = inputs.long() << (self.scale_bits - term - (index - 1)).clamp(min=0)
            total = total + torch.where(index == 0, 0, torch.where(code > self.powers, -moved, moved))
        return total

    def body(self) -> str:
        """Verilog."""
        width = self.output_bits
        lines = [self.widened()]
        for term in range(self.terms):
            low = term * self.word
            lines.append(f"  reg signed [{width - 1}:0] s{term};\n  always @* begin\n")
            lines.append(f"    case (code[{low + self.word - 2}:{low}])\n")
            for index in range(1, self.powers + 1):
                lines.append(f"      {index}: s{term} = wide <<< {self.scale_bits - term - index + 1};\n")
            lines.append(f"      default: s{term} = 0;\n    endcase\n")
            lines.append(f"    if (code[{low + self.word - 1}]) s{term} = -s{term};\n  end\n")
        lines.append("  assign p = " + " + ".join(f"s{term}" for term in range(self.terms)) + ";\n")
        return "".join(lines)
