"""Least squares from a Gram matrix alone: the best weights for a given support."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 1 << 22
"""Weights that are fitted at a time."""


def error(change: Tensor, gram: Tensor) -> float:
    """Returns tr(D G D^T) = |D X^T|^2 / n, the mean squared change of a layer's outputs, summed over them.

    Args:
        change: D, (rows, columns).
        gram: X^T X / n, (columns, columns).

    >>> error(torch.tensor([[1.0, 2.0]]), torch.eye(2))
    5.0
    """
    return float(((change @ gram) * change).sum(dtype=torch.float64))


def refit(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    start: Tensor,
    *,
    damping: float = 0.0,
    iterations: int = 64,
    tolerance: float = 0.0,
) -> Tensor:
    """Finds for each row v the minimum of (w - v) (G + d I) (w - v)^T over all v that are zero off the mask.

    Conjugate gradients, preconditioned by the diagonal, all rows at once: each step costs one product with G, and no
    step makes the error larger. d = damping * mean(diag G).

    Args:
        weight: the wanted W, (rows, columns).
        gram: G, (columns, columns), symmetric, positive semidefinite.
        mask: which weights may differ from zero, (rows, columns).
        start: where to begin, (rows, columns), zero off the mask.
        damping: >= 0.
        iterations: at most.
        tolerance: a step that takes less than this part of the error away is the last.

    Returns:
        (rows, columns), zero off the mask.

    >>> pair = torch.tensor([[2.0, 1.9], [1.9, 2.0]])
    >>> refit(torch.ones(1, 2), pair, torch.tensor([[False, True]]), torch.zeros(1, 2))
    tensor([[0.0000, 1.9500]])
    """
    rows = max(1, MOST // max(weight.shape[1], 1))
    if len(weight) > rows:
        parts = [
            refit(*part, damping=damping, iterations=iterations, tolerance=tolerance)
            for part in (
                (weight[i : i + rows], gram, mask[i : i + rows], start[i : i + rows])
                for i in range(0, len(weight), rows)
            )
        ]
        return torch.cat(parts)
    return _descended((weight, gram, mask, start), damping, iterations, tolerance)


def _descended(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], damping: float, iterations: int, tolerance: float
) -> Tensor:
    """The conjugate gradients of `refit`, for all rows together."""
    weight, gram, mask, start = problem
    extra = damping * float(gram.diagonal().mean())
    scale = gram.diagonal() + extra
    scale = torch.where(scale > 0, scale, 1.0)

    def times(rows: Tensor) -> Tensor:
        return torch.addmm(rows, rows, gram, beta=extra) if extra else rows @ gram

    value = start.clone()
    change = weight - value
    residual = times(change)
    left = float((change * residual).sum(dtype=torch.float64))
    del change
    residual *= mask
    step = residual / scale
    direction, energy = step, (residual * step).sum(1, keepdim=True)
    least = 1e-12 * energy.amax() if energy.numel() else 0.0
    for _ in range(iterations):
        image = times(direction).mul_(mask)
        curvature = (direction * image).sum(1, keepdim=True)
        length = torch.where(curvature > 0, energy / curvature, 0.0)
        value.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        gain = float((length * energy).sum(dtype=torch.float64))
        left -= gain
        if gain < tolerance * left:
            break
        step = residual / scale
        following = (residual * step).sum(1, keepdim=True)
        if not bool((following > least).any()):
            break
        direction = direction.mul_(torch.where(energy > 0, following / energy, 0.0)).add_(step)
        energy = following
    return value
