"""Sizes of a convolution as the kernels are told them, and what every operator of a convolution checks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from lilliput.core.errors import MethodError


def checked(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    """Raises MethodError unless x, a weight and a bias are float32 and fit.

    Args:
        name: of the operator, for messages.
        x: (batch, channels, height, width).
        weight: (filters, ...).
        bias: (filters,) or None.
        groups: of channels.
    """
    if x.dim() != 4 or x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise MethodError(f"{name} takes float32 of 4 axes, not {tuple(x.shape)} of {x.dtype} and {weight.dtype}")
    if groups < 1 or x.shape[1] % groups or len(weight) % groups:
        raise MethodError(f"{name}: {groups} groups don't divide {x.shape[1]} channels and {len(weight)} filters")
    if bias is not None and (bias.dtype != torch.float32 or bias.shape != weight.shape[:1]):
        raise MethodError(f"{name}: a bias of {tuple(bias.shape)} {bias.dtype}, not of {len(weight)} float32")


def outputs(x: Tensor, kernel: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
    """Returns height and width of a convolution's result.

    Args:
        x: (batch, channels, height, width).
        kernel: height and width.
        window: stride, padding and dilation, each down and across: six numbers.

    Raises:
        MethodError: a window that can't be, or one that is larger than the padded input.
    """
    if len(window) != 6 or min(*window[:2], *window[4:]) < 1 or min(window[2:4]) < 0:
        raise MethodError(f"a window is stride, padding and dilation, down and across, not {list(window)}")
    high, wide = (
        (x.shape[2 + i] + 2 * window[2 + i] - window[4 + i] * (kernel[i] - 1) - 1) // window[i] + 1 for i in (0, 1)
    )
    if min(high, wide) < 1:
        raise MethodError(f"a kernel of {tuple(kernel)} is larger than the padded input of {tuple(x.shape[2:])}")
    return high, wide


@cache
def numbers(*values: int) -> Tensor:
    """Returns whole numbers as a tensor of int64, the same one each time.

    >>> numbers(1, 2).tolist()
    [1, 2]
    """
    return torch.tensor(values, dtype=torch.int64)


def sizes(x: Tensor, kernel: Sequence[int], filters: int, window: Sequence[int], groups: int) -> Tensor:
    """Returns what `Geometry` in src/cpp/kernels/product.h reads.

    Args:
        x: (batch, channels, height, width).
        kernel: height and width.
        filters: of the whole layer.
        window: as in `outputs`.
        groups: of channels.
    """
    batch, channels, height, width = x.shape
    each = channels // groups, filters // groups
    return numbers(batch, groups, *each, height, width, *kernel, *window, *outputs(x, kernel, window))
