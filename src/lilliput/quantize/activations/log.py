"""Logarithmic activations: signed powers of two (QNN)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.activations import number
from lilliput.core.checks import check_range
from lilliput.core.method import ActivationQuantizer
from lilliput.observe.ranges import ends

NAME = "quantize/activations/log"


@dataclass(frozen=True)
class Log(ActivationQuantizer):
    """x -> sign(x) 2^round(log2 |x|), clipped to the powers that the bits allow; what is below them becomes 0.

    LogQuant of Hubara et al. 2016 (arXiv 1609.07061). Signed: 2^(bits-1) - 1 powers from 2^top downwards, either
    sign, and 0. Unsigned: 2^bits - 1 powers and 0; what is negative becomes 0. A power becomes the next at sqrt(2)
    times itself. The gradient passes where nothing is clipped: |x| < sqrt(2) 2^top.

    Attributes:
        bits: 2 to 6.
        signed: both signs, or none.
        calibrated: top is that of the largest magnitude that calibration saw, else `top`.
        top: exponent of the largest power, for activations within -1 .. 1 it is 0.

    >>> log = Log(bits=3)
    >>> log.forward(torch.tensor([0.9, -0.3, 0.1, 7.0]), log.observe(None))
    tensor([ 1.0000, -0.2500,  0.0000,  1.0000])
    """

    bits: int = 4
    signed: bool = True
    calibrated: bool = False
    top: int = 0

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 2, 6)
        check_range(NAME, "top", self.top, -60, 60)

    @property
    def needs(self) -> frozenset[str]:
        """The range, if it is calibrated."""
        return frozenset({"range"} if self.calibrated else ())

    @property
    def powers(self) -> int:
        """How many powers of two there are."""
        return int(2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1)

    @property
    def levels(self) -> int:
        """Powers of either sign, and 0."""
        return (2 if self.signed else 1) * self.powers + 1

    def observe(self, stats: Any) -> dict[str, float]:
        """Returns `top`, the exponent of the largest power.

        Raises:
            MethodError: nothing was calibrated, or only zeros.
        """
        if not self.calibrated:
            return {"top": self.top}
        low, high = ends(stats, NAME)
        largest = max(abs(low), high) if self.signed else max(high, 2.0**-60)
        return {"top": min(max(round(math.log2(largest)), -60), 60)}

    def forward(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns x on its levels."""
        top = int(number(numbers, "top", NAME))
        lowest = top - self.powers + 1
        # In float64 no float32 is so near to a boundary, an irrational number, that the logarithm's rounding matters.
        work = (x if self.signed else torch.clamp_min(x, 0)).to(torch.float64)
        exponent = torch.round(torch.log2(work.abs()))
        power = torch.exp2(torch.clamp(exponent, lowest, top))
        return (torch.sign(work) * torch.where(exponent >= lowest, power, 0)).to(x.dtype)

    def gradient(
        self, x: Tensor, numbers: Mapping[str, float], grad: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Returns the gradient where x isn't clipped, else 0."""
        inside = x.abs() < 2.0 ** (numbers["top"] + 0.5)
        return grad * (inside if self.signed else inside & (x >= 0)), {}

    def describe(self, numbers: Mapping[str, float]) -> str:
        """Returns bits and the largest power."""
        return f"{self.bits} bits{'' if self.signed else ' unsigned'}, up to 2^{numbers.get('top', 0)}"

    @classmethod
    def choices(cls) -> tuple[ActivationQuantizer, ...]:
        """2 to 4 bits, calibrated."""
        return tuple(cls(bits=bits, calibrated=True) for bits in (2, 3, 4))
