"""ShiftCNN: each weight a sum of a few signed powers of two, so that a multiplication is a few shifts and adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.power_of_two import PowerOfTwo, powers, shifted
from lilliput.solve.rounding import exponent_near

NAME = "quantize/shift"


@dataclass(frozen=True)
class Shift(WeightMethod):
    """w / max|w| ~ sum_{n=1..N} C_n[idx_n], C_n = {0, +-2^(1-n), +-2^-n, ...} of 2^bits - 1 words, chosen greedily.

    ShiftCNN (Gudovskiy and Rigazio 2017, arXiv 1706.02393). The residual goes from each codebook to the next, nearest
    power first (linear midpoint 1.5 2^e); below the codebook's least power it becomes 0. Each stage leaves at most a
    third of what it was given, unless that underflows. N `bits`-bit indices are stored a weight.

    Attributes:
        terms: N, the number of codebooks, 1 to 4.
        bits: of an index, 2 to 5.
        codebooks: `"paper"`, or `"survey"`, as one survey prints them: without each codebook's first exponent, which
            leaves 13 words of 15 at 4 bits and halves what can be represented.

    >>> packed = Shift(terms=2).pack(torch.tensor([0.9, -0.74, 0.0]))
    >>> [round(v, 5) for v in Shift.unpack(packed).tolist()]
    [0.9, -0.7875, 0.0]
    """

    terms: int = 2
    bits: int = 4
    codebooks: Literal["paper", "survey"] = "paper"

    into = ("scale",)
    keeps_zeros = True
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "terms", self.terms, 1, 4)
        check_range(NAME, "bits", self.bits, 2, 5)
        if self.codebooks not in {"paper", "survey"}:
            raise MethodError(f"{NAME}: no codebooks '{self.codebooks}'; there are paper, survey")
        if self.exponents < 1:
            raise MethodError(f"{NAME}: {self.bits}-bit codebooks are empty without their first exponents")

    @property
    def exponents(self) -> int:
        """How many powers of two each codebook holds."""
        words: int = 2 ** (self.bits - 1) - 1
        return words - (self.codebooks == "survey")

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/power_of_two` with `terms` planes of codes and `scale` = max|w|.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        largest = weight.abs().max() if weight.numel() else weight.new_zeros(())
        scale = largest.reshape(1).to(torch.promote_types(weight.dtype, torch.float32))
        rest = weight.double() / (float(scale) or 1.0)
        top = 0 if self.codebooks == "paper" else -1
        planes = []
        for term in range(self.terms):
            below = (top - term - exponent_near(rest, "linear")).clamp(min=0)
            plane = torch.where(below < self.exponents, (below + 1) * torch.sign(rest).long(), 0)
            rest = rest - powers(plane, top - term)
            planes.append(plane)
        return shifted(weight, torch.stack(planes), top, scale)

    unpack = staticmethod(PowerOfTwo.unpack)
    take = staticmethod(PowerOfTwo.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """One to three terms of 4 bits."""
        return tuple(cls(terms=terms) for terms in (1, 2, 3))
