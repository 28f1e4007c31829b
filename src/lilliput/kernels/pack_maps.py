"""Feature maps as maps of bits: channels packed 64 to a word, at every place."""

from __future__ import annotations

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.kernels import binary


def words_of(channels: int) -> int:
    """Returns the number of 64-bit words that so many channels fill."""
    return (channels + 63) // 64


def _sign_maps_shape(x: Tensor, magnitude: bool = False) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = x.shape
    packed = x.new_empty((batch, height, width, words_of(channels)), dtype=torch.int64)
    return packed, x.new_empty((batch, 1, height, width) if magnitude else (0,), dtype=torch.float32)


@operator(_sign_maps_shape)
def pack_sign_maps(x: Tensor, magnitude: bool = False) -> tuple[Tensor, Tensor]:
    """Packs the signs of feature maps, 1 from 0 on, and takes XNOR-Net's A, the mean of |x| over the channels.

    Rastegari et al. 2016, arXiv 1603.05279: K = A * k with k = 1 / (w h) is `torch.nn.functional.avg_pool2d` of A.

    Args:
        x: (batch, channels, height, width), float32, channels first or last in memory.
        magnitude: whether A is wanted.

    Returns:
        (batch, height, width, ceil(channels / 64)), int64, the first channel in the lowest bit; and
        (batch, 1, height, width), float32, or an empty tensor.

    Raises:
        MethodError: x has another shape or type.

    >>> pack_sign_maps(torch.tensor([1.0, -3.0, 0.0]).reshape(1, 3, 1, 1), True)
    (tensor([[[[5]]]]), tensor([[[[1.3333]]]]))
    """
    if x.dim() != 4 or x.dtype != torch.float32:
        raise MethodError(f"pack_sign_maps takes maps of float32, not {tuple(x.shape)} of {x.dtype}")
    packed, mean = _sign_maps_shape(x, magnitude)
    batch, channels, height, width = x.shape
    if not packed.numel() or not channels:
        return packed.zero_(), mean.zero_()
    out, wanted, words = packed.view(torch.int32), mean if magnitude else None, 2 * packed.shape[3]
    if channels > 1 and x.is_contiguous(memory_format=torch.channels_last):
        rows = x.permute(0, 2, 3, 1)
        if run("pack_signs_nhwc", rows, out, wanted, batch * height * width, channels, words):
            return packed, mean
    elif run("pack_signs_nchw", x.contiguous(), out, wanted, batch, channels, height * width, words):
        return packed, mean
    packed = binary.pack_bits((x.permute(0, 2, 3, 1) >= 0).int())
    return packed, x.abs().mean(1, keepdim=True).contiguous() if magnitude else mean


def _planes_shape(codes: Tensor, planes: int) -> Tensor:
    batch, channels, height, width = codes.shape
    return codes.new_empty((planes, batch, height, width, words_of(channels)), dtype=torch.int64)


@operator(_planes_shape)
def pack_planes(codes: Tensor, planes: int) -> Tensor:
    """Packs the lowest bits of codes, each a plane of its own.

    Args:
        codes: (batch, channels, height, width), uint8.
        planes: number of bits, 1 to 8.

    Returns:
        (planes, batch, height, width, ceil(channels / 64)), int64, the lowest bit first.

    Raises:
        MethodError: codes of another shape or type, or more than 8 planes.

    >>> pack_planes(torch.tensor([3, 1, 2], dtype=torch.uint8).reshape(1, 3, 1, 1), 2).flatten().tolist()
    [3, 5]
    """
    if codes.dim() != 4 or codes.dtype != torch.uint8 or not 1 <= planes <= 8:
        raise MethodError(f"pack_planes takes maps of uint8 and 1 to 8 planes, not {codes.dtype} and {planes}")
    packed = _planes_shape(codes, planes)
    batch, channels, height, width = codes.shape
    if not packed.numel() or not channels:
        return packed.zero_()
    arguments = (planes, batch, channels, height * width, 2 * packed.shape[4])
    if run("pack_planes_nchw", codes.contiguous(), packed.view(torch.int32), *arguments):
        return packed
    rows = codes.permute(0, 2, 3, 1).int()
    return torch.stack([binary.pack_bits(rows >> plane & 1) for plane in range(planes)])
