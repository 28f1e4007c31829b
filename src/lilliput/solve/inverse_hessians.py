"""Many small Hessians at once, those of a depthwise convolution's channels: what `inverse_hessian` does for one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lilliput.solve.inverse_hessian import inverse_factor

Place = Callable[[Tensor, int], Tensor]
"""(values of column i of every group, (groups, rows), i) -> the levels that they get."""


def inverse_factors(grams: Tensor) -> Tensor:
    """Returns the upper triangular U with U^T U = G^-1 of each matrix; damping is for those alone that need it.

    Args:
        grams: symmetric, positive semidefinite, (groups, n, n); unchanged. A column that is zero counts as 1 on the
            diagonal, in units of the diagonal's mean.

    Returns:
        (groups, n, n).

    Raises:
        ValueError: a matrix isn't finite, or not positive semidefinite by far.

    >>> inverse_factors(torch.diag(torch.tensor([4.0, 16.0])).expand(2, 2, 2))[1]
    tensor([[0.5000, 0.0000],
            [0.0000, 0.2500]])
    """
    own = grams.flip(1, 2).contiguous()
    diagonal = own.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    diagonal.copy_(torch.where(diagonal == 0, torch.where(mean == 0, 1, mean), diagonal))
    lower, failed = torch.linalg.cholesky_ex(own)
    eye = torch.eye(own.shape[1], dtype=own.dtype, device=own.device).expand_as(own)
    upper: Tensor = torch.linalg.solve_triangular(lower.flip(1, 2), eye, upper=True)
    for group in failed.nonzero()[:, 0].tolist():
        upper[group] = inverse_factor(grams[group], 0.0)
    return upper


def feedbacks(weights: Tensor, uppers: Tensor, place: Place) -> Tensor:
    """Rounds column by column, and lets the columns that are still to come make up for each error, in every group.

    Args:
        weights: (groups, rows, columns), float; unchanged.
        uppers: of `inverse_factors`, (groups, columns, columns).
        place: the levels of a column, given what it is when its turn comes.

    Returns:
        (groups, rows, columns).

    >>> pair = torch.tensor([[2.0, 1.9], [1.9, 2.0]])
    >>> feedbacks(torch.tensor([[[0.4, 0.4]]]), inverse_factors(pair[None]), lambda values, column: values.round())
    tensor([[[0., 1.]]])
    """
    work = weights.permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
    for i in range(len(work)):
        placed = place(work[i], i)
        error = (work[i] - placed) / uppers[:, i, i, None]
        work[i] = placed
        work[i + 1 :] -= uppers[:, i, i + 1 :].T[:, :, None] * error
    return work.permute(1, 2, 0).contiguous()


def descends(weights: Tensor, grams: Tensor, start: Tensor, place: Place) -> Tensor:
    """Chooses each column anew, given what all others of its group are; no group's error grows.

    Args:
        weights: W, (groups, rows, columns); unchanged.
        grams: G, symmetric, positive semidefinite, (groups, columns, columns).
        start: Q to begin with, (groups, rows, columns).
        place: must give the nearest levels.

    Returns:
        Q after going through all columns once.

    >>> pair, nearest = torch.tensor([[2.0, 1.9], [1.9, 2.0]]), lambda values, column: values.round() + 0.0
    >>> descends(torch.tensor([[[0.4, 0.4]]]), pair[None], torch.zeros(1, 1, 2), nearest)
    tensor([[[1., 0.]]])
    """
    found = start.permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
    pull = torch.bmm(grams, (weights - start).mT).transpose(0, 1).contiguous()
    for i in range(len(found)):
        own = grams[:, i, i, None]
        live = own > 0
        placed = torch.where(live, place(found[i] + pull[i] / torch.where(live, own, 1), i), found[i])
        pull += grams[:, i].T[:, :, None] * (found[i] - placed)
        found[i] = placed
    return found.permute(1, 2, 0).contiguous()
