"""Which input channels a layer can do without, from what each adds to its outputs."""

from __future__ import annotations

import torch
from torch import Tensor


def shares(weight: Tensor, gram: Tensor, channels: int) -> Tensor:
    """Returns A, (channels, channels): A_jk = mean over samples of <Y_j, Y_k>, Y_j what channel j adds to the outputs.

    Args:
        weight: (outputs, columns).
        gram: X^T X / n, (columns, columns); the columns of a channel are neighbours.
        channels: how many.

    >>> shares(torch.tensor([[1.0, 2.0]]), torch.eye(2), 2)
    tensor([[1., 0.],
            [0., 4.]], dtype=torch.float64)
    """
    window = weight.shape[1] // channels
    products = (weight.double().T @ weight.double()).mul_(gram)
    return products.reshape(channels, window, channels, window).sum((1, 3))


def greedy_order(products: Tensor) -> Tensor:
    """Returns when each channel is removed, from 0, if always the one goes for which the sum over T x T grows least.

    Args:
        products: A of `shares`.

    >>> greedy_order(torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.5]])).tolist()
    [0, 2, 1]
    """
    order = torch.zeros(len(products), dtype=torch.int64)
    growth = products.diagonal().clone()
    for step in range(len(products)):
        place = int(growth.argmin())
        order[place] = step
        growth += 2 * products[:, place]
        growth[order > 0] = torch.inf
        growth[place] = torch.inf
        if step == 0:
            first = place
        growth[first] = torch.inf
    return order


def lasso(products: Tensor, penalty: float, start: Tensor, sweeps: int = 200) -> Tensor:
    """Minimises (1 - b)^T A (1 - b) / 2 + penalty |b|_1 by coordinate descent.

    Args:
        products: A, symmetric, positive semidefinite, (channels, channels).
        penalty: >= 0.
        start: b to begin with, (channels,).
        sweeps: over all channels, at most.

    >>> lasso(torch.diag(torch.tensor([1.0, 4.0])), 1.0, torch.zeros(2))
    tensor([0.0000, 0.7500])
    """
    beta, target = start.clone(), products.sum(1)
    image = products @ beta
    diagonal = products.diagonal().tolist()
    for _ in range(sweeps):
        moved = 0.0
        for place, scale in enumerate(diagonal):
            if scale <= 0:
                continue
            before = float(beta[place])
            pull = float(target[place] - image[place]) + scale * before
            after = max(abs(pull) - penalty, 0.0) / scale * (1 if pull > 0 else -1)
            if after != before:
                image += products[place] * (after - before)
                beta[place] = after
                moved = max(moved, abs(after - before))
        if moved < 1e-7:
            break
    return beta


def lasso_order(products: Tensor, steps: int = 24) -> Tensor:
    """Ranks channels by the largest penalty at which the lasso keeps them, then by how much of them it keeps.

    Args:
        products: A of `shares`.
        steps: penalties tried, evenly in their logarithm.

    Returns:
        (channels,), higher is kept.
    """
    beta = torch.zeros(len(products), dtype=products.dtype)
    rank = torch.zeros_like(beta)
    highest = float(products.sum(1).abs().max())
    for step in range(steps) if highest > 0 else ():
        beta = lasso(products, highest * 10 ** (-4 * (step + 1) / steps), beta, 50)
        entered = (beta != 0) & (rank == 0)
        part = beta.abs() / beta.abs().max().clamp(min=1e-300)
        rank = torch.where(entered, steps - step + 0.999 * part, rank)
    return rank
