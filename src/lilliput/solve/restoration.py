"""Weights taken back: which of those removed would repair most of what a layer's outputs have lost."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 1 << 23
"""Numbers that are looked at at a time."""


def restored(
    weight: Tensor, samples: Tensor, kept: Tensor, counts: Tensor, *, power: int = 1, rounds: int = 4
) -> Tensor:
    """Takes back, output by output, the removed weights whose return lowers the error of the outputs most.

    With R = X (a - a') the error of an output a with the weights a' that are kept, weight j gains
    |R|_p^p - |R - x_j a_j|_p^p; the best of a round are taken back together, then R is found anew.

    Args:
        weight: a for each output, (rows, columns); those that are zero are never taken back.
        samples: X, (samples, columns).
        kept: (rows, columns), bool.
        counts: how many each row gets back at most, (rows,).
        power: p, 1 or 2.
        rounds: in how many parts; as many as there are weights to take back is greedy.

    Returns:
        Which weights are kept then, (rows, columns).

    >>> inputs = torch.tensor([[1.0, 0.0, 3.0], [1.0, 0.1, -3.0]])
    >>> restored(torch.tensor([[2.0, 5.0, 1.0]]), inputs, torch.zeros(1, 3, dtype=torch.bool), torch.tensor([1]))
    tensor([[False, False,  True]])
    """
    rows = max(1, MOST // max(samples.numel(), 1))
    parts = zip(*(torch.split(each, rows) for each in (weight, kept, counts)))
    found = [_restored(own, samples, mask.clone(), count.clone(), power, rounds) for own, mask, count in parts]
    return torch.cat(found) if found else kept.clone()


def _restored(weight: Tensor, samples: Tensor, kept: Tensor, left: Tensor, power: int, rounds: int) -> Tensor:
    added = weight[:, :, None] * samples.T
    for turn in range(min(rounds, int(left.max()))):
        error = (weight * ~kept) @ samples.T
        gains = _norm(error, power)[:, None] - _norm(error[:, None] - added, power)
        gains = gains.masked_fill(kept | (weight == 0), -torch.inf)
        takes = -(-left // (rounds - turn)) if turn < rounds - 1 else left
        order = gains.argsort(dim=1, descending=True, stable=True)
        ranks = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1]).expand_as(order).to(order.device)
        )
        chosen = (ranks < takes[:, None]) & (gains > -torch.inf)
        kept |= chosen
        left -= takes
    return kept


def _norm(value: Tensor, power: int) -> Tensor:
    return (value.abs() if power == 1 else value.square()).sum(-1)
