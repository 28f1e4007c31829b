"""Alternating least squares for sums of products: tensors of low CP rank, many at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Factors = list[Tensor]
"""One matrix (batch, size, rank) for each axis of the tensors."""

RIDGE = 1e-10
"""Added to the diagonal of each system, relative to its mean: terms that are alike would make it singular."""


def khatri_rao(matrices: Sequence[Tensor]) -> Tensor:
    """Returns the products of all rows, one of each matrix: (batch, product of sizes, rank), the last the fastest.

    >>> khatri_rao([torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0], [4.0]]])]).flatten()
    tensor([3., 4., 6., 8.])
    """
    result = matrices[0]
    for matrix in matrices[1:]:
        result = (result[:, :, None] * matrix[:, None]).flatten(1, 2)
    return result


def composed(factors: Sequence[Tensor]) -> Tensor:
    """Returns sum_r f_1[., r] o f_2[., r] o ...: (batch, sizes ...)."""
    rest = khatri_rao(factors[1:])
    flat = factors[0] @ rest.transpose(1, 2)
    return flat.reshape(len(flat), *(factor.shape[1] for factor in factors))


def sensitivity(factors: Sequence[Tensor]) -> Tensor:
    """Returns sum_k I_k sum_r prod_{j != k} |f_j,r|^2 of each tensor: how much noise in the factors changes it.

    Noise of variance s in every number of the factors changes the tensor by s times this in the squared norm, as s
    goes to 0 (Phan et al. 2020, arXiv 2008.05441).
    """
    squares = [factor.square().sum(1) for factor in factors]
    total = torch.zeros_like(squares[0][:, 0])
    for axis, factor in enumerate(factors):
        total = total + factor.shape[1] * _product([s for j, s in enumerate(squares) if j != axis]).sum(1)
    return total


def degeneracy(factors: Sequence[Tensor], tensor: Tensor) -> Tensor:
    """Returns sum_r |term r|^2 / |T|^2: far above 1, terms grow and cancel one another."""
    terms = _product([factor.square().sum(1) for factor in factors]).sum(1)
    return terms / tensor.flatten(1).square().sum(1).clamp(min=1e-300)


def balanced(factors: Sequence[Tensor]) -> Factors:
    """Returns factors of the same terms, each with columns of the same norm in all factors."""
    norms = [factor.norm(dim=1, keepdim=True) for factor in factors]
    whole = _product(norms) ** (1 / len(factors))
    return [factor * torch.where(norm > 0, whole / norm, 0) for factor, norm in zip(factors, norms)]


def als(tensor: Tensor, start: Sequence[Tensor], sweeps: int, *, penalty: Tensor | None = None) -> Factors:
    """Improves factors one after the other, each by its least-squares optimum, so that the objective never rises.

    The objective is |T - T'|^2 + penalty * sensitivity. With Z the Khatri-Rao product of the other factors, one step
    is F = T_(k) Z (Z^T Z + penalty * D)^-1 with D_r = sum_{j != k} I_j prod_{l != j, k} |f_l,r|^2.

    Args:
        tensor: (batch, I_1, ..., I_d), d >= 2.
        start: d factors (batch, I_k, rank); not changed.
        sweeps: over all factors.
        penalty: (batch,), or None for 0.

    >>> exact = [torch.ones(1, 2, 1), torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0], [4.0]]])]
    >>> found = als(composed(exact), [torch.ones(1, 2, 1), torch.ones(1, 2, 1), torch.ones(1, 2, 1)], 2)
    >>> bool(torch.allclose(composed(found), composed(exact)))
    True
    """
    factors = list(start)
    product = Projection(tensor)
    for _ in range(sweeps):
        for axis in range(len(factors)):
            others = [factor for j, factor in enumerate(factors) if j != axis]
            gram = _product([factor.transpose(1, 2) @ factor for factor in others])
            right = product(factors, axis)
            if penalty is not None:
                gram = gram + torch.diag_embed(penalty[:, None] * _weights(others))
            factors[axis] = _solved(gram, right)
    return factors


class Projection:
    """A tensor times the Khatri-Rao product of all factors but one, which is never formed.

    The longest of the other axes is contracted first, by a product of matrices; what is left of the others is small.

    Args:
        tensor: (batch, I_1, ..., I_d), d >= 2.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.turned: dict[int, Tensor] = {}

    def __call__(self, factors: Sequence[Tensor], axis: int) -> Tensor:
        """Returns T_(axis) Z, (batch, I_axis, rank).

        Args:
            factors: d of (batch, I_k, rank).
            axis: whose factor isn't looked at.

        >>> tensor, factors = torch.randn(1, 2, 3, 4), [torch.randn(1, n, 5) for n in (2, 3, 4)]
        >>> wanted = tensor.flatten(2) @ khatri_rao(factors[1:])
        >>> bool(torch.allclose(Projection(tensor)(factors, 0), wanted, atol=1e-5))
        True
        """
        rest = [k for k in range(len(factors)) if k != axis]
        longest = max(rest, key=lambda k: factors[k].shape[1])
        if longest not in self.turned:
            self.turned[longest] = self.tensor.movedim(longest + 1, -1).flatten(1, -2).contiguous()
        sizes = [size for k, size in enumerate(self.tensor.shape[1:]) if k != longest]
        found = self.turned[longest] @ factors[longest]
        found = found.reshape(len(found), *sizes, found.shape[-1])
        # From the last axis on, so that the places of those before it stay.
        for place, k in reversed(list(enumerate(k for k in range(len(factors)) if k != longest))):
            if k != axis:
                shape = [1] * found.ndim
                shape[0], shape[place + 1], shape[-1] = factors[k].shape
                found = (found * factors[k].reshape(shape)).sum(place + 1)
        return found


