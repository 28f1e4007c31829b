"""Proximal steps of the norms that make weights, or groups of them, zero."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_threshold(weight: Tensor, amount: float) -> Tensor:
    """Returns argmin over x of |x - w|^2 / 2 + amount * |x|_1, that is sign(w) * max(|w| - amount, 0).

    >>> soft_threshold(torch.tensor([3.0, 0.5, -2.0]), 1.0)
    tensor([ 2.,  0., -1.])
    """
    return weight.sign() * (weight.abs() - amount).clamp(min=0)


def shrink_groups(weight: Tensor, axes: tuple[int, ...], amount: float) -> Tensor:
    """Returns argmin over x of |x - w|^2 / 2 + amount * sum over groups of |x_g|_2: max(0, 1 - amount / |w_g|) * w_g.

    Args:
        weight: any shape.
        axes: those along which a group extends.
        amount: a group of smaller norm becomes zero.

    >>> shrink_groups(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), (1,), 1.0)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    norm = group_norms(weight, axes)
    factor = (1 - amount / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(min=0)
    return (weight * factor.masked_fill(norm <= amount, 0)).to(weight.dtype) if amount else weight.clone()


def group_norms(weight: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns the Euclidean norm of each group, `axes` kept with length 1; its gradient at a zero group is zero.

    >>> group_norms(torch.tensor([[3.0, 4.0]]), (1,))
    tensor([[5.]])
    """
    wide = weight if weight.dtype == torch.float64 else weight.float()
    if not axes:
        return wide.abs()
    if not weight.numel():
        return wide.sum(axes, keepdim=True)
    # vector_norm scales nothing: weights as large as a dtype allows would overflow.
    top = wide.detach().abs().amax(axes, keepdim=True)
    scale = torch.where(top > 0, top, torch.ones_like(top))
    norms: Tensor = scale * torch.linalg.vector_norm(wide / scale, dim=axes, keepdim=True)
    return norms
