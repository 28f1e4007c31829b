"""The inverse of a layer's Hessian: its triangular factor, in little memory, and surgery by it, column by column."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BLOCK = 256
"""Columns of a triangular matrix that are inverted at a time."""

ROWS = 32
"""Rows of a matrix that are put into another order at a time."""

PIECE = 1 << 20
"""Entries of a matrix that are moved at a time."""

Choose = Callable[[Tensor, int, int], Tensor]
"""(saliency of a group of columns, its start, its stop) -> which of these weights are kept."""


def inverse_factor(gram: Tensor, damping: float = 0.01, order: Tensor | None = None) -> Tensor:
    """Returns the upper triangular U with U^T U = (G + d I)^-1, where d = damping * mean(diag G).

    Then U_ii^2 is entry (i, i) of the inverse of the Hessian of columns i and later alone, which is what deleting
    columns one after the other asks for (Frantar & Alistarh 2023, arXiv 2301.00774). With J the matrix that reverses
    an order, J G J = L L^T gives G = R R^T for the upper R = J L J, and U = R^-1: one Cholesky factorization and one
    triangular inverse. On the CPU both are made in place, in the one copy of G that becomes U.

    Args:
        gram: symmetric, positive semidefinite, (n, n); unchanged. A column that is zero counts as 1 on the diagonal.
        damping: >= 0; grows tenfold as often as it takes for the factorization to succeed.
        order: of the columns, int64, (n,); None for that of `gram`. Then U is that of gram[order][:, order].

    Returns:
        (n, n), float.

    Raises:
        ValueError: the matrix isn't finite, or not positive semidefinite by far.

    >>> inverse_factor(torch.diag(torch.tensor([4.0, 16.0])), damping=0)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.2500]])
    """
    count = len(gram)
    backwards = torch.arange(count - 1, -1, -1, device=gram.device) if order is None else order.flip(0)
    mean = float(gram.diagonal().mean()) or 1.0
    own = torch.empty(count, count, dtype=gram.dtype, device=gram.device)
    for _ in range(8):
        for start in range(0, count, ROWS):
            rows = backwards[start : start + ROWS]
            own[start : start + ROWS] = gram[rows][:, backwards]
        diagonal = own.diagonal()
        diagonal.masked_fill_(diagonal == 0, mean).add_(damping * mean)
        # Of a symmetric matrix the transpose is the same, and lies in memory as LAPACK wants it.
        lower, info = own.mT, torch.empty((), dtype=torch.int32, device=gram.device)
        if own.device.type == "cpu":
            torch.linalg.cholesky_ex(lower, out=(lower, info))
        else:
            lower, info = torch.linalg.cholesky_ex(lower)
        if not int(info):
            return invert_upper_(_reversed(lower.mT).mT)
        damping = max(10 * damping, 1e-6)
    raise ValueError(f"a Gram matrix of {count} columns is not finite, or not positive semidefinite")


def _reversed(matrix: Tensor) -> Tensor:
    """Reverses the order of rows and of columns, in place if the matrix is contiguous."""
    flat = matrix.contiguous().view(-1)
    half, count = len(flat) // 2, len(flat)
    for start in range(0, half, PIECE):
        stop = min(start + PIECE, half)
        left, right = flat[start:stop], flat[count - stop : count - start]
        kept = left.flip(0)
        left.copy_(right.flip(0))
        right.copy_(kept)
    return flat.view(matrix.shape)


def invert_upper_(matrix: Tensor, block: int = BLOCK) -> Tensor:
    """Inverts an upper triangular matrix in place, and returns it.

    Args:
        matrix: (n, n), zeros under the diagonal.
        block: columns at a time.

    >>> invert_upper_(torch.tensor([[2.0, 1.0], [0.0, 4.0]]))
    tensor([[ 0.5000, -0.1250],
            [ 0.0000,  0.2500]])
    """
    for start in range(0, len(matrix), block):
        stop = min(start + block, len(matrix))
        eye = torch.eye(stop - start, dtype=matrix.dtype, device=matrix.device)
        corner = torch.linalg.solve_triangular(matrix[start:stop, start:stop], eye, upper=True)
        if start:
            above = matrix[:start, :start] @ matrix[:start, start:stop]
            matrix[:start, start:stop] = (above @ corner).neg_()
        matrix[start:stop, start:stop] = corner
    return matrix


def sweep_(weight: Tensor, upper: Tensor, choose: Choose, groups: Sequence[int], block: int = 128) -> Tensor:
    """Removes weights column by column, and lets the columns that are still to come make up for each (SparseGPT).

    For column i with removed entries w: e = w / U_ii, and W[:, j] -= e U_ij for all j >= i. The sum of e^2 is the
    growth of the error |(W - W') X|^2 / n, exactly if there is no damping. Within a block of columns each column is
    applied at once, to the columns after the block all together by one product.

    Args:
        weight: (rows, columns), float; changed in place.
        upper: of `inverse_factor`, (columns, columns).
        choose: says for each group of columns, when it is reached, what is kept, by the saliency |w| / U_ii: the root
            of the error that removing this weight causes.
        groups: widths of the groups, which sum to the columns.
        block: columns whose effect on all later ones is gathered before it is applied; at least one group.

    Returns:
        The weight, with exact zeros where weights were removed.

    >>> pair = torch.tensor([[2.0, 1.9], [1.9, 2.0]])
    >>> removed = sweep_(torch.ones(1, 2), inverse_factor(pair, 0), lambda s, a, b: torch.tensor([[False, True]]), [2])
    >>> [round(float(value), 4) for value in removed[0]]
    [0.0, 1.95]
    """
    start = at = 0
    while at < len(groups):
        first, stop = at, start
        while at < len(groups) and (at == first or stop + groups[at] - start <= block):
            stop, at = stop + groups[at], at + 1
        tile = upper[start:stop, start:stop].contiguous()
        part = weight[:, start:stop].T.contiguous()
        errors = torch.zeros_like(part)
        low = 0
        for width in groups[first:at]:
            high = low + width
            saliency = part[low:high].abs() / tile.diagonal()[low:high, None]
            kept = choose(saliency.T, start + low, start + high).T
            for i in range(low, high):
                errors[i] = (part[i] / tile[i, i]).masked_fill_(kept[i - low], 0)
                part[i:].addr_(tile[i, i:], errors[i], alpha=-1)
            part[low:high].mul_(kept)
            low = high
        weight[:, start:stop] = part.T
        weight[:, stop:].addmm_(errors.T, upper[start:stop, stop:], alpha=-1)
        start = stop
    return weight


Place = Callable[[Tensor, int], Tensor]
"""(values of a column, which one) -> the levels that they get."""


def feedback(weight: Tensor, upper: Tensor, place: Place, block: int = 128) -> Tensor:
    """Rounds column by column, and lets the columns that are still to come make up for each error (GPTQ).

    For column i: q = place(w), e = (w - q) / U_ii, and W[:, j] -= e U_ij for all j > i. The sum of e^2 is
    |(W - Q) X|^2 / n, exactly if there is no damping (Frantar et al. 2022, arXiv 2210.17323).

    Args:
        weight: (rows, columns), float; unchanged.
        upper: of `inverse_factor`, (columns, columns).
        place: the levels of a column, given what it is when its turn comes.
        block: columns whose effect on all later ones is gathered before it is applied.

    Returns:
        Q, (rows, columns).

    >>> pair = torch.tensor([[2.0, 1.9], [1.9, 2.0]])
    >>> feedback(torch.tensor([[0.4, 0.4]]), inverse_factor(pair, 0), lambda values, column: values.round())
    tensor([[0., 1.]])
    """
    work = weight.T.clone(memory_format=torch.contiguous_format)
    for start in range(0, len(work), block):
        stop = min(start + block, len(work))
        tile, part = upper[start:stop, start:stop], work[start:stop]
        errors = torch.empty_like(part)
        for i in range(stop - start):
            placed = place(part[i], start + i)
            torch.sub(part[i], placed, out=errors[i]).div_(tile[i, i])
            part[i] = placed
            part[i + 1 :].addr_(tile[i, i + 1 :], errors[i], alpha=-1)
        work[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return work.T.contiguous()


def descend(weight: Tensor, gram: Tensor, start: Tensor, place: Place, block: int = 128) -> Tensor:
    """Chooses each column anew, given what all others are; tr((W - Q) G (W - Q)^T) never grows.

    For column j the best real value is q_j + [(W - Q) G]_j / G_jj, and the error is a parabola around it, so that the
    nearest level is the best one (coordinate descent, Behdin et al. 2023, arXiv 2309.01885).

    Args:
        weight: W, (rows, columns); unchanged.
        gram: G, symmetric, positive semidefinite, (columns, columns).
        start: Q to begin with, (rows, columns).
        place: must give the nearest levels.
        block: columns whose effect on all others is gathered before it is applied.

    Returns:
        Q after going through all columns once.

    >>> pair = torch.tensor([[2.0, 1.9], [1.9, 2.0]])
    >>> descend(torch.tensor([[0.4, 0.4]]), pair, torch.zeros(1, 2), lambda values, column: values.round() + 0.0)
    tensor([[1., 0.]])
    """
    found = start.T.clone(memory_format=torch.contiguous_format)
    pull = gram @ (weight.T - found)
    for begin in range(0, len(found), block):
        end = min(begin + block, len(found))
        tile, part, own = gram[begin:end, begin:end], found[begin:end], pull[begin:end]
        before = part.clone()
        for i in range(end - begin):
            if tile[i, i] <= 0:
                continue
            placed = place(part[i] + own[i] / tile[i, i], begin + i)
            own.addr_(tile[i], part[i] - placed)
            part[i] = placed
        change = before.sub_(part)
        pull[:begin].addmm_(gram[:begin, begin:end], change)
        pull[end:].addmm_(gram[end:, begin:end], change)
    return found.T.contiguous()
