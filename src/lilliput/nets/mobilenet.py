"""MobileNet v1: depthwise separable convolutions, as wide as you like."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from lilliput.core.checks import check_range
from lilliput.core.contracts import Network
from lilliput.nets.parts import SMALL, check_net, conv_norm, scaled

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *(((512, 1),) * 5), (1024, 2), (1024, 1))
"""Channels and stride of each block. The paper's table prints stride 2 for the last, a slip: the map stays 7 x 7."""


@dataclass(frozen=True)
class MobileNet(Network):
    """A 3 x 3 convolution, 13 blocks of a depthwise and a 1 x 1 convolution, global average, one linear layer.

    Howard et al. 2017 (arXiv 1704.04861). A separable convolution of k x k and N outputs costs 1/N + 1/k^2 of a
    whole one. BatchNorm and ReLU after each convolution.

    Attributes:
        width: the paper's alpha: all channels times this, above 0.
        blocks: how many of the 13, where fewer will do.
        num_classes: outputs.
        channels: of the pictures.
        size: of the pictures; below 64 the first convolution keeps it.

    >>> sum(p.numel() for p in MobileNet(width=0.25).build().parameters())
    470072
    """

    width: float = 1.0
    blocks: int = 13
    num_classes: int = 1000
    channels: int = 3
    size: int = 224

    def __post_init__(self) -> None:
        check_net(self)
        check_range("nets/mobilenet", "width", self.width, 1 / 64, 64)
        check_range("nets/mobilenet", "blocks", self.blocks, 1, 13)

    def build(self) -> nn.Module:
        """Returns the network, not trained: (N, channels, size, size) -> (N, num_classes)."""
        inputs = scaled(32, self.width)
        stem = conv_norm(self.channels, inputs, 3, 1 if self.size < SMALL else 2)
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(*stem, nn.ReLU()))
        for number, (channels, stride) in enumerate(BLOCKS[: self.blocks], 1):
            outputs = scaled(channels, self.width)
            depthwise = conv_norm(inputs, inputs, 3, stride, groups=inputs)
            pointwise = conv_norm(inputs, outputs)
            layers[f"block{number}"] = nn.Sequential(*depthwise, nn.ReLU(), *pointwise, nn.ReLU())
            inputs = outputs
        layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        layers["fc"] = nn.Linear(inputs, self.num_classes)
        return nn.Sequential(layers)

    @classmethod
    def choices(cls) -> tuple[Network, ...]:
        """The widths of the paper."""
        return cls(0.25), cls(0.5), cls(0.75), cls(1.0)

    @classmethod
    def tiny(cls) -> Network:
        """An eighth as wide and shorter, for 28 x 28."""
        return cls(0.125, 4, num_classes=10, channels=1, size=28)
