"""XNOR-Net's weights: binary, of latent weights that are centred over the input channels and clipped."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lilliput.core.checks import check_weight
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.binary import estimated, mean_magnitude
from lilliput.quantize.uniform import Uniform, filters, on_grid
from lilliput.solve.rounding import signs

NAME = "quantize/xnor"


@dataclass(frozen=True)
class Xnor(WeightMethod):
    """w ~ a sign(v), a = mean|v| of each filter, v = clip(w - mean of w over the input channels, -1, 1).

    Rastegari et al. 2016 (arXiv 1603.05279) with the training of the released code: the latent weights are centred,
    for each place of the kernel, and clipped before each step. A weight without input channels (fewer than two axes) is
    clipped only. The activations' side is `quantize/activations/binary` with `scaled`; the preset recipe `xnor` joins
    both, and `block` puts the layers in the paper's order.

    Attributes:
        released: the released code's gradient, (1 - 1/c) n times the paper's, with c input channels and n weights in a
            filter: plain gradient descent needs it, Adam doesn't notice.

    >>> import torch
    >>> packed = Xnor().pack(torch.tensor([[0.9, 0.1], [0.2, -0.2]]))
    >>> packed.parts["codes"].tolist(), [round(a, 4) for a in packed.parts["scale"].tolist()]
    ([[1, -1], [1, -1]], [0.4, 0.2])
    """

    released: bool = False

    into = ("scale",)
    searched = False

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`: codes -1 and 1, one scale a filter.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        per, rows = filters(self.confined(weight.detach()), "row")
        return on_grid(weight, signs(rows), mean_magnitude(rows), per)

    def gradient(self, weight: Tensor, packed: Packed, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the paper's gradient (see `quantize/binary`), or the released code's."""
        own = estimated(self.confined(weight), packed, grad, "paper")
        if not self.released or weight.ndim < 2:
            return own, {}
        channels, size = weight.shape[1], weight[0].numel()
        return own * ((1 - 1 / max(channels, 1)) * size), {}

    def confined(self, weight: Tensor) -> Tensor:
        """Returns the weight less its mean over the input channels, clipped to -1 .. 1."""
        work = weight.double()
        if weight.ndim > 1:
            work = work - work.mean(1, keepdim=True)
        return work.clamp(-1, 1).to(weight.dtype)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """The one setting that packs."""
        return (cls(),)


def block(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, pool: int = 0) -> nn.Sequential:
    """Returns XNOR-Net's block for the preset recipe `xnor`: BatchNorm, sign, binary convolution, pooling.

    The sign is the quantizer that the recipe puts in front of the convolution. Pooling after the sign would nearly
    always give +1, and a BatchNorm right before it keeps the signs balanced.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: height and width of the convolution.
        stride: of the convolution.
        padding: of the convolution, with zeros.
        pool: height and width of max pooling; 0 for none.

    >>> [type(module).__name__ for module in block(3, 8, 3, pool=2)]
    ['BatchNorm2d', 'Conv2d', 'MaxPool2d']
    """
    layers: list[nn.Module] = [nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(pool)] if pool else []))
