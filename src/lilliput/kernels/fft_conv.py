"""Convolution by Fourier transforms of tiles of 16 x 16 or 32 x 32, in blocks of tiles in a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.kernels.geometry import checked, numbers, outputs

TILES = (16, 32)
"""Edges of a tile that there are kernels for."""

UNIT = 16
"""Complex numbers that lie together, real parts first."""

USUAL, MOST = 3 << 19, 8 << 20
"""Bytes of workspace that are aimed at: in a core's own cache, and for heavy spectra of kernels."""

HEAVY = 6 << 20
"""Bytes of these spectra from which on it costs more to read them for each block than to leave that cache."""


def prepare(weight: Tensor, tile: int, groups: int = 1, dilation: Sequence[int] = (1, 1)) -> Tensor:
    """Returns the conjugate spectra of kernels, laid out for the kernel; see src/cpp/kernels/fft_conv.cpp.

    Args:
        weight: (filters, channels / groups, height, width), floating-point.
        tile: edge, 16 or 32, no less than the dilated kernel.
        groups: of channels.
        dilation: down and across.

    Returns:
        (groups, tile^2 / 32, filters / groups, channels / groups, 32), float32.

    >>> import torch
    >>> prepare(torch.ones(4, 3, 5, 5), 16).shape
    torch.Size([1, 8, 4, 3, 32])
    """
    kernels = weight.detach().double().reshape(groups, -1, *weight.shape[1:])
    extent = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilation)]
    spread = kernels.new_zeros(*kernels.shape[:3], *extent)
    spread[..., :: dilation[0], :: dilation[1]] = kernels
    spectra = torch.fft.rfft2(spread, s=(tile, tile)).conj() / (2 * tile * tile)
    half, lanes = tile // 2, _lanes(tile)
    held = spectra[..., lanes, :half].permute(0, 4, 1, 2, 3).clone()
    # What is real, or its own mirror, at v = 0 and v = N / 2 shares the first lanes.
    ends = spectra[..., :half, ::half]
    held[:, 0] = ends.transpose(3, 4).flatten(3)
    middle = spectra[..., half, ::half].real
    held[:, 0, ..., ::half] = torch.complex(ends[..., 0, :].real, middle)
    units = torch.stack([held.real, held.imag], 4)
    # groups, v, filters, channels, part, unit of lanes, 16
    units = units.reshape(*units.shape[:5], tile // UNIT, UNIT).permute(0, 1, 5, 2, 3, 4, 6)
    return units.flatten(5).flatten(1, 2).float().contiguous()


def restored(weight: Tensor) -> Tensor:
    """Returns the conjugate spectra, (groups, filters, channels, N, N / 2 + 1), of a prepared weight.

    >>> import torch
    >>> weight = torch.randn(2, 1, 3, 3).double()
    >>> torch.allclose(torch.fft.irfft2(restored(prepare(weight, 16)).conj())[0, ..., :3, :3], weight, atol=1e-6)
    True
    """
    tile = tile_of(weight)
    half = tile // 2
    groups, _, filters, channels, _ = weight.shape
    wide = weight.double().reshape(groups, half, tile // UNIT, filters, channels, 2, UNIT)
    parts = wide.permute(0, 3, 4, 1, 5, 2, 6).flatten(5)  # groups, filters, channels, v, part, lane
    held = torch.complex(parts[..., 0, :], parts[..., 1, :])
    found = held.new_zeros(*held.shape[:3], tile, half + 1)
    found[..., _lanes(tile), :half] = held.transpose(3, 4)
    mirror = [0, *range(tile - 1, half, -1)]
    for column, first in ((0, 0), (half, half)):
        line = held[..., 0, first : first + half].clone()
        pair = line[..., 0].clone()
        line[..., 0] = pair.real
        found[..., :half, column], found[..., half, column] = line, pair.imag
        found[..., mirror[1:], column] = line[..., 1:].conj()
    return found * (2 * tile * tile)


def _lanes(tile: int) -> list[int]:
    """The frequency down of each lane: 0 .. N / 2 - 1, N / 2, -1, -2 ..."""
    half = tile // 2
    return [*range(half + 1), *range(tile - 1, half, -1)]


def tile_of(weight: Tensor) -> int:
    """Returns the edge of a tile of a prepared weight.

    Raises:
        MethodError: it is none.
    """
    tile = next((n for n in TILES if weight.dim() == 5 and weight.shape[1] * 2 * UNIT == n * n), 0)
    if not tile or weight.shape[4] != 2 * UNIT or weight.dtype != torch.float32:
        raise MethodError(f"fft_conv: a weight of {tuple(weight.shape)} {weight.dtype} isn't one of prepared spectra")
    return tile


@dataclass(frozen=True)
class Block:
    """How the workspace is laid out.

    Attributes:
        tiles: that are worked on at a time.
        into: floats from unit to unit of the inputs' spectra.
        out: likewise of the outputs'.
        floats: of it all.
    """

    tiles: int
    into: int
    out: int
    floats: int


def block_of(total: int, channels: int, filters: int, tile: int) -> Block:
    """Returns the workspace for a layer: tiles (channels + filters) tile^2 numbers, and a little against collisions.

    Args:
        total: tiles of the whole batch.
        channels: of a group.
        filters: of a group.
        tile: edge.

    >>> block_of(9, 64, 64, 32)
    Block(tiles=9, into=18464, out=18464, floats=1181696)
    """
    each = 4 * tile * tile
    room = MOST if each * channels * filters >= HEAVY else USUAL
    count = max(3, room // (each * (channels + filters)))
    blocks = max(1, -(-total // count))
    count = -(-total // blocks)
    # Units that are multiples of 4 KB apart would share few sets of the cache.
    into, out = (count * planes * 2 * UNIT + 2 * UNIT for planes in (channels, filters))
    return Block(count, into, out, tile * tile // (2 * UNIT) * (into + out))


def tiles_of(size: Sequence[int], kernel: Sequence[int], window: Sequence[int], tile: int) -> tuple[int, int]:
    """Returns how many tiles cover the outputs of stride 1, down and across.

    Args:
        size: height and width of the input.
        kernel: height and width.
        window: as in `geometry.outputs`.
        tile: edge.
    """
    down, across = (
        -(-(size[i] + 2 * window[2 + i] - (kernel[i] - 1) * window[4 + i]) // (tile - (kernel[i] - 1) * window[4 + i]))
        for i in (0, 1)
    )
    return down, across


def _shape(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: list[int], window: list[int], rectify: bool
) -> Tensor:
    high, wide = outputs(x, kernel, window)
    return x.new_empty((len(x), weight.shape[0] * weight.shape[2], high, wide))


@operator(_shape)
def fft_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: list[int], window: list[int], rectify: bool
) -> Tensor:
    """Computes a convolution by F^-1(sum over c of F(x) conj(F(w))) of tiles that overlap (overlap-save).

    Mathieu, Henaff & LeCun 2013, arXiv 1312.5851: each tile of the input is transformed once for all filters. A tile of
    N x N has N^2 / 2 complex frequencies; four products each for (N - R + 1)^2 outputs, 4.2 instead of 121 for an
    11 x 11 kernel and N = 32.

    Args:
        x: (batch, channels, height, width), float32.
        weight: by `prepare`, for the same groups and dilation.
        bias: (filters,), float32, or None.
        kernel: height and width, before dilation.
        window: stride, padding and dilation, each down and across; strides are computed densely and subsampled.
        rectify: whether max(0, y) is returned instead of y.

    Returns:
        (batch, filters, output height, output width).

    Raises:
        MethodError: shapes or types that don't fit, a kernel larger than a tile.

    >>> import torch
    >>> weight = prepare(torch.ones(1, 1, 3, 3), 16)
    >>> round(fft_conv(torch.ones(1, 1, 3, 3), weight, None, [3, 3], [1, 1, 0, 0, 1, 1], False).item(), 4)
    9.0
    """
    tile, (groups, _, filters, channels) = tile_of(weight), weight.shape[:4]
    checked("fft_conv", x, weight.flatten(0, 2)[: groups * filters], bias, groups)
    if groups * channels != x.shape[1]:
        raise MethodError(f"fft_conv: a weight of {groups} groups of {channels} doesn't take {x.shape[1]} channels")
    y = _shape(x, weight, bias, kernel, window, rectify)
    reach = [(kernel[i] - 1) * window[4 + i] + 1 for i in (0, 1)]
    if max(reach) > tile:
        raise MethodError(f"fft_conv: a kernel that covers {max(reach)} is larger than a tile of {tile}")
    count = tiles_of(x.shape[2:], kernel, window, tile)
    block = block_of(len(x) * count[0] * count[1], channels, filters, tile)
    sizes = numbers(
        *(len(x), groups, channels, filters, x.shape[2], x.shape[3], *window[2:4], *window[:2], *reach, *y.shape[2:]),
        *(block.tiles, block.into, block.out),
    )
    work = x.new_empty(block.floats)
    if run("fft_conv", x.contiguous(), weight.contiguous(), bias, y, work, sizes, tile, int(rectify)):
        return y
    return y.copy_(_reference(x, restored(weight).to(torch.complex64), reach, window, count, bias, rectify))


def _reference(
    x: Tensor,
    spectra: Tensor,
    reach: list[int],
    window: list[int],
    count: tuple[int, int],
    bias: Tensor | None,
    rectify: bool,
) -> Tensor:
    """All tiles at once, by torch's transforms."""
    tile = spectra.shape[3]
    step = [tile - r + 1 for r in reach]
    ends = [(n - 1) * s + tile - size - p for n, s, size, p in zip(count, step, x.shape[2:], window[2:4])]
    padded = functional.pad(x, (window[3], ends[1], window[2], ends[0]))
    tiles = padded.unfold(2, tile, step[0]).unfold(3, tile, step[1])
    seen = torch.fft.rfft2(tiles)
    seen = seen.reshape(len(x), len(spectra), -1, *seen.shape[2:])
    product = torch.einsum("ngcabuv,gkcuv->ngkabuv", seen, spectra).flatten(1, 2)
    dense: Tensor = torch.fft.irfft2(product, s=(tile, tile))[..., : step[0], : step[1]]
    dense = dense.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)
    high, wide = (size + 2 * p - r + 1 for size, p, r in zip(x.shape[2:], window[2:4], reach))
    y = dense[:, :, : high : window[0], : wide : window[1]]
    y = y if bias is None else y + bias[:, None, None]
    return y.relu() if rectify else y
