"""AlexNet as Caffe has it, with grouped convolutions."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from lilliput.core.checks import check_range
from lilliput.core.contracts import Network
from lilliput.nets.parts import check_net, scaled

# Filters, kernel, groups, local response normalisation and pool after it.
LAYERS = ((96, 11, 1, True, True), (256, 5, 2, True, True), (384, 3, 1, False, False), (384, 3, 2, False, False))
LAST = (256, 3, 2, False, True)

SMALL = 67
"""Below this size nothing would be left after the last pool."""


@dataclass(frozen=True)
class AlexNet(Network):
    """Five convolutions, of which the second, fourth and fifth have two groups, and three linear layers.

    Krizhevsky, Sutskever and Hinton 2012, with the sizes of `bvlc_alexnet`.

    Attributes:
        width: all channels and hidden units times this, above 0.
        norm: local response normalisation after the first two convolutions.
        num_classes: outputs.
        channels: of the pictures.
        size: of the pictures; below 67 the first convolution keeps it.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(p.numel() for p in AlexNet().build().parameters())
    60965224
    """

    width: float = 1.0
    norm: bool = True
    num_classes: int = 1000
    channels: int = 3
    size: int = 227

    def __post_init__(self) -> None:
        check_net(self, 16)
        check_range("nets/alexnet", "width", self.width, 1 / 32, 64)

    def build(self) -> nn.Module:
        """Returns the network, not trained: (N, channels, size, size) -> (N, num_classes)."""
        small = self.size < SMALL
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs, side = self.channels, self.size if small else (self.size - 11) // 4 + 1
        for number, (filters, kernel, groups, norm, pool) in enumerate((*LAYERS, LAST), 1):
            outputs = scaled(filters, self.width, 2)
            stride, padding = (4, 0) if number == 1 and not small else (1, kernel // 2)
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
            layers[f"relu{number}"] = nn.ReLU()
            if norm and self.norm:
                layers[f"norm{number}"] = nn.LocalResponseNorm(5)
            if pool:
                layers[f"pool{number}"] = nn.MaxPool2d(3, 2)
                side = (side - 3) // 2 + 1
            inputs = outputs
        layers["flatten"] = nn.Flatten()
        features, hidden = inputs * side * side, scaled(4096, self.width)
        for number, taken in ((6, features), (7, hidden)):
            layers[f"fc{number}"], layers[f"relu{number}"] = nn.Linear(taken, hidden), nn.ReLU()
            layers[f"drop{number}"] = nn.Dropout(0.5)
        layers["fc8"] = nn.Linear(hidden, self.num_classes)
        return nn.Sequential(layers)

    @classmethod
    def choices(cls) -> tuple[Network, ...]:
        """As published."""
        return (cls(),)

    @classmethod
    def tiny(cls) -> Network:
        """A sixteenth as wide, for 28 x 28."""
        return cls(0.0625, num_classes=10, channels=1, size=28)
