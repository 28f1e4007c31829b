"""BinaryNet's weights: plain signs, for layers whose inputs are signs too (BNN)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lilliput.core.checks import check_weight
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.uniform import Uniform, on_grid
from lilliput.solve.rounding import signs

NAME = "quantize/binary_network"


@dataclass(frozen=True)
class BinaryNetwork(WeightMethod):
    """w_b = sign(w), sign(0) = +1; the gradient passes straight to the latent weight, clipped to -1 .. 1 after a step.

    Courbariaux, Hubara et al. 2016 (arXiv 1602.02830). The activations' side is `quantize/activations/binary`; the
    preset recipe `binary-network` joins both, every weight and activation but for what goes into the first layer.
    Blocks in the paper's order: convolution, pooling, BatchNorm, sign; the sign stands in front of the next
    convolution. Optional parts, which multiply by powers of two only: `train.shift_norm.ShiftNorm` and
    `train.shift_adamax.ShiftAdaMax`. In integers: `kernels.binary`.

    >>> import torch
    >>> BinaryNetwork.unpack(BinaryNetwork().pack(torch.tensor([0.3, -0.2, 0.0])))
    tensor([ 1., -1.,  1.])
    """

    searched = False

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`: codes -1 and 1, and a scale of 1.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        return on_grid(weight, signs(weight), weight.new_ones(1).float())

    def confined(self, weight: Tensor) -> Tensor:
        """Returns the weight clipped to -1 .. 1."""
        return weight.clamp(-1, 1)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """The one setting that packs."""
        return (cls(),)
