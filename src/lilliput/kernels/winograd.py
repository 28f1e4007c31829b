"""Winograd's convolution F(2, 3), F(4, 3) and F(6, 3) for kernels of 3 x 3, blocks of tiles in a small workspace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.core.packed import Packed, unpack
from lilliput.graph.ir import Node
from lilliput.graph.layers import arguments_of, layer_of
from lilliput.kernels import tiles
from lilliput.kernels.geometry import checked, numbers

PANEL = 16
"""Filters that lie side by side in a prepared weight."""

OUTPUTS = (2, 4, 6)
"""Edges of a tile that there are kernels for."""

TOLERANCES = {2: 1e-5, 4: 2e-5, 6: 5e-5}
"""How far a layer's result may be from the dense one's, by the edge of a tile; see `found`."""

LEAST, USUAL, MOST = 3 << 18, 3 << 19, 8 << 20
"""Bytes of workspace: for weights that stay in a cache of their own; for larger ones; for a layer in a single block."""

LIGHT, HEAVY = 1 << 20, 4 << 20
"""Bytes of transformed weights: up to which they stay in the cache, from which one block is worth a large workspace."""

CHANNELS = 32
"""Channels and filters from which the products outweigh the transforms."""


def prepare(weight: Tensor, output: int) -> Tensor:
    """Transforms a weight and lays it out for the kernels: 16 filters side by side.

    Args:
        weight: (filters, channels, 3, 3), floating-point.
        output: edge of a tile: 2, 4 or 6.

    Returns:
        ((output + 2)^2, ceil(filters / 16), channels, 16), float32.

    >>> prepare(torch.ones(20, 3, 3, 3), 4).shape
    torch.Size([36, 2, 3, 16])
    """
    wide = tiles.transformed(weight.float(), output).flatten(0, 1)
    wide = functional.pad(wide, (0, 0, 0, -wide.shape[1] % PANEL))
    return wide.reshape(len(wide), -1, PANEL, wide.shape[2]).transpose(2, 3).contiguous()


def restored(weight: Tensor, filters: int) -> Tensor:
    """Returns G g G^T, (output + 2, output + 2, filters, channels), of a prepared weight."""
    edge = round(len(weight) ** 0.5)
    rows = weight.transpose(2, 3).flatten(1, 2)[:, :filters]
    return rows.reshape(edge, edge, filters, -1)


@dataclass(frozen=True)
class Block:
    """How the workspace is laid out.

    Attributes:
        tiles: that are worked on at a time.
        into: floats of a tile's channels at a place.
        out: floats of a tile's filters at a place.
        floats: of it all.
    """

    tiles: int
    into: int
    out: int
    floats: int


def block_of(total: int, channels: int, filters: int, output: int) -> Block:
    """Returns the workspace for a layer.

    Transformed weights are read from memory once for each block. Heavy ones want a single block, if its workspace isn't
    too large for the cache that all share; others want blocks that stay in a core's own.

    Args:
        total: tiles of the whole batch.
        channels: that go in.
        filters: that come out.
        output: edge of a tile.

    >>> block_of(196, 256, 256, 4).tiles, block_of(49, 256, 512, 4).tiles
    (20, 49)
    """
    places = (output + 2) ** 2
    into, out = _row(channels), _row(filters)
    each, weights = places * (into + out) * 4, places * channels * filters * 4
    room = LEAST if weights <= LIGHT else MOST if weights >= HEAVY and total * each <= MOST else USUAL
    count = min(max(PANEL, room // each), max(total, PANEL))
    return Block(count, into, out, places * count * (into + out))


def _row(count: int) -> int:
    """Floats of a row: whole vectors, and no multiple of 1 KB, since such rows would share few sets of the cache."""
    whole = count + -count % PANEL
    return whole + PANEL if whole % 256 == 0 else whole


def _shape(
    x: Tensor, weight: Tensor, bias: Tensor | None, filters: int, output: int, padding: list[int], rectify: bool
) -> Tensor:
    return x.new_empty((len(x), filters, x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2))


@operator(_shape)
def winograd(
    x: Tensor, weight: Tensor, bias: Tensor | None, filters: int, output: int, padding: list[int], rectify: bool
) -> Tensor:
    """Computes a 3 x 3 convolution of stride 1 by F(output x output, 3 x 3) (Lavin & Gray 2015, arXiv 1509.09308).

    Args:
        x: (batch, channels, height, width), float32.
        weight: by `prepare`, for the same output.
        bias: (filters,), float32, or None.
        filters: that come out.
        output: edge of a tile: 2, 4 or 6.
        padding: down and across.
        rectify: whether max(0, y) is returned instead of y.

    Returns:
        (batch, filters, height + 2 padding - 2, width + 2 padding - 2).

    Raises:
        MethodError: shapes or types that don't fit.

    >>> weight = prepare(torch.ones(1, 1, 3, 3), 2)
    >>> winograd(torch.ones(1, 1, 3, 3), weight, None, 1, 2, [0, 0], False).item()
    9.0
    """
    places, panels = (output + 2) ** 2, (filters + PANEL - 1) // PANEL
    if output not in OUTPUTS or len(padding) != 2 or min(padding) < 0 or filters < 1:
        raise MethodError(f"winograd: outputs of {OUTPUTS} and a padding down and across, not {output} and {padding}")
    checked("winograd", x, weight, None, 1)
    if weight.shape != (places, panels, x.shape[1], PANEL):
        raise MethodError(
            f"winograd: a weight of {tuple(weight.shape)} isn't one of {filters} filters, {x.shape[1]} channels"
        )
    if bias is not None and (bias.dtype != torch.float32 or bias.shape != (filters,)):
        raise MethodError(f"winograd: a bias of {tuple(bias.shape)} {bias.dtype}, not of {filters} float32")
    y = _shape(x, weight, bias, filters, output, padding, rectify)
    batch, channels, height, width = x.shape
    if min(y.shape) < 1:
        raise MethodError(f"winograd: an input of {tuple(x.shape)} with padding {padding} has no output")
    total = batch * -(-y.shape[2] // output) * -(-y.shape[3] // output)
    block = block_of(total, channels, filters, output)
    sizes = numbers(
        *(batch, channels, filters, height, width, *padding, channels * height * width, y[0].numel()),
        *(block.tiles, block.into, block.out),
    )
    work = x.new_empty(block.floats)
    if run("winograd", x.contiguous(), weight, bias, y, work, sizes, output, int(rectify)):
        return y
    # Copied, so that the strides of a batch of one are those that the kernel gives.
    y.copy_(tiles.correlate(x, restored(weight, filters), output, 3, (padding[0], padding[1])))
    y = y if bias is None else y.add_(bias[:, None, None])
    return y.relu_() if rectify else y


class WinogradConvolution(nn.Module):
    """A dense 3 x 3 convolution of a graph by F(m x m, 3 x 3); see `found`.

    Args:
        weight: (filters, channels, 3, 3).
        padding: down and across.
        output: m, the edge of a tile: 2, 4 or 6.
    """

    rectifies = True
    weight: Tensor

    def __init__(self, weight: Tensor, padding: tuple[int, int], output: int = 4) -> None:
        super().__init__()
        self.kind, self.tolerance = f"Winograd F({output}, 3)", TOLERANCES[output]
        self.filters, self.padding, self.output = len(weight), list(padding), output
        self.register_buffer("weight", prepare(weight, output), persistent=False)

    def forward(self, x: Tensor, bias: Tensor | None = None, rectify: bool = False) -> Tensor:
        """Returns the convolution, with max(0, y) for y if `rectify`."""
        found: Tensor = winograd(x, self.weight, bias, self.filters, self.output, self.padding, rectify)
        return found


def serves(packed: Packed, node: Node) -> nn.Module | None:
    """Returns the module for a dense 3 x 3 convolution of stride 1 with enough channels, whatever form its weight has.

    See `kernels.found`.
    """
    padding = _padding(packed.shape, node)
    return None if padding is None else WinogradConvolution(unpack(packed).float(), padding)


def serves_dense(weight: Tensor, node: Node) -> nn.Module | None:
    """Returns the same for a weight of float32 as it is."""
    padding = _padding(tuple(weight.shape), node) if weight.dtype == torch.float32 else None
    return None if padding is None else WinogradConvolution(weight.detach(), padding)


def _padding(shape: tuple[int, ...], node: Node) -> tuple[int, int] | None:
    """The padding of a convolution that is served; None for others."""
    layer = layer_of(node)
    if layer is None or layer.kind != "convolution" or layer.groups != 1 or len(shape) != 4:
        return None
    if tuple(shape[2:]) != (3, 3) or min(shape[:2]) < CHANNELS:
        return None
    bound = arguments_of(node)
    if _two(bound["stride"]) != (1, 1) or _two(bound["dilation"]) != (1, 1):
        return None
    padding = bound["padding"]
    return {"valid": (0, 0), "same": (1, 1)}.get(padding) if isinstance(padding, str) else _two(padding)


def _two(value: object) -> tuple[int, int] | None:
    items = value if isinstance(value, tuple | list) else (value,)
    if not all(isinstance(item, int) for item in items) or len(items) not in (1, 2):
        return None
    return int(items[0]), int(items[-1])
