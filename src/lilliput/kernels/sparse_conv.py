"""Convolutions of sparse weights: 1 x 1 by tiles of pixels, k x k direct, in blocks of 1, 4 or 16 outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.core.packed import Packed
from lilliput.graph.ir import Node
from lilliput.kernels.sparse import Blocks, blocks, refuse, sparse_weight
from lilliput.kernels.window import Window, window_of


def _conv_shape(
    x: Tensor, start: Tensor, column: Tensor, value: Tensor, bias: Tensor | None, outputs: int, window: list[int]
) -> Tensor:
    return x.new_empty((x.shape[0], outputs, *Window.of(window).out(x.shape[2], x.shape[3])))


@operator(_conv_shape)
def sparse_conv(
    x: Tensor, start: Tensor, column: Tensor, value: Tensor, bias: Tensor | None, outputs: int, window: list[int]
) -> Tensor:
    """Convolves with a sparse weight: y[o] = bias[o] + sum over columns (channel, place) of value x[channel, place].

    1 x 1 windows multiply tiles of 16 to 64 pixels (as Elsen et al. 2020, arXiv 1911.09723); larger ones read the
    stretched input without lowering it (Park et al. 2017, arXiv 1608.01409).

    Args:
        x: (batch, channels, height, width), float32.
        start: by `sparse.blocks`, of the weight as a matrix (outputs, channels / groups * window).
        column: the same.
        value: the same.
        bias: (outputs,), float32, or None.
        outputs: how many.
        window: `Window.numbers`.

    Returns:
        (batch, outputs, *window.out(height, width)), float32.

    Raises:
        MethodError: shapes or types that don't fit, a list that points outside of the matrix.

    >>> part = blocks(torch.tensor([[0.0, 2.0]]))
    >>> numbers = Window((1, 1)).numbers
    >>> sparse_conv(torch.ones(1, 2, 1, 3), part.start, part.column, part.value, None, 1, numbers).tolist()
    [[[[2.0, 2.0, 2.0]]]]
    """
    sizes = Window.of(window)
    weight = Blocks(start, column, value)
    if x.dim() != 4 or x.dtype != torch.float32 or x.shape[1] % sizes.groups or outputs < 1 or outputs % sizes.groups:
        raise MethodError(f"sparse_conv: {outputs} outputs in {sizes.groups} groups of {x.dtype} {tuple(x.shape)}")
    columns = x.shape[1] // sizes.groups * sizes.kernel[0] * sizes.kernel[1]
    weight.check(outputs, columns, "sparse_conv")
    if sizes.groups > 1 and outputs // sizes.groups % weight.block:
        raise MethodError(f"sparse_conv: blocks of {weight.block} outputs lie in two groups")
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != torch.float32):
        raise MethodError(f"sparse_conv: a bias of {tuple(bias.shape)} {bias.dtype} for {outputs} outputs")
    height, width = sizes.out(x.shape[2], x.shape[3])
    if min(height, width) < 1:
        raise MethodError(f"sparse_conv: {tuple(x.shape)} is smaller than the window of {sizes.kernel}")
    padded = (x.shape[2] + 2 * sizes.padding[0] + sizes.stride[0]) * (
        x.shape[3] + 2 * sizes.padding[1] + sizes.stride[1]
    )
    if x.shape[1] * padded >= 1 << 31 or not x.shape[1]:
        raise MethodError(f"sparse_conv: an image of {tuple(x.shape[1:])} is beyond 2^31 numbers, or none")
    y = x.new_empty((x.shape[0], outputs, height, width))
    status = torch.zeros(1, dtype=torch.int32)
    shape = [x.shape[0], x.shape[1], x.shape[2], x.shape[3], outputs, sizes.groups, *window[:8], height, width]
    arguments = (torch.tensor(shape), start, column, value, bias, x.contiguous(), y, len(column), weight.block, status)
    if run("sparse_conv", *arguments):
        if int(status):
            refuse("sparse_conv", columns)
        return y
    weight.check_places(columns, "sparse_conv")
    matrix = weight.dense(outputs, columns)
    return sizes.convolve(x, matrix.reshape(outputs, -1, *sizes.kernel), bias).contiguous()


class SparseConv(nn.Module):
    """A convolution whose weight is kept, and multiplied, sparse.

    Pays from about 70 % zeros: see docs/benchmarks/sparse-kernels.md.

    Args:
        weight: (outputs, channels / groups, *window), float32, one or two dimensions.
        window: of the convolution.
        block: outputs in a block, 1, 4 or 16; 0 for what takes the least time.
    """

    start: Tensor
    column: Tensor
    value: Tensor

    def __init__(self, weight: Tensor, window: Window, block: int = 0) -> None:
        super().__init__()
        part = blocks(weight.reshape(len(weight), -1).contiguous(), block, window.groups)
        self.outputs, self.window = len(weight), window
        self.kind = f"sparse, blocks of {part.block}" if part.block > 1 else "sparse, single weights"
        for name in ("start", "column", "value"):
            self.register_buffer(name, getattr(part, name))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the layer's output; x is (batch, channels, *size) or one image without the batch."""
        single = x.dim() == self.window.dims + 1
        whole = x[None] if single else x
        image = whole[:, :, None] if self.window.dims == 1 else whole
        start, column, value = self.start, self.column, self.value
        y = sparse_conv(image, start, column, value, bias, self.outputs, self.window.numbers)
        y = y[:, :, 0] if self.window.dims == 1 else y
        return y[0] if single else y


def serves(packed: Packed, node: Node) -> SparseConv | None:
    """Serves convolutions of one or two dimensions of whose weight about half is zeros, or more.

    `prune/sparse` in any pattern, and methods that keep zeros after it (`share/kmeans`, `quantize/uniform`, ...), whose
    values are decoded once.
    """
    window = window_of(node, packed.shape)
    weight = sparse_weight(packed) if window is not None else None
    return SparseConv(weight, window) if window is not None and weight is not None else None
