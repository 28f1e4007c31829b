"""Dense convolutions by the algorithm that `convolution.choose` found to be the fastest for their sizes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.convolution.choose import fastest
from lilliput.convolution.contract import Algorithm, layer_of
from lilliput.convolution.fft import Fft
from lilliput.convolution.winograd import Winograd
from lilliput.core.errors import DeviceError, MethodError
from lilliput.graph.ir import Node
from lilliput.graph.layers import CONVOLUTIONS, arguments_of
from lilliput.hardware.layer import Layer
from lilliput.kernels.winograd import OUTPUTS, WinogradConvolution

LEAST = 1 << 21
"""Multiply-accumulates from which on it is worth a part of its own, and the time that measuring takes."""


class Convolved(nn.Module):
    """A convolution of a graph by an algorithm of `convolution/`; see `kernels.found` for how it is called.

    Args:
        weight: (filters, channels, height, width).
        algorithm: one that suits the layer.
        layer: its sizes; other batches and heights and widths may come.
    """

    tolerance = 1e-5
    rectifies = True
    prepared: Tensor

    def __init__(self, weight: Tensor, algorithm: Algorithm, layer: Layer) -> None:
        super().__init__()
        self.kind = words(algorithm)
        self.algorithm, self.layer = algorithm, layer
        # Spectra of a whole input depend on its size: at others the weight itself is needed.
        self.sized = isinstance(algorithm, Fft) and not algorithm.tile
        self.whole = weight if self.sized else None
        self.register_buffer("prepared", algorithm.prepare(weight, layer), persistent=False)

    def forward(self, x: Tensor, bias: Tensor | None = None, rectify: bool = False) -> Tensor:
        """Returns the convolution, with max(0, y) for y if `rectify`.

        Raises:
            MethodError: an input that the kernel doesn't fit into.
        """
        size = (x.shape[2], x.shape[3])
        try:
            layer = replace(self.layer, batch=len(x), size=size)
        except DeviceError as error:
            raise MethodError(f"a convolution of {tuple(x.shape)}: {error}") from None
        if self.whole is not None and size != self.layer.size:
            y = functional.conv2d(x, self.whole, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        else:
            y = self.algorithm.run(x, self.prepared, layer, bias)
        return y.relu_() if rectify else y


def words(algorithm: Algorithm) -> str:
    """Returns an algorithm's name for listings.

    >>> words(Winograd(6)), words(Fft(32))
    ('Winograd F(6, 3)', 'FFT, tiles of 32')
    """
    if isinstance(algorithm, Winograd):
        return f"Winograd F({algorithm.output}, 3)"
    if isinstance(algorithm, Fft):
        return f"FFT, tiles of {algorithm.tile}" if algorithm.tile else "FFT"
    return {"Mec": "MEC", "Im2col": "im2col"}.get(type(algorithm).__name__, type(algorithm).__name__)


def asked(node: Node, weight: Tensor) -> bool:
    """Whether a layer is one that algorithms are measured for: a dense convolution of two dimensions in float32."""
    if node.operator not in CONVOLUTIONS or weight.ndim != 4 or weight.dtype != torch.float32:
        return False
    return bool(arguments_of(node)["groups"] == 1)


def module_for(node: Node, weight: Tensor, x: Tensor, limit: int | None = None) -> nn.Module | None:
    """Returns the module for a convolution by the fastest algorithm; None where torch's own is, or it isn't worth it.

    Args:
        node: that was `asked` for.
        weight: its weight, unpacked.
        x: what goes in.
        limit: bytes of workspace.
    """
    layer = _sizes(node, weight, x)
    algorithm = None if layer is None or layer.macs < LEAST else fastest(layer, limit)
    if layer is None or algorithm is None:
        return None
    if isinstance(algorithm, Winograd) and layer.kernel == (3, 3) and algorithm.output in OUTPUTS:
        return WinogradConvolution(weight, layer.padding, algorithm.output)
    return Convolved(weight, algorithm, layer)


def _sizes(node: Node, weight: Tensor, x: Tensor) -> Layer | None:
    """The sizes of a convolution; None of one that no algorithm takes."""
    if x.ndim != 4 or x.dtype != weight.dtype:
        return None
    bound = arguments_of(node)
    padding = bound["padding"]
    if isinstance(padding, str):
        reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(_two(bound["dilation"]), weight.shape[2:])]
        if any(size % 2 for size in reach):
            return None
        padding = tuple(size // 2 for size in reach)
    try:
        return layer_of(x, weight, _two(bound["stride"]), _two(padding), _two(bound["dilation"]))
    except MethodError:
        return None


def _two(value: int | tuple[int, ...]) -> tuple[int, int]:
    items = value if isinstance(value, tuple) else (value,)
    return int(items[0]), int(items[-1])
