"""Shift-based AdaMax: steps of powers of two times the first moment (BNN)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lilliput.core.errors import ModelError
from lilliput.train.shift_norm import power_near

TINY = 2.0**-27


class ShiftAdaMax(Optimizer):
    """m = b1 m + (1 - b1) g; v = max(b2 v, |g|); w -= G AP2(lr / (1 - b1^t)) m / (AP2(v) + 2^-27).

    Courbariaux, Hubara et al. 2016 (arXiv 1602.02830), algorithm 4. G is AP2 of BinaryConnect's Glorot coefficient,
    1 / sqrt(1.5 / (fan in + fan out)), for weights of two or more axes, if asked for, and 1 for others. Clipping latent
    weights is done by `advance`.

    Args:
        params: as for any optimizer.
        lr: learning rate; the paper's is 2^-10, halved every so many epochs.
        betas: decay of both moments; powers of two from 1 in the paper.
        glorot: multiply each weight's steps by G.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = ShiftAdaMax([w], lr=0.25)
    >>> w.sum().backward()
    >>> _ = optimizer.step()
    >>> float(w.detach())
    0.75
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2.0**-10,
        betas: tuple[float, float] = (1 - 2.0**-3, 1 - 2.0**-10),
        glorot: bool = False,
    ) -> None:
        if not lr > 0 or not all(0 <= beta < 1 for beta in betas):
            raise ModelError(f"ShiftAdaMax: lr = {lr} must be above 0 and betas = {betas} within 0 .. 1 (exclusive)")
        super().__init__(params, {"lr": lr, "betas": betas, "glorot": glorot})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        Args:
            closure: computes the loss anew, or None.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, grad = self.state[parameter], parameter.grad
        if not state:
            state["step"] = 0
            state["mean"], state["norm"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first, second = group["betas"]
        state["step"] += 1
        state["mean"].lerp_(grad, 1 - first)
        torch.maximum(state["norm"] * second, grad.abs(), out=state["norm"])  # type: ignore[union-attr]
        size = _power(group["lr"] / (1 - first ** state["step"]))
        if group["glorot"] and parameter.ndim >= 2:
            places = math.prod(parameter.shape[2:])
            size *= _power(1 / math.sqrt(1.5 / (places * (parameter.shape[0] + parameter.shape[1]))))
        parameter.sub_(size * state["mean"] / (power_near(state["norm"]) + TINY))


def _power(value: float) -> float:
    return float(power_near(torch.tensor(value, dtype=torch.float64)))
