"""Minifloats: floats of 6 to 16 bits without infinity or NaN, whose exponent's width follows the largest weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.solve.rounding import rounded

NAME = "quantize/minifloat"


@dataclass(frozen=True)
class Minifloat(WeightMethod):
    """value = (-1)^s 2^(E - bias) (1 + M / 2^m) with bias 2^(e-1) - 1; E = 0 means zero, every other E is a number.

    Ristretto's minifloat (Gysel 2016, arXiv 1605.06402): e = max(4, ceil(log2(log2 max|w| - 1) + 1)) bits of exponent,
    m = bits - 1 - e of mantissa, no infinity, no NaN, what would be subnormal becomes zero. Rounded half away from
    zero; what is larger than all saturates, also where only the rounding up of the mantissa would make it so.

    Attributes:
        bits: of a number with its sign, 6 to 16.
        exponent: bits of the exponent, 2 to 8; 0 for the rule above.

    >>> packed = Minifloat(bits=8).pack(torch.tensor([1.0, -0.7, 0.001, 0.0]))
    >>> Minifloat.unpack(packed)
    tensor([ 1.0000, -0.6875,  0.0000,  0.0000])
    """

    bits: int = 8
    exponent: int = 0

    keeps_zeros = True
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 6, 16)
        check_range(NAME, "exponent", self.exponent, 0, 8)
        if self.exponent == 1 or self.bits - 1 - self.exponent < 0:
            raise MethodError(f"{NAME}: no format of {self.bits} bits has {self.exponent} bits of exponent")

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `codes`: +-(E 2^m + M) with the sign of the weight, int8 up to 8 bits, else int16.

        Raises:
            MethodError: if a weight isn't finite, or its magnitude needs so wide an exponent that no bit is left.
        """
        check_weight(weight, NAME)
        width = self.exponent or exponent_bits(weight)
        mantissa = self.bits - 1 - width
        if mantissa < 0:
            raise MethodError(f"{NAME}: {width} bits of exponent don't fit into {self.bits}")
        bias = 2 ** (width - 1) - 1
        top = min(2**width - 1, bias + math.frexp(torch.finfo(weight.dtype).max)[1] - 1)
        fraction, power = torch.frexp(weight.double().abs())
        stored = power.long() - 1 + bias
        codes = (stored * 2**mantissa + rounded((2 * fraction - 1) * 2**mantissa, "half_away").long()).clamp(
            max=(top + 1) * 2**mantissa - 1
        )
        codes = torch.where((stored < 1) | (weight == 0), 0, codes) * torch.sign(weight).long()
        held = codes.to(torch.int8 if self.bits <= 8 else torch.int16)
        settings = {"exponent": width, "mantissa": mantissa}
        return Packed(NAME, tuple(weight.shape), weight.dtype, {"codes": held}, settings)

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the numbers; each is exact in float64."""
        codes = packed.tensor("codes", shape=packed.shape, integer=True).long()
        width, mantissa = packed.settings.get("exponent"), packed.settings.get("mantissa")
        if type(width) is not int or type(mantissa) is not int or not (2 <= width <= 8 and 0 <= mantissa <= 13):
            raise MethodError(f"{NAME}: exponent = {width}, mantissa = {mantissa}")
        magnitude = codes.abs()
        stored = magnitude >> mantissa
        if codes.numel() and not 0 <= int(stored.min()) <= int(stored.max()) < 2**width:
            raise MethodError(f"{NAME}: codes are wider than {width} + {mantissa} bits")
        value = 1 + (magnitude & (2**mantissa - 1)).double() / 2**mantissa
        scaled = torch.ldexp(value, stored - (2 ** (width - 1) - 1)) * torch.sign(codes)
        return torch.where(stored > 0, scaled, 0.0).to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes from the codes."""
        cut = packed.with_parts(codes=take(packed.parts["codes"], axis, kept))
        return replace(cut, shape=cut_shape(packed, axis, kept))

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """8, 12 and 16 bits."""
        return tuple(cls(bits=bits) for bits in (8, 12, 16))


def exponent_bits(weight: Tensor) -> int:
    """Returns max(4, ceil(log2(log2 max|w| - 1) + 1)).

    >>> exponent_bits(torch.tensor([1.0])), exponent_bits(torch.tensor([1000.0])), exponent_bits(torch.tensor([1e20]))
    (4, 5, 8)
    """
    largest = float(weight.detach().double().abs().max()) if weight.numel() else 0.0
    power = math.log2(largest) - 1 if largest > 0 else 0.0
    return min(max(4, math.ceil(math.log2(power) + 1)), 8) if power > 0 else 4
