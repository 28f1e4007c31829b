"""Sparse CNN: a convolution as channels transformed, a few spatial bases each, and sparse coefficients of these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.solve.selection import largest

NAME = "prune/sparse_kernel"


@dataclass(frozen=True)
class SparseKernel(WeightMethod):
    """W[n, k, u] = sum_i P[k, i] sum_q S[i, n, q] Q[i, q, u], with P and Q_i orthogonal and S sparse (Liu et al. 2015).

    P are the principal axes of the kernel's channels, Q_i and S_i come from the singular value decomposition of what
    the kernel is along axis i. Since P and Q_i are orthogonal, keeping the largest |S| is the best choice for the
    squared error of the weight. The convolution is then a 1 x 1, a depth-wise and a sparse 1 x 1 one; see `as_layers`.

    Attributes:
        sparsity: part of the coefficients to be removed, 0 <= sparsity < 1.
        bases: spatial bases of each channel; 0 for as many as there can be, min(window, outputs).

    >>> weight = torch.randn(6, 4, 3, 3)
    >>> bool(torch.allclose(SparseKernel.unpack(SparseKernel().pack(weight)), weight, atol=1e-5))
    True
    """

    sparsity: float = 0.0
    bases: int = 0

    into = ("values",)
    training = "parts"
    trained = ("values", "kernels", "channels")
    frozen = ("mask",)

    def __post_init__(self) -> None:
        check_range(NAME, "sparsity", self.sparsity, 0, 1, open_high=True)
        check_range(NAME, "bases", self.bases, 0, 1_000_000)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `channels` P (C, C), `kernels` Q (C, bases, window), `mask` (C, N, bases) and `values`.

        Raises:
            MethodError: not a convolution's weight, nothing in it, or not finite.
        """
        check_weight(weight.detach(), NAME)
        if not 3 <= weight.ndim <= 5 or not weight.numel():
            raise MethodError(f"{NAME}: takes weights of convolutions, not of shape {tuple(weight.shape)}")
        size = float(weight.abs().max()) or 1.0
        whole = (weight.detach().double() / size).flatten(2)
        channels = torch.linalg.eigh(torch.einsum("nku,nlu->kl", whole, whole))[1].flip(1)
        along = torch.einsum("nku,ki->inu", whole, channels)
        kernels = torch.linalg.svd(along, full_matrices=False)[2]
        kernels = kernels[:, : self.bases or kernels.shape[1]]
        coefficients = torch.einsum("inu,iqu->inq", along, kernels).mul_(size)
        mask = largest(coefficients.abs(), coefficients.numel() - round(self.sparsity * coefficients.numel()))
        mask &= coefficients != 0
        most = torch.finfo(weight.dtype).max
        parts = {
            "channels": channels,
            "kernels": kernels,
            "mask": mask,
            "values": coefficients[mask].clamp(-most, most),
        }
        made = {name: part.to(weight.dtype) if part.is_floating_point() else part for name, part in parts.items()}
        return Packed(NAME, tuple(weight.shape), weight.dtype, {k: v.contiguous() for k, v in made.items()})

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Multiplies the parts, in float32 or float64."""
        if not 3 <= len(packed.shape) <= 5:
            raise MethodError(f"{NAME}: no convolution has a weight of shape {packed.shape}")
        coefficients, kernels, channels = _parts(packed)
        along = torch.einsum("inq,iqu->inu", coefficients, kernels)
        return torch.einsum("inu,ki->nku", along, channels).reshape(packed.shape).to(packed.dtype)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """Sparsities 80 % and 50 %."""
        return cls(sparsity=0.8), cls(sparsity=0.5)


def _parts(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients (C, N, bases), kernels (C, bases, window) and channels (C, C), checked."""
    outputs, inputs, *window = packed.shape
    kernels = packed.tensor("kernels", integer=False)
    if kernels.ndim != 3 or kernels.shape[0] != inputs or kernels.shape[2] != math.prod(window):
        raise MethodError(f"{NAME}: kernels of shape {tuple(kernels.shape)} for a weight of shape {packed.shape}")
    bases = kernels.shape[1]
    if bases > min(math.prod(window), outputs):
        raise MethodError(f"{NAME}: {bases} bases are more than a window of {tuple(window)} can have")
    channels = packed.tensor("channels", shape=(inputs, inputs), integer=False)
    mask = packed.tensor("mask", shape=(inputs, outputs, bases))
    values = packed.tensor("values", integer=False)
    if mask.dtype != torch.bool or values.shape != (int(torch.count_nonzero(mask)),):
        raise MethodError(f"{NAME}: {tuple(values.shape)} values don't fit the mask")
    kind = torch.promote_types(packed.dtype, torch.float32)
    coefficients = torch.zeros(mask.shape, dtype=kind, device=values.device).masked_scatter(mask, values.to(kind))
    return coefficients, kernels.to(kind), channels.to(kind)


def as_layers(packed: Packed, like: nn.Conv2d) -> nn.Sequential:
    """Returns the three layers that a packed weight stands for: 1 x 1, depth-wise, 1 x 1 with sparse weights.

    Multiplications for one output place: C^2 (for each input place) + window * C * bases + the coefficients kept.

    Args:
        packed: a two-dimensional convolution's weight.
        like: the convolution, for its stride, padding, dilation and bias; of one group.

    Raises:
        MethodError: the convolution has groups, or pads by other than zeros.
    """
    if like.groups != 1 or like.padding_mode != "zeros":
        raise MethodError(f"{NAME}: only convolutions of one group that pad by zeros fall into layers")
    coefficients, kernels, channels = _parts(packed)
    inputs, outputs, bases = coefficients.shape
    first = nn.Conv2d(inputs, inputs, 1, bias=False)
    conv: Any = nn.Conv2d
    second = conv(
        inputs, inputs * bases, like.kernel_size, like.stride, like.padding, like.dilation, inputs, bias=False
    )
    third = nn.Conv2d(inputs * bases, outputs, 1, bias=like.bias is not None)
    with torch.no_grad():
        first.weight = nn.Parameter(channels.T[:, :, None, None].to(packed.dtype).contiguous())
        second.weight = nn.Parameter(kernels.reshape(inputs * bases, 1, *like.kernel_size).to(packed.dtype))
        third.weight = nn.Parameter(
            coefficients.permute(1, 0, 2).reshape(outputs, inputs * bases, 1, 1).to(packed.dtype)
        )
        if like.bias is not None:
            third.bias = nn.Parameter(like.bias.detach().clone())
    return nn.Sequential(first, second, third)
