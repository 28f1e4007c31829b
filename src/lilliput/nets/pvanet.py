"""PVANet 9.0 and 9.1: C.ReLU in the early layers, Inception in the later ones, HyperNet features for detection."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.core.contracts import Network
from lilliput.core.errors import MethodError
from lilliput.nets.parts import SMALL, check_choice, check_net, conv_norm, scaled

VERSIONS = ("9.0", "9.1")
HEADS = ("pooled", "caffe", "none", "detection")

CRELU = {2: (24, 24, 64, 3), 3: (48, 48, 128, 4)}
"""Of each stage: channels of the 1 x 1 and of the 3 x 3 convolution, outputs, blocks."""

INCEPTION = {
    4: ((64, 48, 128, 24, 48, 128), (64, 64, 128, 24, 48, 0), 256),
    5: ((64, 96, 192, 32, 64, 128),) * 2 + (384,),
}
"""Of each stage: the first block's and the others' channels (see `Inception`), outputs; four blocks each."""


class CReLU(nn.Module):
    """relu(gamma * [x, -x] + beta) of a normalised convolution: two outputs a filter.

    Each half has slope and threshold of its own (Shang et al. 2016, arXiv 1603.05201; modified as in PVANet).
    """

    def __init__(self, inputs: int, filters: int, kernel: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, kernel, stride, kernel // 2, bias=bias)
        self.norm = nn.BatchNorm2d(filters, affine=False)
        self.gamma = nn.Parameter(torch.ones(2 * filters))
        self.beta = nn.Parameter(torch.zeros(2 * filters))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, 2 * filters, H, W)."""
        x = self.norm(self.conv(x))
        both = torch.cat([x, -x], 1)
        return functional.relu(both * self.gamma[:, None, None] + self.beta[:, None, None])


class Residual(nn.Module):
    """body(x) + x, or + a 1 x 1 convolution of x where their shapes differ; no ReLU after the sum."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int, stride: int, norm: bool = True) -> None:
        super().__init__()
        self.body = body
        self.proj: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            self.proj = nn.Conv2d(inputs, outputs, 1, stride)
            if norm:
                self.proj = nn.Sequential(self.proj, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum."""
        y: Tensor = self.body(x) + self.proj(x)
        return y


