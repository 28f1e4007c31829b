"""Convolution as one product of matrices: the windows of the input become columns (im2col)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.convolution.contract import Cost, window, with_bias
from lilliput.hardware.layer import Layer
from lilliput.kernels import im2col


@dataclass(frozen=True)
class Im2col:
    """y = W lowered(x), lowered(x) of R S C rows and P Q columns for each image (Chellapilla, Puri & Simard 2006).

    The workspace holds every number of the input about R S / stride^2 times. A kernel of 1 x 1 with stride 1 and no
    padding needs none: the input is its own lowered matrix.

    Attributes:
        per_image: lowers one image after the other, in the workspace of one.

    >>> Im2col().cost(Layer(1, 1, size=(7, 7), kernel=(3, 3))).workspace // 4
    225
    """

    per_image: bool = True

    def unsuited(self, layer: Layer) -> str | None:
        """It computes every layer."""
        return None

    def cost(self, layer: Layer, element: int = 4) -> Cost:
        """Returns the products of the direct convolution, and a workspace of N P Q R S C numbers (N = 1 per image)."""
        columns = layer.output_size[0] * layer.output_size[1] * (1 if self.per_image else layer.batch)
        rows = 0 if is_product(layer) else layer.kernel[0] * layer.kernel[1] * layer.channels
        return Cost(layer.macs, layer.outputs * (layer.depth - 1), columns * rows * element, layer.weights * element)

    def prepare(self, weight: Tensor, layer: Layer) -> Tensor:
        """Returns the weight as it is, contiguous."""
        return weight.contiguous()

    def run(self, x: Tensor, prepared: Tensor, layer: Layer, bias: Tensor | None = None) -> Tensor:
        """Returns the convolution; see `contract.Algorithm`. Images of float32 one by one run compiled."""
        if self.per_image and x.dtype == torch.float32:
            found: Tensor = im2col.im2col(x, prepared, bias, window(layer), layer.groups, False)
            return found
        matrices = _matrices(prepared, layer)
        y = x.new_empty(layer.batch, layer.groups, layer.filters // layer.groups, *layer.output_size)
        for images in _parts(self.per_image, layer):
            part, out = x[images], y[images]
            torch.matmul(matrices, lower(part, layer), out=out.flatten(3))
        return with_bias(y.reshape(layer.batch, layer.filters, *layer.output_size), bias)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """Returns the gradients: of the weight grad lowered(x)^T, of x the columns of W^T grad added back (col2im)."""
        matrices = _matrices(weight, layer)
        into, of_weight = torch.empty_like(x), torch.zeros_like(matrices)
        for images in _parts(self.per_image, layer):
            part = x[images]
            slope = grad[images].reshape(len(part), layer.groups, layer.filters // layer.groups, -1)
            of_weight += (slope @ lower(part, layer).transpose(2, 3)).sum(0)
            columns = matrices.transpose(1, 2) @ slope
            into[images] = functional.fold(
                columns.flatten(1, 2), layer.size, layer.kernel, layer.dilation, layer.padding, layer.stride
            )
        return into, of_weight.reshape(weight.shape)

    @classmethod
    def choices(cls) -> tuple[Im2col, ...]:
        """One image at a time, and all at once."""
        return (cls(), cls(per_image=False))


def _matrices(weight: Tensor, layer: Layer) -> Tensor:
    return weight.reshape(layer.groups, layer.filters // layer.groups, -1)


def _parts(per_image: bool, layer: Layer) -> list[slice]:
    return [slice(i, i + 1) for i in range(layer.batch)] if per_image else [slice(None)]


def is_product(layer: Layer) -> bool:
    """Whether a layer is a product of matrices as it stands."""
    return (layer.kernel, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0))


def lower(x: Tensor, layer: Layer) -> Tensor:
    """Returns the windows as columns, (images, groups, channels / groups R S, P Q).

    Args:
        x: (images, channels, height, width), some or all of the batch.
        layer: sizes.
    """
    if is_product(layer):
        return x.reshape(len(x), layer.groups, -1, layer.size[0] * layer.size[1])
    columns = functional.unfold(x, layer.kernel, layer.dilation, layer.padding, layer.stride)
    return columns.reshape(len(x), layer.groups, -1, columns.shape[-1])
