"""BinaryConnect: weights +-limit, at random in training if asked for, with latent weights that are clipped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.uniform import Uniform, on_grid
from lilliput.solve.rounding import signs

NAME = "quantize/binary_connect"


@dataclass(frozen=True)
class BinaryConnect(WeightMethod):
    """w_b = H sign(w), sign(0) = +1; the gradient of w_b is that of w, and w is clipped to -H .. H after each step.

    Courbariaux, Bengio and David 2015 (arXiv 1511.00363). Stochastic: while training w_b = +H with probability
    clip((w/H + 1) / 2, 0, 1), so that E[w_b] = w. The file and eval mode hold the signs: the paper evaluates
    what was trained stochastically with its real weights, which would need no packing.

    The clipping is done by `advance`, which `fit` calls between steps.

    Attributes:
        limit: H.
        stochastic: draw while training.

    >>> BinaryConnect.unpack(BinaryConnect().pack(torch.tensor([0.3, -0.2, 0.0])))
    tensor([ 1., -1.,  1.])
    """

    limit: float = 1.0
    stochastic: bool = False

    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "limit", self.limit, 1e-6, 1e4)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`: codes -1 and 1, and `scale` = H.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        return self._packed(weight, signs(weight))

    def draw(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to random signs, if asked for."""
        if not self.stochastic:
            return self.pack(weight)
        check_weight(weight, NAME)
        chance = (weight.float() / self.limit + 1) / 2
        return self._packed(weight, torch.where(torch.rand_like(chance) < chance, 1, -1))

    def _packed(self, weight: Tensor, codes: Tensor) -> Packed:
        scale = weight.new_full((1,), self.limit, dtype=torch.promote_types(weight.dtype, torch.float32))
        return on_grid(weight, codes, scale)

    def confined(self, weight: Tensor) -> Tensor:
        """Returns the weight clipped to -H .. H."""
        return weight.clamp(-self.limit, self.limit)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """The one setting that packs."""
        return (cls(),)


def glorot_rate(weight: Tensor) -> float:
    """Returns what the paper's code multiplies a layer's updates by: 1 / sqrt(1.5 / (fan in + fan out)).

    Args:
        weight: out x in, or out x in x kernel, whose places count in both fans.

    >>> round(glorot_rate(torch.empty(100, 50)), 4)
    10.0
    """
    places = math.prod(weight.shape[2:])
    return 1 / math.sqrt(1.5 / (places * sum(weight.shape[:2])))
