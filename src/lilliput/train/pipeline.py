"""Model parallelism with 8 bits: activations go to the next process, errors come back, in the dynamic tree's codes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lilliput.core.errors import ExchangeError
from lilliput.solve import dynamic_tree


def coded(value: Tensor) -> Tensor:
    """Returns a tensor as bytes, uint8: the largest magnitude in 4, then one for each element.

    Dettmers 2016 (arXiv 1511.04561), for model parallelism. NaN or infinity anywhere makes the scale infinite, and
    what is decoded NaN.

    >>> decoded(coded(torch.tensor([[2.0, -1.0, 0.0]])), (1, 3))
    tensor([[ 2.0000, -0.9859,  0.0000]])
    """
    flat = value.detach().to(torch.float32).flatten()
    top = flat.abs().max() if flat.numel() else flat.new_zeros(())
    top = torch.where(torch.isfinite(top), top, torch.inf).reshape(1)
    codes = dynamic_tree.encode(flat / torch.where(top > 0, top, 1))
    return torch.cat([top.view(torch.uint8), codes])


def decoded(data: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns the tensor again, float32."""
    top = data[:4].clone().view(torch.float32)
    return (dynamic_tree.decode(data[4:]) * top).reshape(shape)


def send(value: Tensor, to: int, group: Any = None) -> Tensor:
    """Sends activations to the process that holds the next part of the model.

    Args:
        value: any shape, which the other process must know.
        to: rank of the other process, which calls `receive`.
        group: process group; None for the default one.

    Returns:
        A zero; `backward()` on it waits for the errors, and goes on from them through this part of the model.

    Raises:
        ExchangeError: if the other process is gone.
    """
    token: Tensor = _Send.apply(value, to, group)  # type: ignore[no-untyped-call]
    return token


def receive(shape: tuple[int, ...], source: int, group: Any = None) -> Tensor:
    """Receives activations from the process that holds the part of the model before; errors go back to it.

    Args:
        shape: of the activations.
        source: rank of the other process, which calls `send`.
        group: process group; None for the default one.

    Returns:
        float32, which wants a gradient.

    Raises:
        ExchangeError: if the other process is gone.
    """
    value: Tensor = _Receive.apply(torch.zeros((), requires_grad=True), shape, source, group)  # type: ignore[no-untyped-call]
    return value


def _sent(data: Tensor, to: int, group: Any) -> None:
    try:
        dist.send(data, to, group)
    except RuntimeError as error:
        raise ExchangeError(f"process {to} is gone or hangs: {str(error).splitlines()[0][:160]}") from error


def _received(shape: tuple[int, ...], source: int, group: Any) -> Tensor:
    data = torch.empty(4 + torch.Size(shape).numel(), dtype=torch.uint8)
    try:
        dist.recv(data, source, group)
    except RuntimeError as error:
        raise ExchangeError(f"process {source} is gone or hangs: {str(error).splitlines()[0][:160]}") from error
    return decoded(data, shape)


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, to: int, group: Any) -> Tensor:
        ctx.shape, ctx.dtype, ctx.to, ctx.group = tuple(value.shape), value.dtype, to, group
        _sent(coded(value), to, group)
        return value.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _received(ctx.shape, ctx.to, ctx.group).to(ctx.dtype), None, None


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, shape: tuple[int, ...], source: int, group: Any) -> Tensor:
        ctx.source, ctx.group = source, group
        return _received(shape, source, group)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        _sent(coded(grads[0]), ctx.source, ctx.group)
        return grads[0].new_zeros(()), None, None, None
