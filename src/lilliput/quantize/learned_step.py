"""Learned step size (LSQ): uniform levels whose step is trained beside the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.uniform import Uniform, on_grid

NAME = "quantize/learned_step"


@dataclass(frozen=True)
class LearnedStep(WeightMethod):
    """value = s round(clip(w / s, -Qn, Qp)), Qn = 2^(bits-1), Qp = Qn - 1, s trained from 2 mean|w| / sqrt(Qp) on.

    Esser et al. 2020 (arXiv 1902.08153). With v = w / s: d value / d s = round(v) - v inside, -Qn below and Qp above,
    times 1 / sqrt(n Qp) so that the step learns as fast as the weights; d value / d w = 1 inside, 0 outside.

    Attributes:
        bits: 2 to 8.

    >>> packed = LearnedStep(bits=2).pack(torch.tensor([0.5, -0.25, 0.0]))
    >>> packed.parts["codes"].tolist(), packed.parts["scale"].tolist()
    ([1, 0, 0], [0.5])
    """

    bits: int = 4

    keeps_zeros = True
    trained = ("scale",)
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 2, 8)

    @property
    def ends(self) -> tuple[int, int]:
        """-Qn and Qp."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform` with one scale.

        Args:
            weight: any shape.
            stats: not used.
            prior: hands over the step, if it has one for all.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        work = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        step = _step(prior)
        if step is None:
            mean = work.abs().double().sum() / max(work.numel(), 1)
            step = (2 * mean / math.sqrt(self.ends[1])).reshape(1).to(work.dtype)
            # Not beyond what the lowest code can bear in the weight's own dtype.
            step = step.clamp(max=torch.finfo(weight.dtype).max / -self.ends[0])
        return on_grid(weight, torch.round(work / _divisor(step)).clamp(*self.ends), step)

    def gradient(self, weight: Tensor, packed: Packed, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the gradients of the latent weight and of `scale`."""
        step = packed.tensor("scale")
        low, high = self.ends
        v = weight.to(step.dtype) / _divisor(step)
        inside = (v >= low) & (v <= high)
        slope = torch.where(inside, torch.round(v) - v, v.clamp(low, high))
        factor = 1 / math.sqrt(max(weight.numel(), 1) * high)
        own = (grad.to(step.dtype) * slope).sum() * factor
        return grad * inside, {"scale": own.reshape(1)}

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """2, 4 and 8 bits."""
        return tuple(cls(bits=bits) for bits in (2, 4, 8))


def _step(prior: Packed | None) -> Tensor | None:
    step = prior.parts.get("scale") if prior is not None else None
    if not isinstance(step, Tensor) or step.shape != (1,):
        return None
    return step.detach()


def _divisor(step: Tensor) -> Tensor:
    return torch.where(step != 0, step, 1)
