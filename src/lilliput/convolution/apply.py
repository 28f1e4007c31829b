"""A convolution by an algorithm of choice, differentiable where the algorithm is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lilliput.convolution.contract import Algorithm, check
from lilliput.core.errors import MethodError
from lilliput.hardware.layer import Layer


def convolve(x: Tensor, weight: Tensor, layer: Layer, algorithm: Algorithm, bias: Tensor | None = None) -> Tensor:
    """Convolves as `torch.nn.functional.conv2d` does, by the algorithm given.

    Args:
        x: (batch, channels, height, width).
        weight: (filters, channels / groups, kernel height, kernel width).
        layer: sizes, stride, padding, dilation and groups; `contract.layer_of` makes it of x and weight.
        algorithm: from `convolution/`.
        bias: (filters,).

    Raises:
        MethodError: an algorithm that can't compute this layer, or a gradient wanted of one that has none.

    >>> from lilliput.convolution.contract import layer_of
    >>> from lilliput.convolution.winograd import Winograd
    >>> x, w = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    >>> convolve(x, w, layer_of(x, w), Winograd(2)).flatten().tolist()
    [9.0, 9.0, 9.0, 9.0]
    """
    check(algorithm, layer)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        if not hasattr(algorithm, "gradients"):
            name = type(algorithm).__name__.lower()
            raise MethodError(
                f"convolution/{name} has no backward pass: use winograd, fft or im2col, or torch.no_grad()"
            )
        found: Tensor = _Convolution.apply(x, weight, bias, algorithm, layer)  # type: ignore[no-untyped-call]
        return found
    return algorithm.run(x, algorithm.prepare(weight, layer), layer, bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, algorithm: Algorithm, layer: Layer) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.held = algorithm, layer
        return algorithm.run(x, algorithm.prepare(weight, layer), layer, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        algorithm, layer = ctx.held
        into, of_weight = algorithm.gradients(grad, x, weight, layer)
        return into, of_weight, grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None, None
