"""Powers of two: a sign and an exponent a weight, so that a multiplication is a shift."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.solve.rounding import exponent_near, signs

NAME = "quantize/power_of_two"
EXPONENTS = 1000
"""Bound on the largest exponent of a packed weight; float64 reaches further."""


@dataclass(frozen=True)
class PowerOfTwo(WeightMethod):
    """value = +-2^e with e = round(log2 |w|), clamped to top - 2^(bits-1) + 1 .. top.

    Ristretto's power-of-two weights (Gysel 2016, arXiv 1605.06402): 4 bits are a sign and exponents -8 .. -1. The
    switch from 2^e to 2^(e+1) is at sqrt(2) 2^e. There is no code for zero: it becomes +2^lowest.

    Attributes:
        bits: 2 to 7, the sign counted.
        top: the largest exponent, that all larger weights get.

    >>> packed = PowerOfTwo().pack(torch.tensor([0.9, -0.3, 0.0]))
    >>> packed.parts["codes"].tolist(), PowerOfTwo.unpack(packed).tolist()
    ([[1, -2, 8]], [0.5, -0.25, 0.00390625])
    """

    bits: int = 4
    top: int = -1

    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 2, 7)
        check_range(NAME, "top", self.top, -60, 14)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `codes`, int8 of shape 1 x the weight's: +-c means +-2^(top + 1 - c).

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        below = (self.top - exponent_near(weight, "log")).clamp(0, 2 ** (self.bits - 1) - 1)
        codes = (below + 1) * signs(weight).long()
        return shifted(weight, codes[None], self.top)

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns scale * sum_t sign(c_t) 2^(top - t + 1 - |c_t|), computed in float64."""
        codes = packed.tensor("codes", integer=True)
        top = packed.settings.get("top")
        if codes.ndim < 1 or tuple(codes.shape[1:]) != packed.shape or codes.dtype != torch.int8:
            raise MethodError(f"{NAME}: codes of {codes.dtype} {tuple(codes.shape)} for {packed.shape}")
        if type(top) is not int or abs(top) > EXPONENTS or not 1 <= len(codes) <= 8:
            raise MethodError(f"{NAME}: top = {top}, {len(codes)} terms")
        value = torch.zeros(packed.shape, dtype=torch.float64, device=codes.device)
        for term, plane in enumerate(codes):
            value = value + powers(plane, top - term)
        if "scale" in packed.parts:
            value = value * packed.tensor("scale", shape=(1,), integer=False).double()[0]
        return value.to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes from the codes."""
        cut = packed.with_parts(codes=take(packed.parts["codes"], axis + 1, kept))
        return replace(cut, shape=cut_shape(packed, axis, kept))

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """3 to 5 bits."""
        return tuple(cls(bits=bits) for bits in (3, 4, 5))


def shifted(weight: Tensor, codes: Tensor, top: int, scale: Tensor | None = None) -> Packed:
    """Returns the packed form of sums of powers of two.

    Args:
        weight: what was packed.
        codes: terms x the weight's shape; +-c in term t, counted from 0, means +-2^(top - t + 1 - c), and 0 zero.
        top: exponent of code 1 in the first term.
        scale: a factor for all, of shape (1,).
    """
    parts = {"codes": codes.to(torch.int8)} | ({} if scale is None else {"scale": scale})
    return Packed(NAME, tuple(weight.shape), weight.dtype, parts, {"top": top})


def powers(codes: Tensor, top: int) -> Tensor:
    """Returns sign(c) 2^(top + 1 - |c|) in float64; 0 where c is 0.

    >>> powers(torch.tensor([1, -2, 0]), 3)
    tensor([ 8., -4.,  0.], dtype=torch.float64)
    """
    wide = codes.long()
    return torch.ldexp(torch.sign(wide).double(), top + 1 - wide.abs())


def codes_near(values: Tensor, top: int, count: int) -> Tensor:
    """Returns the code of the nearest of 0 and +-2^(top - count + 1) .. 2^top, int64; at a midpoint the larger.

    Args:
        values: any shape.
        top: the largest exponent.
        count: how many exponents there are.
    """
    wide = values.double()
    below = (top - exponent_near(wide, "linear")).clamp(0, count - 1)
    # Under the lowest power the midpoint to zero is half of it, not three quarters.
    return torch.where(wide.abs() < 2.0 ** (top - count), 0, (below + 1) * torch.sign(wide).long())
