"""The first singular vectors of a large matrix, without those that aren't asked for."""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 1 << 22
"""Numbers of a matrix from which on a small rank is found by random projections."""

OVERSAMPLING = 16
"""Random directions beyond the rank."""

POWERS = 3
"""Multiplications by W W^T that turn the directions towards the first singular vectors."""


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the first `rank` left singular vectors, singular values and right singular vectors.

    Up to `LARGE` numbers, or for a rank beyond a quarter of the smaller side, from the whole decomposition. Beyond,
    from Q^T W, where Q is an orthonormal basis of (W W^T)^q W R with R Gaussian, (n, rank + 16), always the same
    (Halko, Martinsson and Tropp 2011, arXiv 0909.4061): the error is that of the best factors up to a factor that
    tends to 1 with larger q.

    Args:
        matrix: (m, n).
        rank: 0 <= rank <= min(m, n).

    Returns:
        U (m, rank), s (rank,) descending, V^T (rank, n).

    >>> u, s, v = truncated_svd(torch.outer(torch.arange(3.0), torch.ones(4)), 1)
    >>> bool(torch.allclose(u * s @ v, torch.outer(torch.arange(3.0), torch.ones(4)), atol=1e-6))
    True
    """
    if matrix.numel() <= LARGE or 4 * (rank + OVERSAMPLING) > min(matrix.shape):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    return projected_svd(matrix, rank)


def projected_svd(matrix: Tensor, rank: int, powers: int = POWERS) -> tuple[Tensor, Tensor, Tensor]:
    """Does what `truncated_svd` does to a large matrix.

    Args:
        matrix: (m, n).
        rank: 0 <= rank <= min(m, n).
        powers: q.
    """
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = projected_svd(matrix.T, rank, powers)
        return right.T, values, left.T
    source = torch.Generator().manual_seed(0)
    width = min(rank + OVERSAMPLING, matrix.shape[0])
    # From the left: the rows are the shorter side, so that orthogonalizing is cheap.
    basis = matrix @ torch.randn(matrix.shape[1], width, generator=source).to(matrix)
    for _ in range(powers):
        basis = matrix @ (matrix.T @ torch.linalg.qr(basis).Q)
    basis = torch.linalg.qr(basis).Q
    inner = basis.T @ matrix
    # The singular values of the wide matrix in the middle by its triangular factor, which is small.
    turned, triangle = torch.linalg.qr(inner.T)
    left, values, right = torch.linalg.svd(triangle.T)
    return basis @ left[:, :rank], values[:rank], right[:rank] @ turned.T
