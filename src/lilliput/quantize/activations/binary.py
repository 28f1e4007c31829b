"""Binary activations: signs, with XNOR-Net's map of magnitudes on the layer's output where it is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.method import ActivationQuantizer
from lilliput.solve.rounding import signs

NAME = "quantize/activations/binary"
CONVOLUTIONS: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@dataclass(frozen=True)
class Binary(ActivationQuantizer):
    """x -> sign(x), sign(0) = +1; the gradient passes where |x| <= 1, as that of a hard tanh.

    Courbariaux, Hubara et al. 2016 (arXiv 1602.02830). Stochastic: while training +1 with probability
    clip((x + 1) / 2, 0, 1). The padding of a convolution stays 0, as in the papers' code.

    Scaled: XNOR-Net's I * W ~ (sign(I) * sign(W)) K a (Rastegari et al. 2016, arXiv 1603.05279): what comes out, less
    its bias, is multiplied by K, the mean over the layer's window of A = mean over the channels of |x|, zeros outside;
    for a linear layer K = mean|x| of each example. Released code leaves K out.

    Attributes:
        scaled: multiply the output by K.
        stochastic: draw while training.

    >>> Binary().forward(torch.tensor([0.3, -0.2, 0.0]), {})
    tensor([ 1., -1.,  1.])
    """

    scaled: bool = False
    stochastic: bool = False

    @property
    def levels(self) -> int:
        """2."""
        return 2

    def observe(self, stats: Any) -> dict[str, float]:
        """Returns no numbers: there is nothing to calibrate."""
        return {}

    def forward(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns the signs."""
        return signs(x)

    def draw(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns signs, at random if asked for."""
        if not self.stochastic:
            return signs(x)
        chance = (x.to(torch.float32) + 1) / 2
        return torch.where(torch.rand_like(chance) < chance, 1, -1).to(x.dtype)

    def gradient(
        self, x: Tensor, numbers: Mapping[str, float], grad: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Returns the gradient where |x| <= 1, else 0."""
        return grad * (x.abs() <= 1), {}

    def unsuited(self, layer: nn.Module) -> str | None:
        """Says which layers have no K."""
        if not self.scaled or isinstance(layer, nn.Linear):
            return None
        if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return f"{NAME}: scaled needs a linear layer or a convolution, not {type(layer).__name__}"
        mode = layer.padding_mode
        return None if mode == "zeros" else f"{NAME}: scaled needs padding with zeros, not '{mode}'"

    def factor(self, x: Tensor, layer: nn.Module) -> Tensor | None:
        """Returns K, broadcastable to the layer's output, or None.

        Raises:
            MethodError: the layer has no K.
        """
        reason = self.unsuited(layer)
        if reason is not None:
            raise MethodError(reason)
        if not self.scaled:
            return None
        if isinstance(layer, nn.Linear):
            return x.abs().mean(-1, keepdim=True)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        groups, axes = layer.groups, len(layer.kernel_size)
        channel = x.ndim - axes - 1
        magnitudes = torch.unflatten(x.abs(), channel, (groups, -1)).mean(channel + 1)
        window = x.new_full((groups, 1, *layer.kernel_size), 1 / torch.Size(layer.kernel_size).numel())
        geometry = (layer.stride, layer.padding, layer.dilation, groups)
        found: Tensor = CONVOLUTIONS[axes](magnitudes, window, None, *geometry)
        return found.repeat_interleave(layer.out_channels // groups, channel) if groups > 1 else found

    def describe(self, numbers: Mapping[str, float]) -> str:
        """Returns what isn't plain."""
        return ", ".join(word for word, said in (("scaled by K", self.scaled),) if said)

    @classmethod
    def choices(cls) -> tuple[ActivationQuantizer, ...]:
        """The plain one."""
        return (cls(),)
