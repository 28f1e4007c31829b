"""How many parameters a model has, and how many multiplications one input takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lilliput.graph.macs import macs


@dataclass(frozen=True)
class Counts:
    """Of one model.

    Attributes:
        parameters: weights, biases and the scales of norms; running statistics and fixed buffers aren't any.
        macs: multiplications with additions of linear layers, convolutions, products of matrices and attention, for
            the example as a whole; norms, activations and biases aren't counted.
    """

    parameters: int
    macs: int


def counts(model: nn.Module, example: Any) -> Counts:
    """Counts parameters, tied ones once, and multiply-accumulates.

    Args:
        model: any module, also on the meta device, where nothing is computed; run once, in eval mode.
        example: an input (a tensor, tuple or dict); a batch of one gives the cost of one.

    >>> counts(nn.Conv2d(3, 8, 3, padding=1), torch.rand(1, 3, 4, 4))
    Counts(parameters=224, macs=3456)
    """
    return Counts(sum(p.numel() for p in model.parameters()), macs(model, example))


def counts_of(net: Any) -> Counts:
    """Counts a network of `nets/` for one picture, from its settings alone: nothing is allocated or computed.

    >>> from lilliput.core.method import find
    >>> counts_of(find("nets", "lenet")())
    Counts(parameters=431080, macs=2293000)
    """
    with torch.device("meta"):
        model = net.build()
        picture = torch.empty(1, net.channels, net.size, net.size)
    return counts(model, picture)
