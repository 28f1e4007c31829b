"""Flexpoint: 16-bit integers with one exponent a tensor, which for tensors yet to come is estimated."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.uniform import Uniform, on_grid
from lilliput.solve.rounding import ceil_log2

NAME = "quantize/flexpoint"


@dataclass(frozen=True)
class Flexpoint(WeightMethod):
    """value = m 2^-e, m in two's complement of `bits`, e one for the tensor: the finest in which max|m| fits.

    Koster et al. 2017 (arXiv 1711.02213) train in flex16+5. Weights are at hand when they are packed, so that their
    exponent needs no estimate; `Autoflex` is the paper's estimate for tensors that are still to be computed.

    Attributes:
        bits: of a mantissa, 2 to 16.

    >>> packed = Flexpoint().pack(torch.tensor([1.0, -0.3]))
    >>> packed.parts["codes"].tolist(), packed.parts["scale"].item() == 2.0**-14
    ([16384, -4915], True)
    """

    bits: int = 16

    keeps_zeros = True
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 2, 16)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform` with one scale, a power of two.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        top = 2 ** (self.bits - 1) - 1
        work = weight.detach().double()
        largest = float(work.abs().max()) if work.numel() else 0.0
        power = max(ceil_log2(largest) - self.bits + 1, -126) if largest else 0
        if round(largest * 2.0**-power) > top:
            power += 1
        codes = torch.round(work * 2.0**-power)
        scale = weight.new_full((1,), 2.0**power, dtype=torch.promote_types(weight.dtype, torch.float32))
        return on_grid(weight, _within(codes, 2.0**power, weight.dtype), scale)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """8, 12 and 16 bits."""
        return tuple(cls(bits=bits) for bits in (8, 12, 16))


def _within(codes: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Codes whose values don't overflow the weight's own dtype."""
    most = math.floor(min(torch.finfo(dtype).max / scale, 2.0**15))
    return codes.clamp(-most, most)


@dataclass
class Autoflex:
    """The estimate of a tensor's next scale k from the largest values that it had: Autoflex.

    After each use call `observe` with the largest |m| of the tensor, computed with `scale`. An overflow forgets the
    past and doubles the value. chi = alpha (max + beta std + gamma k) over the last `window` values, then
    k = 2^(ceil(log2 chi) - bits + 1).

    Attributes:
        bits: of a mantissa.
        window: how many values are remembered.
        alpha: safety factor.
        beta: weight of the values' standard deviation.
        gamma: weight of the scale.
        scale: k.
        values: the largest values, newest last.

    >>> flex = Autoflex(scale=2.0**-14)
    >>> for _ in range(3): flex.observe(round(1.0 / flex.scale))
    >>> round(1.0 / flex.scale)
    8192
    """

    bits: int = 16
    window: int = 16
    alpha: float = 2.0
    beta: float = 3.0
    gamma: float = 100.0
    scale: float = 1.0
    values: deque[float] = field(default_factory=deque)

    def observe(self, largest: int) -> None:
        """Takes the largest |m|, saturated at 2^(bits-1) - 1, and sets the scale for next time."""
        if largest >= 2 ** (self.bits - 1) - 1:
            self.values.clear()
            largest *= 2
        self.values.append(largest * self.scale)
        while len(self.values) > self.window:
            self.values.popleft()
        mean = sum(self.values) / len(self.values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in self.values) / len(self.values))
        chi = self.alpha * (max(self.values) + self.beta * deviation + self.gamma * self.scale)
        self.scale = 2.0 ** (ceil_log2(chi) - self.bits + 1)

    def start(self, largest_at: list[float]) -> None:
        """Finds a first scale from what the tensor's largest value is in each try: at most ten tries, all zeros give 1.

        The mantissa is aimed at 2^(bits-2) .. 2^(bits-1): an overflow coarsens the scale by half the bits, a small
        one refines it by as many bits as are missing, believed once it has a quarter of half its bits.
        """
        high, low = 2 ** (self.bits - 1) - 1, 2 ** (self.bits - 2)
        for value in largest_at[:10]:
            found = min(round(value / self.scale), high)
            if found >= high:
                self.scale *= 2.0 ** ((self.bits - 1) >> 1)
            elif found < low:
                self.scale *= 2.0 ** (found.bit_length() - low.bit_length())
                if found >= 2 ** (((self.bits - 1) >> 1) - 2):
                    return
            else:
                return
        self.scale = 1.0
