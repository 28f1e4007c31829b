"""Winograd's convolution in plain torch: transforms of weights, input tiles and outputs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.solve.toom_cook import matrices


@cache
def transforms(output: int, taps: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Returns A^T, G and B^T of F(output, taps) as matrices; see `solve.toom_cook`.

    >>> transforms(2, 3)[2].shape
    torch.Size([4, 4])
    """
    inverse, filters, data = (
        torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.float64).to(dtype)
        for matrix in matrices(output, taps)
    )
    return inverse, filters, data


def transformed(weight: Tensor, output: int) -> Tensor:
    """Returns G g G^T, computed in float64, (wide, wide, filters, channels), wide = output + taps - 1.

    Args:
        weight: (filters, channels, taps, taps), floating-point.
        output: edge of a tile of outputs.
    """
    _, filters, _ = transforms(output, weight.shape[2])
    wide = torch.einsum("ua,kcab,vb->uvkc", filters, weight.double(), filters)
    return wide.to(weight.dtype)


def cut(x: Tensor, output: int, taps: int, padding: tuple[int, int]) -> Tensor:
    """Returns the overlapping tiles of an input, a view of its padded copy.

    Args:
        x: (batch, channels, height, width).
        output: edge of a tile of outputs; tiles begin at its multiples.
        taps: of the kernel.
        padding: down and across.

    Returns:
        (batch, channels, tiles down, tiles across, wide, wide).
    """
    wide = output + taps - 1
    more = []
    for axis in (1, 0):
        size = x.shape[2 + axis] + 2 * padding[axis] - taps + 1
        more += [padding[axis], padding[axis] + -size % output]
    return functional.pad(x, more).unfold(2, wide, output).unfold(3, wide, output)


def correlate(x: Tensor, wide: Tensor, output: int, taps: int, padding: tuple[int, int]) -> Tensor:
    """Returns Y = A^T [sum over c of (G g G^T) * (B^T d B)] A for every tile, put together.

    Args:
        x: (batch, channels, height, width).
        wide: from `transformed`.
        output: edge of a tile of outputs.
        taps: of the kernel.
        padding: down and across.

    Returns:
        (batch, filters, output height, output width).

    >>> w = torch.ones(1, 1, 3, 3)
    >>> correlate(torch.ones(1, 1, 3, 3), transformed(w, 2), 2, 3, (1, 1))[0, 0].tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    inverse, _, data = transforms(output, taps, x.dtype)
    tiles = cut(x, output, taps, padding)
    spread = torch.einsum("ua,ncijab,vb->uvcnij", data, tiles, data)
    places, channels = spread.shape[:2], spread.shape[2]
    products = wide @ spread.reshape(*places, channels, -1)
    found = torch.einsum("au,uvkt,bv->ktab", inverse, products, inverse)
    down, across = tiles.shape[2:4]
    y = found.reshape(-1, len(x), down, across, output, output).permute(1, 0, 2, 4, 3, 5)
    y = y.reshape(len(x), -1, down * output, across * output)
    high, width = (x.shape[2 + axis] + 2 * padding[axis] - taps + 1 for axis in (0, 1))
    return y[:, :, :high, :width].contiguous()


def gradients(grad: Tensor, x: Tensor, weight: Tensor, output: int, padding: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x and of the weight by the adjoint transforms, with as few products.

    dM = A dY A^T; dV = sum over k of U dM, d = B dV B^T added where tiles overlap; dU = sum over tiles of dM V,
    dg = G^T dU G.

    Args:
        grad: of the result, (batch, filters, output height, output width).
        x: (batch, channels, height, width).
        weight: (filters, channels, taps, taps).
        output: edge of a tile of outputs.
        padding: down and across.
    """
    taps = weight.shape[2]
    inverse, filters, data = transforms(output, taps, x.dtype)
    wide = output + taps - 1
    # Without padding or overlap, the outputs' own tiles.
    slopes = torch.einsum("au,nkijab,bv->uvknij", inverse, cut(grad, output, 1, (0, 0)), inverse)
    tiles = cut(x, output, taps, padding)
    spread = torch.einsum("ua,ncijab,vb->uvcnij", data, tiles, data)
    places, down, across = spread.shape[:2], *tiles.shape[2:4]
    slopes, spread = (value.reshape(*places, value.shape[2], -1) for value in (slopes, spread))
    of_wide = slopes @ spread.transpose(2, 3)
    of_weight = torch.einsum("ua,uvkc,vb->kcab", filters.to(x.dtype), of_wide, filters.to(x.dtype))
    back = transformed(weight, output).transpose(2, 3) @ slopes
    into = torch.einsum("ua,uvct,vb->cabt", data, back, data)
    columns = into.reshape(x.shape[1] * wide * wide, len(x), -1).transpose(0, 1)
    covered = (down - 1) * output + wide, (across - 1) * output + wide
    whole = functional.fold(columns, covered, (wide, wide), stride=output)
    up, left = padding
    inner = whole[:, :, up : up + x.shape[2], left : left + x.shape[3]]
    # Rows and columns that no tile reaches get none.
    return functional.pad(inner, (0, x.shape[3] - inner.shape[3], 0, x.shape[2] - inner.shape[2])), of_weight
