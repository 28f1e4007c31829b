"""ShuffleNet v1: grouped 1 x 1 convolutions, and shuffled channels between them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.core.contracts import Network
from lilliput.nets.parts import SMALL, check_choice, check_net, conv_norm, scaled

WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Channels of the first stage by the number of groups; each further stage has twice as many."""

STEMS = {0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}
UNITS = (4, 8, 4)


class Shuffle(nn.Module):
    """out[k g + i] = in[i c / g + k] for c channels in g groups.

    >>> Shuffle(2)(torch.arange(6.0).reshape(1, 6, 1, 1)).flatten().tolist()
    [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Returns the channels in their new order; other than torch's own, so that `cut` can follow them."""
        grouped: Tensor = x.unflatten(1, (self.groups, -1))  # type: ignore[no-untyped-call]
        return grouped.transpose(1, 2).flatten(1, 2)


class Unit(nn.Module):
    """Grouped 1 x 1, shuffle, depthwise 3 x 3, grouped 1 x 1, beside x itself or its average at stride 2."""

    def __init__(self, inputs: int, outputs: int, groups: int, first: int) -> None:
        """Makes a unit.

        Args:
            inputs: channels in.
            outputs: channels out; more than come in means stride 2, where what comes in is joined on.
            groups: of the second 1 x 1 convolution and of the shuffle.
            first: groups of the first 1 x 1 convolution.
        """
        super().__init__()
        # A quarter of all outputs, at stride 2 too: of outputs - inputs it wouldn't give the paper's counts.
        inner = outputs // 4
        self.grows = outputs > inputs
        self.reduce = nn.Sequential(*conv_norm(inputs, inner, groups=first), nn.ReLU())
        self.shuffle = Shuffle(groups)
        self.depthwise = nn.Sequential(*conv_norm(inner, inner, 3, 2 if self.grows else 1, groups=inner))
        self.expand = nn.Sequential(*conv_norm(inner, outputs - inputs * self.grows, groups=groups))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, outputs, H, W), or half of H and W."""
        y = self.expand(self.depthwise(self.shuffle(self.reduce(x))))
        if not self.grows:
            return functional.relu(x + y)
        return torch.cat([functional.avg_pool2d(x, 3, 2, 1), functional.relu(y)], 1)


@dataclass(frozen=True)
class ShuffleNet(Network):
    """A 3 x 3 convolution, a pool, 16 units in three stages, global average, one linear layer.

    Zhang et al. 2017 (arXiv 1707.01083). The first 1 x 1 convolution of all, which has few inputs, isn't grouped.

    Attributes:
        groups: 1, 2, 3, 4 or 8.
        width: all channels times this, above 0: the paper has 0.25, 0.5, 1, 1.5 and 2. Stages are rounded up to a
            multiple of four times the groups, which the paper's are already.
        units: most units of a stage, where fewer than the paper's 4, 8 and 4 will do.
        num_classes: outputs.
        channels: of the pictures.
        size: of the pictures; below 64 the first convolution keeps it, and no pool follows.

    >>> sum(p.numel() for p in ShuffleNet().build().parameters())
    1865728
    """

    groups: int = 3
    width: float = 1.0
    units: int = 8
    num_classes: int = 1000
    channels: int = 3
    size: int = 224

    def __post_init__(self) -> None:
        check_net(self)
        check_choice(self, "groups", WIDTHS)
        check_range("nets/shufflenet", "width", self.width, 1 / 16, 64)
        check_range("nets/shufflenet", "units", self.units, 1, 8)

    def build(self) -> nn.Module:
        """Returns the network, not trained: (N, channels, size, size) -> (N, num_classes)."""
        small = self.size < SMALL
        inputs = scaled(STEMS.get(self.width, scaled(24, self.width)), 1.0, self.groups)
        stem = [*conv_norm(self.channels, inputs, 3, 1 if small else 2), nn.ReLU()]
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(*stem))
        if not small:
            layers["pool1"] = nn.MaxPool2d(3, 2, 1)
        for stage, count in enumerate(UNITS):
            outputs = scaled(WIDTHS[self.groups] * 2**stage, self.width, 4 * self.groups)
            units = []
            for unit in range(min(count, self.units)):
                units.append(Unit(inputs, outputs, self.groups, 1 if stage == unit == 0 else self.groups))
                inputs = outputs
            layers[f"stage{stage + 2}"] = nn.Sequential(*units)
        layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        layers["fc"] = nn.Linear(inputs, self.num_classes)
        return nn.Sequential(layers)

    @classmethod
    def choices(cls) -> tuple[Network, ...]:
        """Every number of groups, and with three of them every width."""
        return (*(cls(3, width) for width in (0.25, 0.5, 1.0, 1.5, 2.0)), *(cls(g) for g in WIDTHS if g != 3))

    @classmethod
    def tiny(cls) -> Network:
        """A quarter as wide and shorter, for 28 x 28."""
        return cls(3, 0.25, 1, num_classes=10, channels=1, size=28)
