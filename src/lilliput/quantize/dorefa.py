"""DoReFa-Net's weights: squashed by tanh to the largest, then equally spaced levels from -1 to 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.binary import mean_magnitude
from lilliput.quantize.uniform import Uniform, on_grid
from lilliput.solve.rounding import signs

NAME = "quantize/dorefa"


@dataclass(frozen=True)
class Dorefa(WeightMethod):
    """w_q = 2 q_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1, q_k(r) = round((2^k - 1) r) / (2^k - 1), half to even.

    Zhou et al. 2016 (arXiv 1606.06160). The gradient goes straight through the rounding, but truly through tanh and
    the maximum. k = 1: mean|w| sign(w) over the whole layer, straight through. The levels are odd multiples of
    1/(2^k - 1): there is no zero, and the scale of the weights is lost, so that a network must be trained with it.

    Attributes:
        bits: k, 1 to 8.

    >>> packed = Dorefa(bits=2).pack(torch.tensor([0.9, -0.3, 0.1]))
    >>> packed.parts["codes"].tolist(), round(float(packed.parts["scale"]), 4)
    ([3, -1, 1], 0.3333)
    """

    bits: int = 4

    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 1, 8)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`: odd codes -(2^k - 1) .. 2^k - 1, one scale.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        work = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        if self.bits == 1:
            return on_grid(weight, signs(work), mean_magnitude(work.reshape(1, -1)))
        top = 2**self.bits - 1
        squashed = torch.tanh(work.double())
        level = torch.round(top * (squashed / (2 * _largest(squashed)) + 0.5))
        return on_grid(weight, 2 * level - top, work.new_full((1,), 1 / top))

    def gradient(self, weight: Tensor, packed: Packed, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns dL/dw_j = (1 - t_j^2) (g_j - 1[|t_j| = m] sign(t_j) sum_i g_i t_i / m) / m, t = tanh w, m = max|t|.

        Where several are largest they share what goes through the maximum.
        """
        if self.bits == 1 or not weight.numel():
            return grad, {}
        t, g = torch.tanh(weight.double()), grad.double()
        m = _largest(t)
        ends = t.abs() == m
        through = ends * torch.sign(t) * ((g * t).sum() / m / ends.sum().clamp(min=1))
        return ((1 - t.square()) * (g - through) / m).to(grad.dtype), {}

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """2, 4 and 8 bits."""
        return tuple(cls(bits=bits) for bits in (2, 4, 8))


def _largest(values: Tensor) -> Tensor:
    largest = values.abs().max() if values.numel() else values.new_zeros(())
    return torch.where(largest > 0, largest, 1)
