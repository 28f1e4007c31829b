"""Memory-efficient convolution (MEC): only columns are lowered, and overlapping sub-matrices are multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.convolution.contract import Cost, window, with_bias
from lilliput.hardware.layer import Layer
from lilliput.kernels import mec

ROWS = 100
"""Widest output for which the images of a batch are multiplied together (the paper's T, which depends on machines)."""


@dataclass(frozen=True)
class Mec:
    """L[n, q, h, s, c] = x[n, h, q stride + s, c]; the output's row p is L[:, :, p stride : p stride + R] times W.

    Cho & Brand 2017, arXiv 1706.06873. L holds Q H S C numbers for an image, H with its padding: about R / stride times
    fewer than im2col's, because the rows of a window are the neighbours that they are in the input. Solution A lowers
    the whole batch and multiplies all images at once, P products of N Q rows, and then brings rows, images and columns
    into order; solution B makes P products of Q rows for each image, in place.

    Attributes:
        solution: `"A"`, `"B"`, or `"auto"`: A for several images where the output is narrow and no
            larger than L, else B.

    >>> Mec().cost(Layer(1, 1, size=(7, 7), kernel=(3, 3))).workspace // 4
    105
    """

    solution: Literal["auto", "A", "B"] = "auto"

    def unsuited(self, layer: Layer) -> str | None:
        """The rows of a window must be neighbours."""
        if layer.dilation[0] != 1 and layer.kernel[0] > 1:
            return f"dilation {layer.dilation[0]} down: rows that aren't neighbours are no sub-matrix; use im2col"
        return None

    def cost(self, layer: Layer, element: int = 4) -> Cost:
        """Returns the products of the direct convolution, and a workspace of N Q H S C numbers, N = 1 for B."""
        held = layer.output_size[1] * layer.padded[0] * layer.kernel[1] * layer.channels
        held *= layer.batch if self.chosen(layer) == "A" else 1
        return Cost(layer.macs, layer.outputs * (layer.depth - 1), held * element, layer.weights * element)

    def prepare(self, weight: Tensor, layer: Layer) -> Tensor:
        """Returns the weight with its channels last, (filters, R, S, channels / groups)."""
        return mec.prepare(weight)

    def run(self, x: Tensor, prepared: Tensor, layer: Layer, bias: Tensor | None = None) -> Tensor:
        """Returns the convolution; see `contract.Algorithm`. Solution B runs compiled for float32."""
        together = self.chosen(layer) == "A"
        if not together and x.dtype == torch.float32:
            found: Tensor = mec.mec(x, prepared, bias, window(layer), layer.groups, False)
            return found
        matrices = prepared.reshape(layer.groups, layer.filters // layer.groups, -1).transpose(1, 2)
        parts = [slice(None)] if together else [slice(i, i + 1) for i in range(layer.batch)]
        y = torch.cat([self._multiplied(lower(x[part], layer), matrices, layer) for part in parts])
        return with_bias(y.reshape(layer.batch, layer.filters, *layer.output_size), bias)

    @staticmethod
    def _multiplied(lowered: Tensor, matrices: Tensor, layer: Layer) -> Tensor:
        """Rows of the output, (images, groups, filters / groups, P, Q), of sub-matrices that overlap."""
        groups, images, wide = lowered.shape[:3]
        each = layer.kernel[1] * layer.channels // groups
        rows = lowered.reshape(groups, images * wide, -1)
        y = lowered.new_empty(images, groups, matrices.shape[2], *layer.output_size)
        for row in range(layer.output_size[0]):
            begin = row * layer.stride[0] * each
            found = torch.bmm(rows[:, :, begin : begin + layer.kernel[0] * each], matrices)
            y[..., row, :] = found.reshape(groups, images, wide, -1).permute(1, 0, 3, 2)
        return y

    def chosen(self, layer: Layer) -> str:
        """Returns `"A"` or `"B"`, the solution for a layer."""
        if self.solution != "auto":
            return self.solution
        lowered = layer.output_size[1] * layer.padded[0] * layer.kernel[1] * layer.channels * layer.batch
        fits = layer.outputs <= lowered
        return "A" if layer.batch > 1 and layer.output_size[1] <= ROWS and fits else "B"

    @classmethod
    def choices(cls) -> tuple[Mec, ...]:
        """Both solutions."""
        return (cls("A"), cls("B"))


def lower(x: Tensor, layer: Layer) -> Tensor:
    """Returns L, (groups, images, Q, H, S, channels / groups), H with its padding.

    Args:
        x: (images, channels, height, width), some or all of the batch.
        layer: sizes.
    """
    wide, (up, left), (high, width) = layer.output_size[1], layer.padding, layer.size
    held = x.new_zeros(layer.groups, len(x), wide, layer.padded[0], layer.kernel[1], layer.channels // layer.groups)
    picture = x.reshape(len(x), layer.groups, -1, high, width)
    for tap in range(layer.kernel[1]):
        shift, stride = tap * layer.dilation[1] - left, layer.stride[1]
        first = max(0, -(shift // stride))
        end = min(wide, (width - 1 - shift) // stride + 1)
        if end > first:
            columns = picture[..., first * stride + shift : (end - 1) * stride + shift + 1 : stride]
            held[:, :, first:end, up : up + high, tap] = columns.permute(1, 0, 4, 3, 2)
    return held
