"""Direct convolution: every product, one tap of the kernel after the other, without any workspace."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lilliput.convolution.contract import Cost, grouped
from lilliput.hardware.layer import Layer


@dataclass(frozen=True)
class Direct:
    """The definition: N K C P Q R S products, added where they belong.

    The oracle of the others in float64; torch's own convolution (oneDNN) is what a direct one is measured by.

    >>> import torch
    >>> x, layer = torch.arange(4.0).reshape(1, 1, 2, 2), Layer(1, 1, size=(2, 2), kernel=(2, 2))
    >>> Direct().run(x, torch.ones(1, 1, 2, 2), layer).item(), Direct().cost(layer).multiplications
    (6.0, 4)
    """

    def unsuited(self, layer: Layer) -> str | None:
        """It computes every layer."""
        return None

    def cost(self, layer: Layer, element: int = 4) -> Cost:
        """Returns N K C P Q R S multiplications and no workspace."""
        return Cost(layer.macs, layer.outputs * (layer.depth - 1), 0, layer.weights * element)

    def prepare(self, weight: Tensor, layer: Layer) -> Tensor:
        """Returns the weight as it is."""
        return weight

    def run(self, x: Tensor, prepared: Tensor, layer: Layer, bias: Tensor | None = None) -> Tensor:
        """Returns the convolution; see `contract.Algorithm`."""
        high, wide = layer.output_size
        y = x.new_zeros(layer.batch, layer.filters, high, wide)
        if bias is not None:
            y += bias[:, None, None]
        into, out = grouped(x, layer), grouped(y, layer)
        weight = prepared.reshape(layer.groups, -1, *prepared.shape[1:])
        for r in range(layer.kernel[0]):
            rows, from_rows = _reach(layer, 0, r)
            for s in range(layer.kernel[1]):
                columns, from_columns = _reach(layer, 1, s)
                part = out[..., rows, columns]
                for c in range(weight.shape[2]):
                    part.addcmul_(into[:, :, c, None, from_rows, from_columns], weight[None, :, :, c, r, s, None, None])
        return y

    @classmethod
    def choices(cls) -> tuple[Direct, ...]:
        """None: torch's own direct convolution is what the others are measured beside."""
        return ()


def _reach(layer: Layer, axis: int, tap: int) -> tuple[slice, slice]:
    """Places of the output whose input at this tap lies inside, and those places of the input."""
    stride, shift = layer.stride[axis], tap * layer.dilation[axis] - layer.padding[axis]
    first = max(0, -(shift // stride))
    end = max(first, min(layer.output_size[axis], (layer.size[axis] - 1 - shift) // stride + 1))
    start = first * stride + shift
    return slice(first, end), slice(
        start, start + max(0, (end - first - 1) * stride + 1) if end > first else start, stride
    )
