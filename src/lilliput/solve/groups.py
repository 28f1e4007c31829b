"""Groups of weights that live and die together: their sums, and the mask of the best ones."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lilliput.solve.selection import largest

Unit = Literal["filter", "channel", "kernel", "shape", "depth"]
"""filter: all that gives one output. channel: all that one input takes. kernel: what one input gives one output.
shape: one input at one place of the window, for all outputs (a column of the lowered matrix). depth: the layer."""


def as_matrix(tensor: Tensor) -> Tensor:
    """Returns a view of two axes at least: a vector is outputs with one input each.

    >>> as_matrix(torch.zeros(3)).shape, as_matrix(torch.zeros(4, 3, 5)).shape
    (torch.Size([3, 1]), torch.Size([4, 3, 5]))
    """
    return tensor.reshape(*tensor.shape, *[1] * (2 - tensor.ndim))


def axes_within(unit: Unit, ndim: int) -> tuple[int, ...]:
    """Returns the axes along which a group extends in a weight (outputs, inputs, ...) of `ndim` >= 2 axes.

    >>> axes_within("filter", 4), axes_within("channel", 4), axes_within("shape", 4), axes_within("kernel", 2)
    ((1, 2, 3), (0, 2, 3), (0,), ())
    """
    window = tuple(range(2, ndim))
    return {
        "filter": (1, *window),
        "channel": (0, *window),
        "kernel": window,
        "shape": (0,),
        "depth": tuple(range(ndim)),
    }[unit]


def sums(scores: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sums scores over each group, in float64; -inf marks weights that are gone, which count nothing.

    Args:
        scores: of any shape, no NaN.
        axes: those along which a group extends; kept with length 1.

    Returns:
        The sums, -inf where all of a group (of one weight at least) is gone.

    >>> sums(torch.tensor([[1.0, -torch.inf], [-torch.inf, -torch.inf]]), (1,)).flatten().tolist()
    [1.0, -inf]
    """
    gone = scores == -torch.inf
    precise = scores.double().masked_fill(gone, 0)
    if not axes:
        return precise.masked_fill(gone, -torch.inf)
    total = precise.sum(axes, keepdim=True)
    size = math.prod(scores.shape[axis] for axis in axes)
    return total.masked_fill(_all(gone, axes), -torch.inf) if size else total


def _all(marked: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis in axes:
        marked = marked.all(axis, keepdim=True)
    return marked


def best(scores: Tensor, unit: Unit, count: int) -> Tensor:
    """Marks all weights of the `count` groups whose scores have the largest sums, of equal ones the first.

    >>> best(torch.tensor([[1.0, 2.0], [4.0, 0.0]]), "filter", 1)
    tensor([[False, False],
            [ True,  True]])
    """
    matrix = as_matrix(scores)
    chosen = largest(sums(matrix, axes_within(unit, matrix.ndim)), count)
    return chosen.expand(matrix.shape).reshape(scores.shape).clone()


def alive(mask: Tensor, unit: Unit) -> int:
    """Returns in how many groups something is set.

    >>> alive(torch.tensor([[True, False], [True, False]]), "channel")
    1
    """
    marked = mask
    for axis in axes_within(unit, mask.ndim):
        marked = marked.any(axis, keepdim=True)
    return int(torch.count_nonzero(marked))


def group_count(shape: tuple[int, ...], unit: Unit) -> int:
    """Returns how many groups a weight of this shape has.

    >>> group_count((20, 3, 5, 5), "filter"), group_count((20, 3, 5, 5), "shape"), group_count((7,), "channel")
    (20, 75, 1)
    """
    shape = (*shape, *[1] * (2 - len(shape)))
    within = axes_within(unit, len(shape))
    return math.prod(size for axis, size in enumerate(shape) if axis not in within)


def remaining(count: int, sparsity: float, up: bool = False) -> int:
    """Returns how many of `count` groups stay, one at least: count - round(sparsity * count).

    Args:
        count: of groups.
        sparsity: part to be removed, 0 <= sparsity < 1.
        up: round the number of those removed up, as Li et al. 2017 do with filters.

    >>> remaining(10, 0.25), remaining(10, 0.25, up=True), remaining(1, 0.9)
    (8, 7, 1)
    """
    removed = math.ceil(sparsity * count - 1e-9) if up else round(sparsity * count)
    return max(count - removed, min(count, 1))


def size_of_groups(shape: tuple[int, ...], unit: Unit) -> int:
    """Returns how many weights each group holds.

    >>> size_of_groups((20, 3, 5, 5), "filter")
    75
    """
    shape = (*shape, *[1] * (2 - len(shape)))
    return math.prod(shape[axis] for axis in axes_within(unit, len(shape)))
