"""The optimal brain surgeon on a whole vector of weights: exact, for problems of a few thousand."""

from __future__ import annotations

import torch
from torch import Tensor


def recursive_inverse(rows: Tensor, alpha: float) -> Tensor:
    """Returns (alpha I + 1/P sum x x^T)^-1, a row at a time, as Hassibi & Stork 1992 do.

    H_k+1^-1 = H_k^-1 - H_k^-1 x x^T H_k^-1 / (P + x^T H_k^-1 x), from I / alpha.

    Args:
        rows: derivatives x of the output, one example a row, (P, n).
        alpha: > 0.

    >>> recursive_inverse(torch.tensor([[2.0], [0.0]]), 2.0)
    tensor([[0.2500]])
    """
    inverse = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device) / alpha
    for row in rows:
        image = inverse @ row
        inverse.sub_(torch.outer(image, image) / (len(rows) + row @ image))
    return inverse


def surgeon(weight: Tensor, inverse: Tensor, count: int, alive: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Removes `count` weights one after the other, each time the one that costs least, and moves the others.

    After q is removed, the inverse of the Hessian of what is left is H^-1 - H^-1 e_q e_q^T H^-1 / [H^-1]_qq without
    row and column q (Gauss elimination). The costs sum to dw^T H dw / 2.

    Args:
        weight: (n,), float.
        inverse: H^-1, (n, n); unchanged.
        count: how many to remove, those that are not alive among them.
        alive: bool (n,); what isn't is removed first. None for all.

    Returns:
        The weights, zero where removed; and for each when it was removed: 0 .. count - 1, and n for those that stay.

    >>> surgeon(torch.tensor([1.0, 1.1]), torch.tensor([[2.0, 1.9], [1.9, 2.0]]).inverse(), 1)
    (tensor([0.0000, 2.0500]), tensor([0, 2]))
    """
    value, inverse = weight.clone(), inverse.clone()
    order = torch.full(value.shape, len(value), dtype=torch.int64, device=value.device)
    places = torch.arange(len(value), device=value.device)  # of those that are still looked at
    live = torch.ones_like(order, dtype=torch.bool)
    first = [] if alive is None else (~alive).nonzero().flatten().tolist()
    dead, least = 0, torch.finfo(value.dtype).tiny
    for step in range(count):
        if 4 * dead > len(live):
            places, value, inverse = places[live], value[live], inverse[live][:, live]
            live, dead = live[live], 0
        diagonal = inverse.diagonal().clamp(min=least)
        if step < len(first):
            place = int(torch.searchsorted(places, first[step]))
        else:
            place = int((value.square() / diagonal).masked_fill(~live, torch.inf).argmin())
        column = inverse[place].clone()
        scale = float(diagonal[place])
        value.sub_(column, alpha=float(value[place]) / scale)
        inverse.addr_(column, column / scale, alpha=-1)
        inverse[place, :] = inverse[:, place] = 0
        value[place] = 0
        live[place], dead = False, dead + 1
        order[places[place]] = step
    result = torch.zeros_like(weight)
    result[places] = value.masked_fill(~live, 0)
    return result, order
