"""Shift-based BatchNorm: like BatchNorm, but every product is by a power of two (BNN)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import ModelError


def power_near(x: Tensor) -> Tensor:
    """Returns AP2(x) = sign(x) 2^round(log2 |x|), and 0 for 0; of the same dtype.

    >>> power_near(torch.tensor([1.4, 1.45, -3.0, 0.0])).tolist()
    [1.0, 2.0, -4.0, 0.0]
    """
    wide = x.double()
    power = torch.exp2(torch.round(torch.log2(wide.abs())))
    return torch.where(wide == 0, 0, torch.sign(wide) * power).to(x.dtype)


class Normalised(torch.autograd.Function):
    """AP2(gamma) x^ + beta with x^ = C inv, and the paper's own gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, centred: Tensor, inverse: Tensor) -> Tensor:
        """Returns the normalised x.

        Args:
            ctx: of autograd.
            x: (samples, channels); only its gradient is of interest.
            gamma: (channels,).
            beta: (channels,).
            centred: x less its mean.
            inverse: (channels,), powers of two.
        """
        ctx.save_for_backward(gamma, centred, inverse)
        return power_near(gamma) * (centred * inverse) + beta

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """dL/dx = AP2(gamma) inv (g - mean g - C^ inv^2 mean(C^ g)), C^ = AP2(C); dgamma = sum g AP2(x^)."""
        gamma, centred, inverse = ctx.saved_tensors
        grad, power = grads[0], power_near(centred)
        rest = grad - grad.mean(0) - power * inverse.square() * (power * grad).mean(0)
        return (
            power_near(gamma) * inverse * rest,
            (grad * power_near(centred * inverse)).sum(0),
            grad.sum(0),
            None,
            None,
        )


class ShiftNorm(nn.Module):
    """BatchNorm with C = x - mean, var = mean(C AP2(C)), inv = AP2((var + eps)^(-1/2)), y = AP2(gamma) C inv + beta.

    Courbariaux, Hubara et al. 2016 (arXiv 1602.02830), algorithm 3, with the gradients of the released code. In eval
    mode mean and inverse deviation are running averages, the latter taken to a power of two again.

    Args:
        channels: of dimension 1.
        eps: added to the variance.
        momentum: of the running averages.

    Attributes:
        weight: gamma, (channels,).
        bias: beta, (channels,).
        running_mean: (channels,).
        running_inverse: of the deviation, (channels,).

    >>> norm = ShiftNorm(3).eval()
    >>> norm(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    running_mean: Tensor
    running_inverse: Tensor

    def __init__(self, channels: int, eps: float = 1e-4, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_inverse", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises each channel.

        Args:
            x: (batch, channels, ...).

        Raises:
            ModelError: a single value a channel while training.
        """
        if not self.training:
            shape = (1, -1, *[1] * (x.ndim - 2))
            factor = power_near(self.weight) * power_near(self.running_inverse)
            return (x - self.running_mean.reshape(shape)) * factor.reshape(shape) + self.bias.reshape(shape)
        moved = x.movedim(1, -1)
        rows = moved.reshape(-1, x.shape[1])
        if len(rows) < 2:
            raise ModelError(
                f"ShiftNorm: one value a channel has no variance (input {tuple(x.shape)}); use larger batches"
            )
        with torch.no_grad():
            mean = rows.mean(0)
            centred = rows - mean
            exact = ((centred * power_near(centred)).mean(0) + self.eps).rsqrt()
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_inverse.lerp_(exact.to(self.running_inverse.dtype), self.momentum)
        out: Tensor = Normalised.apply(rows, self.weight, self.bias, centred, power_near(exact))  # type: ignore[no-untyped-call]
        return out.reshape(moved.shape).movedim(-1, 1)
