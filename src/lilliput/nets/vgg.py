"""VGG of 11 to 19 layers, as for ImageNet, or with BatchNorm and a small head as for CIFAR-10."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lilliput.core.checks import check_range
from lilliput.core.contracts import Network
from lilliput.nets.parts import check_choice, check_net, conv_norm, scaled

DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
FORMS = ("imagenet", "cifar")


@dataclass(frozen=True)
class VGG(Network):
    """Five runs of 3 x 3 convolutions with 64 to 512 channels, a pool after each, and linear layers.

    Simonyan and Zisserman 2014 (arXiv 1409.1556). The form `"cifar"` is that of the papers on pruning (Li et al. 2016,
    arXiv 1608.08710): BatchNorm after each convolution, one hidden layer of 512.

    Attributes:
        depth: 11, 13, 16 or 19.
        form: `"imagenet"` (two hidden layers of 4096) or `"cifar"`.
        width: all channels and hidden units times this, above 0.
        num_classes: outputs.
        channels: of the pictures.
        size: of the pictures; a pool is left out where a single pixel is left.

    >>> sum(p.numel() for p in VGG(form="cifar", num_classes=10, size=32).build().parameters())
    14986698
    """

    depth: int = 16
    form: Literal["imagenet", "cifar"] = "imagenet"
    width: float = 1.0
    num_classes: int = 1000
    channels: int = 3
    size: int = 224

    def __post_init__(self) -> None:
        check_net(self, 2)
        check_choice(self, "depth", DEPTHS)
        check_choice(self, "form", FORMS)
        check_range("nets/vgg", "width", self.width, 1 / 64, 64)

    def build(self) -> nn.Module:
        """Returns the network, not trained: (N, channels, size, size) -> (N, num_classes)."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs, side = self.channels, self.size
        for stage, count in enumerate(DEPTHS[self.depth], 1):
            outputs = scaled(min(32 * 2**stage, 512), self.width)
            for number in range(1, count + 1):
                name = f"{stage}_{number}"
                if self.form == "cifar":
                    layers[f"conv{name}"], layers[f"norm{name}"] = conv_norm(inputs, outputs, 3)
                else:
                    layers[f"conv{name}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
                layers[f"relu{name}"] = nn.ReLU()
                inputs = outputs
            if side > 1:
                layers[f"pool{stage}"] = nn.MaxPool2d(2)
                side //= 2
        layers["flatten"] = nn.Flatten()
        taken = inputs * side * side
        hidden = scaled(512 if self.form == "cifar" else 4096, self.width)
        for number in (6,) if self.form == "cifar" else (6, 7):
            layers[f"fc{number}"], layers[f"relu{number}"] = nn.Linear(taken, hidden), nn.ReLU()
            if self.form == "imagenet":
                layers[f"drop{number}"] = nn.Dropout(0.5)
            taken = hidden
        layers["fc8"] = nn.Linear(taken, self.num_classes)
        return nn.Sequential(layers)

    @classmethod
    def choices(cls) -> tuple[Network, ...]:
        """Every depth, and the 16 layers for CIFAR-10."""
        return (cls(16, "cifar", num_classes=10, size=32), *(cls(depth) for depth in DEPTHS))

    @classmethod
    def tiny(cls) -> Network:
        """11 layers, a sixteenth as wide, for 28 x 28."""
        return cls(11, "cifar", 0.0625, num_classes=10, channels=1, size=28)
