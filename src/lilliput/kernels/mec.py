"""Memory-efficient convolution: only the columns of an image are lowered."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.kernels.geometry import checked, outputs, sizes


def prepare(weight: Tensor) -> Tensor:
    """Returns the weight with its channels last, (filters, kernel height, kernel width, channels / groups)."""
    return weight.permute(0, 2, 3, 1).contiguous()


def workspace(x: Tensor, weight: Tensor, window: Sequence[int]) -> int:
    """Returns how many numbers `mec` lowers an image to: channels S Q H, H the height with its padding.

    >>> import torch
    >>> workspace(torch.ones(1, 1, 7, 7), torch.ones(1, 3, 3, 1), [1, 1, 0, 0, 1, 1])
    105
    """
    _, wide = outputs(x, weight.shape[1:3], window)
    return x.shape[1] * weight.shape[2] * wide * (x.shape[2] + 2 * window[2])


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, window: list[int], groups: int, rectify: bool) -> Tensor:
    high, wide = outputs(x, weight.shape[1:3], window)
    return x.new_empty((len(x), len(weight), high, wide))


@operator(_shape)
def mec(x: Tensor, weight: Tensor, bias: Tensor | None, window: list[int], groups: int, rectify: bool) -> Tensor:
    """Computes a convolution by overlapping products of a matrix of lowered columns (Cho & Brand 2017).

    arXiv 1706.06873, solution B: L[h, s, c, q] = x[c, h, q stride + s dilation]; the output's row p is W times the rows
    p stride .. p stride + R of L, which are neighbours.

    Args:
        x: (batch, channels, height, width), float32.
        weight: by `prepare`.
        bias: (filters,), float32, or None.
        window: stride, padding and dilation, each down and across; no dilation down.
        groups: of channels.
        rectify: whether max(0, y) is returned instead of y.

    Returns:
        (batch, filters, output height, output width).

    Raises:
        MethodError: shapes or types that don't fit, a dilation down.

    >>> import torch
    >>> mec(torch.ones(1, 1, 3, 3), torch.ones(1, 3, 3, 1), None, [1, 1, 0, 0, 1, 1], 1, False).item()
    9.0
    """
    checked("mec", x, weight, bias, groups)
    if weight.dim() != 4 or weight.shape[3] * groups != x.shape[1]:
        raise MethodError(f"mec: a weight of {tuple(weight.shape)} doesn't take {x.shape[1]} channels")
    y = _shape(x, weight, bias, window, groups, rectify)
    if window[4] != 1 and weight.shape[1] > 1:
        raise MethodError(f"mec: dilation {window[4]} down: rows that aren't neighbours are no sub-matrix; use im2col")
    held = x.new_empty(workspace(x, weight, window))
    geometry = sizes(x, weight.shape[1:3], len(weight), window, groups)
    if run("mec", x.contiguous(), weight.contiguous(), bias, y, held, geometry, int(rectify)):
        return y
    up, left = window[2:4]
    padded = functional.pad(x, (left, left, up, up)).reshape(
        len(x), groups, -1, x.shape[2] + 2 * up, x.shape[3] + 2 * left
    )
    reach = (weight.shape[2] - 1) * window[5] + 1
    # In the order batch, groups, H, S, channels, Q.
    lowered = padded.unfold(4, reach, window[1])[..., :: window[5]].permute(0, 1, 3, 5, 2, 4).contiguous()
    matrices = weight.reshape(groups, len(weight) // groups, -1)
    for row in range(y.shape[2]):
        part = lowered[:, :, row * window[0] : row * window[0] + weight.shape[1]].flatten(2, 4)
        y[:, :, row] = (matrices @ part).flatten(1, 2)
    y = y if bias is None else y.add_(bias[:, None, None])
    return y.relu_() if rectify else y
