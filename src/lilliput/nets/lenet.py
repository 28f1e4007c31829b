"""LeNet-300-100 and Caffe's LeNet-5, the two networks of the first papers on pruning."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lilliput.core.checks import check_range
from lilliput.core.contracts import Network
from lilliput.nets.parts import check_choice, check_net

FORMS = ("300-100", "5")


@dataclass(frozen=True)
class LeNet(Network):
    """Three linear layers, or two convolutions and two linear layers.

    LeCun et al. 1998; `"5"` as Caffe has it, 20-50-500-10 with 5 x 5 filters, max pooling, and no ReLU after the
    convolutions.

    Attributes:
        form: `"300-100"` or `"5"`.
        dropout: part of the hidden values dropped in training, in front of each linear layer but the first of
            300-100; adds modules, but no parameters or names.
        num_classes: outputs.
        channels: of the pictures.
        size: of the pictures.

    >>> [sum(p.numel() for p in LeNet(form).build().parameters()) for form in ("300-100", "5")]
    [266610, 431080]
    """

    form: Literal["300-100", "5"] = "5"
    dropout: float = 0.0
    num_classes: int = 10
    channels: int = 1
    size: int = 28

    def __post_init__(self) -> None:
        check_net(self, 16 if self.form == "5" else 2)
        check_choice(self, "form", FORMS)
        check_range("nets/lenet", "dropout", self.dropout, 0, 1, open_high=True)

    def build(self) -> nn.Module:
        """Returns the network, not trained: (N, channels, size, size) -> (N, num_classes)."""
        layers: dict[str, nn.Module] = self._perceptron() if self.form == "300-100" else self._convolutional()
        kept = {name: layer for name, layer in layers.items() if not isinstance(layer, nn.Dropout) or layer.p > 0}
        return nn.Sequential(OrderedDict(kept))

    def _perceptron(self) -> dict[str, nn.Module]:
        return {
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(self.channels * self.size**2, 300),
            "relu1": nn.ReLU(),
            "drop1": nn.Dropout(self.dropout),
            "fc2": nn.Linear(300, 100),
            "relu2": nn.ReLU(),
            "drop2": nn.Dropout(self.dropout),
            "fc3": nn.Linear(100, self.num_classes),
        }

    def _convolutional(self) -> dict[str, nn.Module]:
        side = ((self.size - 4) // 2 - 4) // 2
        return {
            "conv1": nn.Conv2d(self.channels, 20, kernel_size=5),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(20, 50, kernel_size=5),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "drop1": nn.Dropout(self.dropout),
            "fc1": nn.Linear(50 * side * side, 500),
            "relu1": nn.ReLU(),
            "drop2": nn.Dropout(self.dropout),
            "fc2": nn.Linear(500, self.num_classes),
        }

    @classmethod
    def choices(cls) -> tuple[Network, ...]:
        """Both."""
        return cls("300-100"), cls("5")

    @classmethod
    def tiny(cls) -> Network:
        """As it is."""
        return cls()
