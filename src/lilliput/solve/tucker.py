"""Tucker-2: bases of a tensor's first two axes and the core between them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Tucker = tuple[Tensor, Tensor, Tensor]
"""(N, a) and (C, b) with orthonormal columns, and the core (a, b, S)."""


def unfoldings(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a tensor (N, C, S) as N x (C S) and as C x (N S)."""
    return tensor.flatten(1), tensor.transpose(0, 1).flatten(1)


def composed(parts: Tucker) -> Tensor:
    """Returns T[n, c, s] = sum_ab U[n, a] V[c, b] G[a, b, s]."""
    left, right, core = parts
    # Two at a time: all three at once would begin with the bases, and that product is of N a C b numbers.
    return torch.einsum("nbs,cb->ncs", torch.einsum("na,abs->nbs", left, core), right)


def hosvd(tensor: Tensor, ranks: tuple[int, int]) -> Tucker:
    """Returns the first singular vectors of both unfoldings, and the core that fits them.

    De Lathauwer, De Moor and Vandewalle 2000. The squared error is at most the sum of the squared singular values
    left out of both unfoldings.

    Args:
        tensor: (N, C, S).
        ranks: (a, b), at most (N, C).
    """
    left, right = (vectors(matrix, rank) for matrix, rank in zip(unfoldings(tensor), ranks))
    return left, right, _core(tensor, left, right)


def _core(tensor: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("acs,cb->abs", torch.einsum("ncs,na->acs", tensor, left), right)


def hooi(tensor: Tensor, start: Tucker, sweeps: int) -> Iterator[Tucker]:
    """Improves both bases in turn, each the best for the other, and yields what each sweep found; never worse.

    Args:
        tensor: (N, C, S).
        start: where to begin.
        sweeps: at most; stops where a sweep adds next to nothing.

    >>> tensor = torch.arange(24.0).reshape(2, 3, 4)
    >>> *_, last = hooi(tensor, hosvd(tensor, (2, 2)), 5)
    >>> bool(torch.allclose(composed(last), tensor, atol=1e-4))
    True
    """
    left, right, core = start
    kept = float(core.square().sum())
    for _ in range(sweeps):
        left = vectors(torch.einsum("ncs,cb->nbs", tensor, right).flatten(1), left.shape[1])
        inner = torch.einsum("ncs,na->acs", tensor, left)
        right = vectors(inner.transpose(0, 1).flatten(1), right.shape[1])
        core = torch.einsum("acs,cb->abs", inner, right)
        yield left, right, core
        before, kept = kept, float(core.square().sum())
        if kept <= before * (1 + 1e-9):
            return


def vectors(matrix: Tensor, rank: int) -> Tensor:
    """Returns the first left singular vectors, of a wide matrix by its smaller Gram matrix."""
    if matrix.shape[1] <= matrix.shape[0]:
        complete: Tensor = torch.linalg.svd(matrix, full_matrices=True)[0]
        return complete[:, :rank]
    _, found = torch.linalg.eigh(matrix @ matrix.T)
    first: Tensor = found.flip(1)[:, :rank]
    return first


def best(tensor: Tensor, ranks: tuple[int, int], sweeps: int, start: Tensor | None = None) -> Tucker:
    """Returns the parts after HOSVD and some sweeps.

    Args:
        tensor: (N, C, S).
        ranks: (a, b).
        sweeps: of `hooi`.
        start: V (C, b) to begin at instead of HOSVD's.
    """
    result = hosvd(tensor, ranks)
    if start is not None:
        result = result[0], start, _core(tensor, result[0], start)
    for parts in hooi(tensor, result, sweeps):
        result = parts
    return result
