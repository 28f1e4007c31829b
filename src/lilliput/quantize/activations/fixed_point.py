"""Dynamic fixed point: integers with one power-of-two scale for what goes into a layer (Ristretto)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.activations import number
from lilliput.core.checks import check_range
from lilliput.core.method import ActivationQuantizer
from lilliput.observe.ranges import ends
from lilliput.solve.rounding import Rounding, ceil_log2, rounded

NAME = "quantize/activations/fixed_point"
SMALLEST = 126


@dataclass(frozen=True)
class FixedPoint(ActivationQuantizer):
    """x -> code 2^-fl, codes of `bits` bits in two's complement, fl = bits - il and il = ceil(log2 max|x|).

    Ristretto (Gysel, Motamedi and Ghiasi 2016, arXiv 1604.03168). il, the bits before the point, counts the sign and is
    one less than for weights: what is beyond half of the range saturates, on purpose. Unsigned codes 0 .. 2^bits - 1
    hold all of it. Clipped, then rounded half away from zero. The gradient passes where x isn't clipped.

    Attributes:
        bits: of a code, 1 to 16.
        signed: two's complement, or codes from 0 on.
        wide: il is one more, as for weights: nothing saturates.
        stochastic: while training, round at random to either neighbour, so that the mean is x.

    >>> fixed = FixedPoint(bits=8)
    >>> fixed.forward(torch.tensor([0.3, -0.9, 0.004]), {"fraction": 8})
    tensor([ 0.3008, -0.5000,  0.0039])
    """

    bits: int = 8
    signed: bool = True
    wide: bool = False
    stochastic: bool = False

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 1, 16)

    @property
    def needs(self) -> frozenset[str]:
        """The range."""
        return frozenset({"range"})

    @property
    def levels(self) -> int:
        """2^bits."""
        return int(2**self.bits)

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    def observe(self, stats: Any) -> dict[str, float]:
        """Returns `fraction`, the bits behind the point; may be negative, or more than `bits`.

        Raises:
            MethodError: nothing was calibrated, or only zeros.
        """
        low, high = ends(stats, NAME)
        whole = ceil_log2(max(abs(low), abs(high))) + self.wide
        return {"fraction": min(max(self.bits - whole, -SMALLEST), SMALLEST)}

    def forward(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns x on its levels."""
        return self._rounded(x, numbers, "half_away")

    def draw(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns x on its levels, rounded at random if asked for."""
        return self._rounded(x, numbers, "stochastic" if self.stochastic else "half_away")

    def _rounded(self, x: Tensor, numbers: Mapping[str, float], how: Rounding) -> Tensor:
        step = 2.0 ** -min(max(int(number(numbers, "fraction", NAME)), -SMALLEST), SMALLEST)
        low, high = self.codes
        work = x.to(torch.float32) if x.dtype in {torch.float16, torch.bfloat16} else x
        # Clipped once more: random rounding may step over the end.
        codes = torch.clamp(rounded(torch.clamp(work / step, low, high), how), low, high)
        return (codes * step).to(x.dtype)

    def gradient(
        self, x: Tensor, numbers: Mapping[str, float], grad: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Returns the gradient where x isn't clipped, else 0."""
        step, (low, high) = 2.0 ** -numbers["fraction"], self.codes
        return grad * ((x >= low * step) & (x <= high * step)), {}

    def describe(self, numbers: Mapping[str, float]) -> str:
        """Returns the bits, before and behind the point."""
        fraction = int(numbers.get("fraction", 0))
        return f"{self.bits} bits{'' if self.signed else ' unsigned'}, {fraction} behind the point"

    @classmethod
    def choices(cls) -> tuple[ActivationQuantizer, ...]:
        """4, 8 and 16 bits."""
        return tuple(cls(bits=bits) for bits in (4, 8, 16))
