"""Convolution as a product of matrices, each image lowered whole."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.kernels.geometry import checked, outputs, sizes


def workspace(x: Tensor, weight: Tensor, window: Sequence[int]) -> int:
    """Returns how many numbers `im2col` lowers an image to: channels R S P Q, or none where the image serves as it is.

    >>> import torch
    >>> workspace(torch.ones(1, 1, 7, 7), torch.ones(1, 1, 3, 3), [1, 1, 0, 0, 1, 1])
    225
    """
    if _as_it_is(weight, window):
        return 0
    high, wide = outputs(x, weight.shape[2:], window)
    return x.shape[1] * weight.shape[2] * weight.shape[3] * high * wide


def _as_it_is(weight: Tensor, window: Sequence[int]) -> bool:
    return tuple(weight.shape[2:]) == (1, 1) and list(window[:4]) == [1, 1, 0, 0]


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, window: list[int], groups: int, rectify: bool) -> Tensor:
    high, wide = outputs(x, weight.shape[2:], window)
    return x.new_empty((len(x), len(weight), high, wide))


@operator(_shape)
def im2col(x: Tensor, weight: Tensor, bias: Tensor | None, window: list[int], groups: int, rectify: bool) -> Tensor:
    """Computes a convolution as W lowered(x) (Chellapilla, Puri & Simard 2006).

    Args:
        x: (batch, channels, height, width), float32.
        weight: (filters, channels / groups, kernel height, kernel width), float32.
        bias: (filters,), float32, or None.
        window: stride, padding and dilation, each down and across: six numbers.
        groups: of channels.
        rectify: whether max(0, y) is returned instead of y.

    Returns:
        (batch, filters, output height, output width).

    Raises:
        MethodError: shapes or types that don't fit.

    >>> import torch
    >>> im2col(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), None, [1, 1, 0, 0, 1, 1], 1, False).item()
    9.0
    """
    checked("im2col", x, weight, bias, groups)
    if weight.dim() != 4 or weight.shape[1] * groups != x.shape[1]:
        raise MethodError(f"im2col: a weight of {tuple(weight.shape)} doesn't take {x.shape[1]} channels")
    y = _shape(x, weight, bias, window, groups, rectify)
    held = x.new_empty(workspace(x, weight, window))
    geometry = sizes(x, weight.shape[2:], len(weight), window, groups)
    lowered = int(_as_it_is(weight, window))
    if run("im2col", x.contiguous(), weight.contiguous(), bias, y, held, geometry, lowered, int(rectify)):
        return y
    stride, padding, dilation = ((window[i], window[i + 1]) for i in (0, 2, 4))
    columns = functional.unfold(x, tuple(weight.shape[2:]), dilation, padding, stride)
    columns = columns.reshape(len(x), groups, -1, columns.shape[-1])
    y = (weight.reshape(groups, len(weight) // groups, -1) @ columns).reshape(y.shape)
    y = y if bias is None else y.add_(bias[:, None, None])
    return y.relu_() if rectify else y
