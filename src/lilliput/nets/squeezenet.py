"""SqueezeNet 1.0 and 1.1: fire modules, AlexNet's accuracy in 50 times fewer parameters."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.core.contracts import Network
from lilliput.nets.parts import SMALL, check_choice, check_net, scaled

SQUEEZED = {2: 16, 3: 16, 4: 32, 5: 32, 6: 48, 7: 48, 8: 64, 9: 64}
"""Channels that each fire module squeezes to; it expands them to four times as many twice over."""

STEMS = {"1.0": (96, 7), "1.1": (64, 3)}
POOLED = {"1.0": (1, 4, 8), "1.1": (1, 3, 5)}
"""The first convolution's filters and kernel; after which modules there is a pool, 1 being that convolution."""


class Fire(nn.Module):
    """relu(squeeze(x)), then the expansions by 1 x 1 and 3 x 3 filters, joined."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, 2 * expanded, H, W)."""
        x = functional.relu(self.squeeze(x))
        return functional.relu(torch.cat([self.expand1(x), self.expand3(x)], 1))


@dataclass(frozen=True)
class SqueezeNet(Network):
    """A convolution, eight fire modules, a 1 x 1 convolution to the classes and their global average; no BatchNorm.

    Iandola et al. 2016 (arXiv 1602.07360); 1.1 is the authors' later version with 2.4 times fewer multiplications.

    Attributes:
        version: `"1.0"` or `"1.1"`.
        width: all channels times this, above 0.
        caffe: pad the last convolution by 1, as the published prototxt of 1.0 does; its zeros count in the average.
        num_classes: outputs.
        channels: of the pictures.
        size: of the pictures; below 64 the first convolution keeps it, and no pool follows.

    >>> sum(p.numel() for p in SqueezeNet().build().parameters())
    1248424
    """

    version: Literal["1.0", "1.1"] = "1.0"
    width: float = 1.0
    caffe: bool = False
    num_classes: int = 1000
    channels: int = 3
    size: int = 224

    def __post_init__(self) -> None:
        check_net(self, 8)
        check_choice(self, "version", STEMS)
        check_range("nets/squeezenet", "width", self.width, 1 / 16, 64)

    def build(self) -> nn.Module:
        """Returns the network, not trained: (N, channels, size, size) -> (N, num_classes), none of them negative."""
        small = self.size < SMALL
        filters, kernel = STEMS[self.version]
        inputs = scaled(filters, self.width)
        stem = nn.Conv2d(self.channels, inputs, kernel, 1 if small else 2, kernel // 2 if small else 0)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=stem, relu1=nn.ReLU())
        for number in range(1, 10):
            if number > 1:
                squeezed = scaled(SQUEEZED[number], self.width)
                layers[f"fire{number}"] = Fire(inputs, squeezed, 4 * squeezed)
                inputs = 8 * squeezed
            if number in POOLED[self.version] and not (small and number == 1):
                layers[f"pool{number}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
        layers["dropout"] = nn.Dropout(0.5)
        layers["conv10"] = nn.Conv2d(inputs, self.num_classes, 1, padding=int(self.caffe))
        layers["relu10"], layers["pool10"], layers["flatten"] = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return _started(nn.Sequential(layers))

    @classmethod
    def choices(cls) -> tuple[Network, ...]:
        """Both versions."""
        return cls("1.1"), cls("1.0")

    @classmethod
    def tiny(cls) -> Network:
        """An eighth as wide, for 28 x 28."""
        return cls("1.1", width=0.125, num_classes=10, channels=1, size=28)


def _started(model: nn.Module) -> nn.Module:
    """Glorot's uniform start, without which a plain network of 18 layers hardly learns; the last layer small."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if name == "conv10":
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model
