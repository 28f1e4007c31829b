"""Residual networks: those for ImageNet, and the slim ones for CIFAR-10."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.core.contracts import Network
from lilliput.core.errors import MethodError
from lilliput.nets.parts import SMALL, check_choice, check_net, scaled

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
FORMS = ("imagenet", "cifar")


class Slices(nn.Module):
    """The shortcut without parameters: every second pixel, and zeros for the new channels (the paper's option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, outputs, H / stride, W / stride)."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


class Basic(nn.Module):
    """relu(shortcut + two 3 x 3 convolutions)."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, outputs, H / stride, W / stride)."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """relu(shortcut + 1 x 1, 3 x 3 and 1 x 1 convolutions), the stride in the second."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, outputs, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(functional.relu(self.bn2(self.conv2(y)))))
        return functional.relu(y + self.downsample(x))


@dataclass(frozen=True)
class ResNet(Network):
    """Residual blocks in four stages (`"imagenet"`) or three (`"cifar"`), global average, one linear layer.

    He et al. 2015 (arXiv 1512.03385). For ImageNet with projections where shapes change and the names of torchvision,
    whose state dicts fit; for CIFAR-10 with 16, 32 and 64 channels and shortcuts without parameters.

    Attributes:
        depth: 18, 34, 50, 101 or 152; for `"cifar"` 6 n + 2, such as 20, 32, 44, 56 and 110.
        form: `"imagenet"` or `"cifar"`.
        width: all channels times this, above 0.
        inner: channels within the blocks times this, above 0, as pruning leaves them.
        num_classes: outputs.
        channels: of the pictures.
        size: of the pictures; below 64 the first convolution is 3 x 3 and keeps it, and no pool follows.

    >>> sum(p.numel() for p in ResNet().build().parameters())
    11689512
    """

    depth: int = 18
    form: Literal["imagenet", "cifar"] = "imagenet"
    width: float = 1.0
    inner: float = 1.0
    num_classes: int = 1000
    channels: int = 3
    size: int = 224

    def __post_init__(self) -> None:
        check_net(self)
        check_choice(self, "form", FORMS)
        if self.form == "imagenet":
            check_choice(self, "depth", DEPTHS)
        elif self.depth < 8 or self.depth % 6 != 2:
            raise MethodError(f"nets/resnet: depth = {self.depth} must be 6 n + 2, such as 20, 56 or 110")
        for name in ("width", "inner"):
            check_range("nets/resnet", name, getattr(self, name), 1 / 64, 64)

    def build(self) -> nn.Module:
        """Returns the network, not trained: (N, channels, size, size) -> (N, num_classes)."""
        slim = self.form == "cifar"
        inputs = scaled(16 if slim else 64, self.width)
        large = not slim and self.size >= SMALL
        stem = nn.Conv2d(self.channels, inputs, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=stem, bn1=nn.BatchNorm2d(inputs), relu=nn.ReLU())
        if large:
            layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
        for stage, count in enumerate(((self.depth - 2) // 6,) * 3 if slim else DEPTHS[self.depth]):
            blocks = []
            for number in range(count):
                blocks.append(self._block(stage, inputs, 2 if stage and not number else 1))
                inputs = scaled(self._channels(stage), self.width)
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        layers["avgpool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        layers["fc"] = nn.Linear(inputs, self.num_classes)
        return nn.Sequential(layers)

    def _channels(self, stage: int) -> int:
        """Channels after a stage, at width 1."""
        if self.form == "cifar":
            return int(16 * 2**stage)
        return int(64 * 2**stage) * (4 if self.depth >= 50 else 1)

    def _block(self, stage: int, inputs: int, stride: int) -> nn.Module:
        deep = self.form == "imagenet" and self.depth >= 50
        outputs = scaled(self._channels(stage), self.width)
        inner = scaled(self._channels(stage) // (4 if deep else 1), self.width * self.inner)
        if stride == 1 and inputs == outputs:
            shortcut: nn.Module = nn.Identity()
        elif self.form == "cifar":
            shortcut = Slices(inputs, outputs, stride)
        else:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        return (Bottleneck if deep else Basic)(inputs, inner, outputs, stride, shortcut)

    @classmethod
    def choices(cls) -> tuple[Network, ...]:
        """Those of the paper."""
        slim = (cls(depth, "cifar", num_classes=10, size=32) for depth in (20, 32, 44, 56, 110))
        return (*slim, *(cls(depth) for depth in DEPTHS))

    @classmethod
    def tiny(cls) -> Network:
        """Eight layers of a quarter of the channels, for 28 x 28."""
        return cls(8, "cifar", 0.25, num_classes=10, channels=1, size=28)
