"""The numerical error of an algorithm of convolution, measured against float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from lilliput.convolution.contract import Algorithm, check
from lilliput.hardware.layer import Layer


@dataclass(frozen=True)
class Error:
    """How far a result of float32 is from that of float64.

    Attributes:
        largest: |difference|, the largest, over the largest |result|.
        ulps: |difference| in units of the last place of the largest result, their mean.
        most_ulps: the largest of these.
    """

    largest: float
    ulps: float
    most_ulps: float


def error(algorithm: Algorithm, layer: Layer, seed: int = 0) -> Error:
    """Measures the error for inputs and weights from U(-1, 1).

    The unit is the last place of the largest result: fast algorithms are exact beside the norm of the result, not
    beside each of its numbers.

    Args:
        algorithm: in float32.
        layer: that it is suited to.
        seed: of the numbers.

    Raises:
        MethodError: it isn't suited to the layer.

    >>> from lilliput.convolution.winograd import Winograd
    >>> layer = Layer(16, 4, size=(12, 12), kernel=(3, 3))
    >>> error(Winograd(2), layer).largest < error(Winograd(6), layer).largest < 1e-4
    True
    """
    check(algorithm, layer)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(layer.batch, layer.channels, *layer.size, generator=generator) * 2 - 1
    weight = torch.rand(layer.filters, layer.channels // layer.groups, *layer.kernel, generator=generator) * 2 - 1
    found = algorithm.run(x, algorithm.prepare(weight, layer), layer)
    right = functional.conv2d(
        x.double(), weight.double(), None, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    difference, top = (found - right).abs(), right.abs().max()
    units = difference / (2.0 ** (torch.floor(torch.log2(top)) - 23))
    return Error(float(difference.max() / top), float(units.mean()), float(units.max()))
