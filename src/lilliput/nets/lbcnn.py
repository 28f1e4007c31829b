"""LBCNN: convolutions whose sparse ternary filters are never trained, and in a file cost a seed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.core.contracts import Network
from lilliput.core.packed import Packed
from lilliput.nets.parts import check_net
from lilliput.solve.seeded import ternary


class Anchors(nn.Module):
    """A convolution with fixed filters of -1, 0 and 1, made by a seed; no bias. The filters are a buffer, `weight`."""

    def __init__(self, inputs: int, filters: int, kernel: int, settings: Mapping[str, Any]) -> None:
        """Makes the filters.

        Args:
            inputs: channels in.
            filters: channels out.
            kernel: odd; padded so that the size stays.
            settings: `seed`, `kept` and `again` of `solve.seeded.ternary`.
        """
        super().__init__()
        self.settings = dict(settings)
        self.shape = (filters, inputs, kernel, kernel)
        self.padding = kernel // 2
        # Where the default device is meta, there is nothing to be filled.
        weight = torch.zeros(self.shape)
        if not weight.is_meta:
            weight.copy_(ternary(self.shape, **self.settings))
        self.register_buffer("weight", weight)
        self.weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, filters, H, W)."""
        return functional.conv2d(x, self.weight, padding=self.padding)

    def packed_buffers(self) -> dict[str, Packed]:
        """Returns what a file may hold for the whole buffer, as long as it is what the seed makes."""
        return {"weight": Packed("share/seeded", self.shape, self.weight.dtype, {}, self.settings)}


class Block(nn.Module):
    """x + mix(relu(anchors(norm(x)))): what is trained are the norm and the 1 x 1 convolution."""

    def __init__(self, channels: int, anchors: Anchors, count: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.anchors = anchors
        self.mix = nn.Conv2d(count, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, channels, H, W)."""
        y: Tensor = x + self.mix(functional.relu(self.anchors(self.norm(x))))
        return y


@dataclass(frozen=True)
class LBCNN(Network):
    """A convolution, residual blocks of local binary convolutions, an average over 5 x 5 and two linear layers.

    Juefei-Xu, Boddeti and Savvides 2017 (arXiv 1608.06049). A convolution C k k q is replaced by m fixed filters and
    an m x q mix of their ReLU: C k k / m times fewer trained numbers. The defaults are the authors' for MNIST.

    Attributes:
        depth: blocks.
        width: channels of the blocks.
        anchors: fixed filters of each block.
        kernel: their size, odd.
        density: part of a block's anchors that isn't zero; authors call it sparsity.
        again: draw the places with replacement, as the authors' code does, so that 1 - e^-density is not zero.
        hidden: units of the hidden linear layer.
        seed: of the anchors, below 65536.
        num_classes: outputs.
        channels: of the pictures.
        size: of the pictures.

    >>> model = LBCNN(depth=1).build()
    >>> model.block1.anchors.weight.unique(), model.block1.anchors.weight.requires_grad
    (tensor([-1.,  0.,  1.]), False)
    """

    depth: int = 75
    width: int = 16
    anchors: int = 16
    kernel: int = 3
    density: float = 0.5
    again: bool = False
    hidden: int = 128
    seed: int = 0
    num_classes: int = 10
    channels: int = 1
    size: int = 28

    def __post_init__(self) -> None:
        check_net(self, 5)
        check_range("nets/lbcnn", "density", self.density, 0, 1)
        check_range("nets/lbcnn", "seed", self.seed, 0, 2**16 - 1)
        for name in ("depth", "width", "anchors", "hidden"):
            check_range("nets/lbcnn", name, getattr(self, name), 1, 2**16)
        check_range("nets/lbcnn", "kernel (odd)", self.kernel if self.kernel % 2 else 0, 1, 31)

    def build(self) -> nn.Module:
        """Returns the network, not trained: (N, channels, size, size) -> (N, num_classes)."""
        stem = nn.Conv2d(self.channels, self.width, self.kernel, padding=self.kernel // 2)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=stem, bn1=nn.BatchNorm2d(self.width), relu1=nn.ReLU())
        kept = int(self.density * self.anchors * self.width * self.kernel**2)
        for number in range(1, self.depth + 1):
            settings = {"seed": self.seed * 2**16 + number, "kept": kept, "again": self.again}
            anchors = Anchors(self.width, self.anchors, self.kernel, settings)
            layers[f"block{number}"] = Block(self.width, anchors, self.anchors)
        layers |= {"pool": nn.AvgPool2d(5, 5), "flatten": nn.Flatten(), "drop1": nn.Dropout(0.5)}
        layers["fc1"] = nn.Linear(self.width * (self.size // 5) ** 2, self.hidden)
        layers |= {"relu2": nn.ReLU(), "drop2": nn.Dropout(0.5), "fc2": nn.Linear(self.hidden, self.num_classes)}
        return nn.Sequential(layers)

    @classmethod
    def choices(cls) -> tuple[Network, ...]:
        """The authors' networks for MNIST, SVHN and CIFAR-10."""
        svhn = cls(40, 16, 512, density=0.9, hidden=512, channels=3, size=32)
        return cls(), svhn, cls(50, 384, 704, density=0.001, hidden=512, channels=3, size=32)

    @classmethod
    def tiny(cls) -> Network:
        """Two blocks."""
        return cls(2, 8, 8, hidden=16)