def _solved(gram: Tensor, right: Tensor) -> Tensor:
    """Returns right (gram + ridge)^-1, the ridge as small as the type of the numbers lets it be."""
    eps = max(RIDGE, 8 * torch.finfo(gram.dtype).eps)
    # A column that has become zero stays so: the floor only keeps its equation solvable.
    diagonal = gram.diagonal(dim1=1, dim2=2)
    lift = eps * diagonal + (eps * diagonal.mean(1, keepdim=True)).clamp(min=torch.finfo(gram.dtype).tiny)
    root, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(lift))
    if bool(failed.any()):
        lift = lift + 1e4 * eps * diagonal.amax(1, keepdim=True)
        root, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(lift))
        if bool(failed.any()):
            inverse: Tensor = torch.linalg.pinv(gram, hermitian=True)
            return right @ inverse
    solved: Tensor = torch.cholesky_solve(right.transpose(1, 2), root)
    return solved.transpose(1, 2)


def _weights(others: Sequence[Tensor]) -> Tensor:
    squares = [factor.square().sum(1) for factor in others]
    return torch.stack(
        [
            factor.shape[1]
            * _product([s for other, s in enumerate(squares) if other != j] or [torch.ones_like(squares[0])])
            for j, factor in enumerate(others)
        ]
    ).sum(0)


def _product(values: Sequence[Tensor]) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = result * value
    return result


def cp(tensor: Tensor, rank: int, *, sweeps: int = 30, restarts: int = 1, seed: int = 0) -> Factors:
    """Finds sum_{r <= rank} of products near each tensor: from singular vectors and from random starts, the best kept.

    Args:
        tensor: (batch, I_1, ..., I_d), of a type that can be decomposed.
        rank: number of terms, at least 1.
        sweeps: of alternating least squares from each start.
        restarts: random starts besides the singular vectors.
        seed: of the random starts.

    Returns:
        d factors (batch, I_k, rank), balanced.
    """
    scale = tensor.flatten(1).abs().amax(1).clamp(min=torch.finfo(tensor.dtype).tiny)
    scaled = tensor / scale.reshape(-1, *[1] * (tensor.ndim - 1))
    source = torch.Generator().manual_seed(seed)
    best: Factors = []
    least = scaled.new_full((len(tensor),), torch.inf)
    for number in range(1 + restarts):
        random = [
            torch.randn(len(tensor), size, rank, generator=source, dtype=torch.float64).to(scaled)
            for size in tensor.shape[1:]
        ]
        start = random if number else [_vectors(scaled, axis, other) for axis, other in enumerate(random)]
        found = als(scaled, start, sweeps)
        error = torch.nan_to_num((composed(found) - scaled).flatten(1).square().sum(1), nan=torch.inf)
        better = (error < least)[:, None, None]
        best = [torch.where(better, new, old) for new, old in zip(found, best)] if best else found
        least = torch.minimum(least, error)
    share = scale[:, None, None] ** (1 / (tensor.ndim - 1))
    return [factor * share for factor in balanced(best)]


def _vectors(tensor: Tensor, axis: int, random: Tensor) -> Tensor:
    """The first left singular vectors of one unfolding, filled up with random columns."""
    matrix = tensor.movedim(axis + 1, 1).flatten(2)
    _, vectors = torch.linalg.eigh(matrix @ matrix.transpose(1, 2))
    known = vectors.flip(2)[:, :, : random.shape[2]]
    return torch.cat([known, 0.5 * random[:, :, known.shape[2] :]], 2)


def steadied(tensor: Tensor, factors: Sequence[Tensor], growth: float, sweeps: int = 10) -> Factors:
    """Makes factors less sensitive without letting the squared error grow by more than a part of itself.

    Error-preserving correction (Phan et al. 2020, arXiv 2008.05441), by the penalty of `als`: the largest of a falling
    series that keeps within the bound is taken.

    Args:
        tensor: (batch, I_1, ..., I_d).
        factors: of `cp`.
        growth: largest part by which the squared error may grow, >= 0.
        sweeps: for each penalty.

    Returns:
        Balanced factors, never more sensitive than those given.
    """
    result = balanced(factors)
    before = (composed(result) - tensor).flatten(1).square().sum(1)
    power = tensor.flatten(1).square().sum(1)
    least = sensitivity(result)
    for exponent in range(8):
        penalty = power / least.clamp(min=1e-300) * 10.0 ** -(exponent + 1)
        tried = balanced(als(tensor, factors, sweeps, penalty=penalty))
        error = (composed(tried) - tensor).flatten(1).square().sum(1)
        own = sensitivity(tried)
        better = ((error <= (1 + growth) * before) & (own < least))[:, None, None]
        result = [torch.where(better, new, old) for new, old in zip(tried, result)]
        least = torch.where(better[:, 0, 0], own, least)
        if bool(better.all()):
            break
    return result