class Inception(nn.Module):
    """1 x 1; 1 x 1, 3 x 3; 1 x 1, 3 x 3, 3 x 3; at stride 2 a pool, 1 x 1: joined, then 1 x 1 to the outputs."""

    def __init__(
        self, inputs: int, channels: tuple[int, ...], outputs: int, stride: int, padded: bool, norm: bool = True
    ) -> None:
        """Makes the branches.

        Args:
            inputs: channels in.
            channels: of the first branch; reduced and final of the second; reduced and final of the third; of the pool.
            outputs: channels out.
            stride: 1 or 2, that of the first convolution of each branch.
            norm: BatchNorm after the last convolution, which has a bias otherwise.
            padded: pad the pool by 1, for sizes that aren't multiples of 32; Caffe rounds up instead.
        """
        super().__init__()
        one, reduced3, three, reduced5, five, pooled = channels
        self.one = _units((inputs, one, 1, stride))
        self.three = _units((inputs, reduced3, 1, stride), (reduced3, three, 3, 1))
        self.five = _units((inputs, reduced5, 1, stride), (reduced5, five, 3, 1), (five, five, 3, 1))
        self.pool: nn.Module | None = None
        if stride > 1:
            pool = nn.MaxPool2d(3, stride, int(padded), ceil_mode=not padded)
            self.pool = nn.Sequential(pool, *_units((inputs, pooled, 1, 1)))
        joined = one + three + five + (pooled if stride > 1 else 0)
        self.out = nn.Sequential(*conv_norm(joined, outputs)) if norm else nn.Conv2d(joined, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, outputs, H / stride, W / stride)."""
        branches = [self.one, self.three, self.five] + ([] if self.pool is None else [self.pool])
        y: Tensor = self.out(torch.cat([branch(x) for branch in branches], 1))
        return y


class Detector(nn.Module):
    """The trunk, HyperNet's features from three depths of it, and a region proposal network of 25 anchors."""

    def __init__(self, trunk: nn.Sequential, middle: int, deep: int, last: int, width: float) -> None:
        super().__init__()
        self.trunk = trunk
        self.down = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.up = nn.ConvTranspose2d(last, last, 4, 2, 1, groups=last, bias=False)
        with torch.no_grad():
            tent = torch.tensor([0.25, 0.75, 0.75, 0.25], device=self.up.weight.device)
            self.up.weight.copy_(tent[:, None] * tent)
        joined, narrow, wide = middle + deep + last, scaled(128, width), scaled(384, width)
        self.convf_rpn = nn.Conv2d(joined, narrow, 1)
        self.convf_2 = nn.Conv2d(joined, wide, 1)
        self.rpn = nn.Conv2d(narrow, wide, 3, padding=1)
        self.scores = nn.Conv2d(wide, 50, 1)
        self.boxes = nn.Conv2d(wide, 100, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns features (N, 512, h, w), scores (N, 50, h, w) and boxes (N, 100, h, w) at a sixteenth of the size."""
        stages: dict[str, Tensor] = {}
        for name, block in self.trunk.named_children():
            stages[name.partition("_")[0]] = x = block(x)
        joined = torch.cat([self.down(stages["conv3"]), stages["conv4"], self.up(x)], 1)
        narrow = functional.relu(self.convf_rpn(joined))
        features = torch.cat([narrow, functional.relu(self.convf_2(joined))], 1)
        proposals = functional.relu(self.rpn(narrow))
        return features, self.scores(proposals), self.boxes(proposals)


@dataclass(frozen=True)
class PVANet(Network):
    """7 x 7 C.ReLU, three and four residual blocks of C.ReLU, twice four of Inception, and a head.

    Kim et al. 2016 (arXiv 1608.08021) and Hong et al. 2016 (1611.08588). In the first version, 9.0, BatchNorm comes
    after each convolution and no ReLU after the sums, so that what follows them takes the raw sum. In 9.1 BatchNorm and
    ReLU come before what a block computes, and once more after the last sum; the layout is that of the authors'
    prototxt, biases included.

    Attributes:
        head: `"pooled"`: global average and one linear layer; `"caffe"`: the prototxt's two layers of 4096 in between;
            `"none"`: the map of conv5_4; `"detection"`: see `Detector`.
        width: all channels times this, above 0.
        blocks: most blocks of a stage, where fewer than the paper's 3, 4, 4 and 4 will do.
        num_classes: outputs of the first two heads.
        channels: of the pictures.
        size: of the pictures, a multiple of 32; or below 64 for a first convolution that keeps it and no pool after
            it, not with `detection`.
        version: `"9.0"` or `"9.1"`.

    >>> sum(p.numel() for p in PVANet().build().parameters())
    3287592
    """

    head: Literal["pooled", "caffe", "none", "detection"] = "pooled"
    width: float = 1.0
    blocks: int = 4
    num_classes: int = 1000
    channels: int = 3
    size: int = 224
    version: Literal["9.0", "9.1"] = "9.0"

    def __post_init__(self) -> None:
        check_net(self, 8)
        check_choice(self, "version", VERSIONS)
        check_choice(self, "head", HEADS)
        check_range("nets/pvanet", "width", self.width, 1 / 16, 64)
        check_range("nets/pvanet", "blocks", self.blocks, 1, 4)
        if self.size % 32 and (self.size > SMALL or self.head == "detection"):
            raise MethodError(f"nets/pvanet: size = {self.size} must be a multiple of 32")

    def build(self) -> nn.Module:
        """Returns the network, not trained: (N, channels, size, size) -> what the head gives."""
        small = self.size < SMALL and self.head != "detection"
        trunk = _trunk(self, small)
        middle, deep, last = (scaled(channels, self.width) for channels in (128, 256, 384))
        if self.head == "none":
            return trunk
        if self.head == "detection":
            return Detector(trunk, middle, deep, last, self.width)
        layers = OrderedDict(trunk.named_children())
        if self.head == "pooled":
            layers |= {"pool5": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
            return nn.Sequential(layers | {"fc": nn.Linear(last, self.num_classes)})
        side = -(-self.size // 8) if small else self.size // 32
        hidden = scaled(4096, self.width)
        layers["flatten"] = nn.Flatten()
        for number, inputs in ((6, last * side * side), (7, hidden)):
            layers[f"fc{number}"] = nn.Linear(inputs, hidden)
            layers |= {f"norm{number}": nn.BatchNorm1d(hidden), f"drop{number}": nn.Dropout(0.5)}
            layers[f"relu{number}"] = nn.ReLU()
        return nn.Sequential(layers | {"fc8": nn.Linear(hidden, self.num_classes)})

    @classmethod
    def choices(cls) -> tuple[Network, ...]:
        """The four heads, and both versions."""
        return cls("none"), cls("pooled"), cls("caffe"), cls("detection"), cls(version="9.1")

    @classmethod
    def tiny(cls) -> Network:
        """A sixteenth as wide and shorter, for 28 x 28."""
        return cls(width=0.0625, blocks=1, num_classes=10, channels=1, size=28)


def _units(*shapes: tuple[int, int, int, int]) -> nn.Sequential:
    """Convolutions of (inputs, outputs, kernel, stride), each with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in shapes:
        layers += [*conv_norm(inputs, outputs, kernel, stride), nn.ReLU()]
    return nn.Sequential(*layers)


def _trunk(net: PVANet, small: bool) -> nn.Sequential:
    filters = scaled(16, net.width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1_1=CReLU(net.channels, filters, 7, 1 if small else 2))
    if not small:
        layers["pool1"] = nn.MaxPool2d(3, 2, ceil_mode=True)
    inputs, first = 2 * filters, net.version == "9.0"
    for stage, (*numbers, count) in CRELU.items():
        channels = tuple(scaled(number, net.width) for number in numbers)
        for block in range(min(count, net.blocks)):
            stride = 2 if stage > 2 and not block else 1
            if first:
                body = _crelu(inputs, channels, stride)
            else:
                # What conv1_1 gives has been through a ReLU.
                body = _crelu_after(inputs, channels, stride, opened=stage == 2 and not block)
            layers[f"conv{stage}_{block + 1}"] = Residual(body, inputs, channels[-1], stride, norm=first)
            inputs = channels[-1]
    for stage, (opening, others, out) in INCEPTION.items():
        outputs = scaled(out, net.width)
        for block in range(net.blocks):
            stride = 1 if block else 2
            sizes = tuple(scaled(number, net.width) for number in (others if block else opening))
            # The last block of 9.1 has BatchNorm after it as well.
            norm = first or (stage == 5 and block == net.blocks - 1)
            mixed: nn.Module = Inception(inputs, sizes, outputs, stride, small, norm)
            if not first:
                mixed = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), mixed)
            layers[f"conv{stage}_{block + 1}"] = Residual(mixed, inputs, outputs, stride, first)
            inputs = outputs
    if not first:
        layers["conv5_last"] = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
    return nn.Sequential(layers)


def _crelu(inputs: int, channels: tuple[int, ...], stride: int) -> nn.Sequential:
    """A block of 9.0: 1 x 1, C.ReLU of 3 x 3, 1 x 1, each with BatchNorm after it."""
    reduced, three, outputs = channels
    first = [*conv_norm(inputs, reduced, 1, stride), nn.ReLU(), CReLU(reduced, three, 3)]
    return nn.Sequential(*first, *conv_norm(2 * three, outputs))


def _crelu_after(inputs: int, channels: tuple[int, ...], stride: int, opened: bool) -> nn.Sequential:
    """A block of 9.1: the same convolutions with biases, BatchNorm before each; the first's is left out if opened."""
    reduced, three, outputs = channels
    before = [] if opened else [nn.BatchNorm2d(inputs), nn.ReLU()]
    middle = [nn.BatchNorm2d(reduced), nn.ReLU(), CReLU(reduced, three, 3, bias=True)]
    return nn.Sequential(*before, nn.Conv2d(inputs, reduced, 1, stride), *middle, nn.Conv2d(2 * three, outputs, 1))
