"""Convolutions of sparse weights: 1 x 1 by tiles of pixels, k x k direct, in blocks of 1, 4 or 16 outputs."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.core.packed import Packed
from lilliput.graph.ir import Node
from lilliput.kernels.sparse import Blocks, blocks, check, refuse, sparse_weight
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
    if x.dim() != 4 or x.dtype != torch.float32:
        raise MethodError(f"sparse_conv: takes images of float32, not {tuple(x.shape)} of {x.dtype}")
    sizes, columns, numbers = plan(tuple(x.shape), outputs, tuple(window))
    check(start, column, value, outputs, "sparse_conv")
    block = value.shape[1]
    if sizes.groups > 1 and outputs // sizes.groups % block:
        raise MethodError(f"sparse_conv: blocks of {block} outputs lie in two groups")
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != torch.float32):
        raise MethodError(f"sparse_conv: a bias of {tuple(bias.shape)} {bias.dtype} for {outputs} outputs")
    y, status = (
        x.new_empty((x.shape[0], outputs, *sizes.out(x.shape[2], x.shape[3]))),
        torch.empty(1, dtype=torch.int32),
    )
    more = (len(column), block, 0, status, None, -math.inf, math.inf)
    if run("sparse_conv", numbers, start, column, value, bias, x.contiguous(), y, *more):
        if status.item():
            refuse("sparse_conv", columns)
        return y
    weight = Blocks(start, column, value)
    weight.check_places(columns, "sparse_conv")
    return sizes.convolve(x, weight.dense(outputs, columns).reshape(outputs, -1, *sizes.kernel), bias).contiguous()


@lru_cache(maxsize=1024)
def plan(shape: tuple[int, ...], outputs: int, window: tuple[int, ...]) -> tuple[Window, int, Tensor]:
    """Checks sizes and returns what follows from them: the window, the columns of the matrix, what the kernel is told.

    Args:
        shape: (batch, channels, height, width) of what goes in.
        outputs: channels that come out.
        window: `Window.numbers`.

    Raises:
        MethodError: no convolution has such sizes.
    """
    sizes = Window.of(list(window))
    _, channels, height, width = shape
    if not channels or channels % sizes.groups or outputs < 1 or outputs % sizes.groups:
        raise MethodError(f"sparse_conv: {outputs} outputs of {channels} channels in {sizes.groups} groups")
    out = sizes.out(height, width)
    if min(out) < 1:
        raise MethodError(f"sparse_conv: {shape} is smaller than the window of {sizes.kernel}")
    high, wide = (shape[2 + i] + 2 * sizes.padding[i] + sizes.stride[i] for i in (0, 1))
    if channels * high * wide >= 1 << 31:
        raise MethodError(f"sparse_conv: an image of {shape[1:]} is beyond 2^31 numbers")
    columns = channels // sizes.groups * sizes.kernel[0] * sizes.kernel[1]
    return sizes, columns, torch.tensor([*shape, outputs, sizes.groups, *window[:8], *out])


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
        self.outputs, self.window, self.numbers = len(weight), window, window.numbers
        self.kind = f"sparse, blocks of {part.block}" if part.block > 1 else "sparse, single weights"
        for name in ("start", "column", "value"):
            self.register_buffer(name, getattr(part, name))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the layer's output; x is (batch, channels, *size) or one image without the batch."""
        single = x.dim() == self.window.dims + 1
        whole = x[None] if single else x
        image = whole[:, :, None] if self.window.dims == 1 else whole
        start, column, value = self.start, self.column, self.value
        y = sparse_conv(image, start, column, value, bias, self.outputs, self.numbers)
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
