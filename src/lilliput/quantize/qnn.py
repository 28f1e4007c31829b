"""QNN's weights: linear levels on [-1, 1], or powers of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.uniform import Uniform, on_grid
from lilliput.solve.rounding import exponent_near

NAME = "quantize/qnn"


@dataclass(frozen=True)
class Qnn(WeightMethod):
    """Linear: clip(round(w / d) d, -1, 1 - d) with d = 2^(1-bits). Log: clip(AP2(w), -1, 1), powers of two.

    Hubara et al. 2016 (arXiv 1609.07061). AP2(w) = sign(w) 2^round(log2 |w|), with 2^(bits-1) - 1 powers from 1
    downwards; what lies below sqrt(1/2) of the least becomes 0. As printed the paper's linear step is 2^(bits-1), which
    can't be meant. The gradient goes straight through; latent weights are clipped to -1 .. 1 by `advance`.

    Attributes:
        bits: 2 to 8, for `log` 2 to 6.
        spacing: `"linear"` or `"log"`.

    >>> w = torch.tensor([0.9, -0.3, 0.1])
    >>> Qnn.unpack(Qnn(bits=3).pack(w)), Qnn.unpack(Qnn(bits=3, spacing="log").pack(w))
    (tensor([ 0.7500, -0.2500,  0.0000]), tensor([ 1.0000, -0.2500,  0.0000]))
    """

    bits: int = 4
    spacing: Literal["linear", "log"] = "linear"

    keeps_zeros = True
    searched = False

    def __post_init__(self) -> None:
        if self.spacing not in {"linear", "log"}:
            raise MethodError(f"{NAME}: no spacing '{self.spacing}'; there are linear, log")
        check_range(NAME, "bits", self.bits, 2, 8 if self.spacing == "linear" else 6)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`: with one scale, or for `log` with a table of levels.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        work = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        half = 2 ** (self.bits - 1)
        if self.spacing == "linear":
            codes = torch.round(work * half).clamp(-half, half - 1)
            return on_grid(weight, codes, work.new_full((1,), 1 / half))
        count = half - 1
        rank = (count + exponent_near(work, "log")).clamp(0, count)
        codes = rank * torch.sign(work).long()
        low, high = (int(end) for end in codes.aminmax()) if codes.numel() else (0, 0)
        steps = torch.arange(min(low, 0), max(high, 0) + 1, device=work.device)
        levels = torch.ldexp(torch.sign(steps).to(work.dtype), steps.abs() - count)
        return on_grid(weight, codes, work.new_ones(1)).with_parts(levels=levels)

    def confined(self, weight: Tensor) -> Tensor:
        """Returns the weight clipped to -1 .. 1."""
        return weight.clamp(-1, 1)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """4, 6 and 8 bits, linear."""
        return tuple(cls(bits=bits) for bits in (4, 6, 8))
