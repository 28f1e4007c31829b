"""The layers that a factorized convolution is a chain of: strides, padding and dilation where they belong."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_weight
from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

Link = tuple[Tensor, Collection[int], int]
"""One convolution of a chain: its weight, the spatial axes along which it does the work, its groups."""


def check_convolution(weight: Tensor, method: str, *, planar: bool = False) -> None:
    """Raises MethodError unless a weight is a convolution's, (out, in, ...), finite and not empty.

    Args:
        weight: the weight.
        method: for the message.
        planar: whether it must have a height and a width.
    """
    check_weight(weight, method)
    if planar and (weight.ndim != 4 or not weight.numel()):
        raise MethodError(f"{method}: needs a weight (out, in, height, width), not of shape {tuple(weight.shape)}")
    if weight.ndim < 3 or not weight.numel():
        raise MethodError(
            f"{method}: needs a convolution's weight, not one of shape {tuple(weight.shape)}; for a matrix use "
            "factorize/svd"
        )


def factors(packed: Packed, *names: str) -> tuple[Tensor, ...]:
    """Returns the factors of a convolution's weight.

    Raises:
        MethodError: if one is missing or of another type than the weight, or the shape is no convolution's.
    """
    if len(packed.shape) < 3 or 0 in packed.shape:
        raise MethodError(f"{packed.method}: shape {packed.shape} is no convolution's")
    found = tuple(packed.tensor(name, integer=False) for name in names)
    if any(part.dtype != packed.dtype for part in found):
        raise MethodError(f"{packed.method}: factors {', '.join(str(p.dtype) for p in found)} of {packed.dtype}")
    return found


def misfit(packed: Packed, *parts: Tensor) -> MethodError:
    """Returns the error that says that these factors don't make the packed shape."""
    sizes = ", ".join(str(tuple(part.shape)) for part in parts)
    return MethodError(f"{packed.method}: factors {sizes} don't make {packed.shape}")


def in_turn(packed: Packed, layer: nn.Module, links: Sequence[Link]) -> nn.Sequential:
    """Returns the convolutions that do what a layer does with the unpacked weight.

    Args:
        packed: the weight.
        layer: a convolution without groups; its bias goes to the last.
        links: the chain; a matrix (out, in / groups) is a convolution of extent 1.

    Raises:
        MethodError: if the layer is of another kind or shape.
    """
    check_layer(packed, layer)
    like: Any = layer
    made = []
    for place, (weight, axes, groups) in enumerate(links):
        bias = like.bias if place == len(links) - 1 else None
        if weight.ndim == 2:
            made.append(pointwise(weight, like, bias, groups))
        else:
            made.append(convolution(weight, like, axes, bias=bias, groups=groups))
    return nn.Sequential(*made)


def check_layer(packed: Packed, layer: nn.Module, *, grouped: bool = False) -> None:
    """Raises MethodError unless the layer is one whose weight was packed: linear, or a convolution.

    Args:
        packed: the weight.
        layer: the layer.
        grouped: whether the convolution may have several groups.
    """
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise MethodError(f"{packed.method}: no chain of layers for {type(layer).__name__}")
    if tuple(layer.weight.shape) != packed.shape:
        raise MethodError(f"{packed.method}: packed {packed.shape}, the layer's weight is {tuple(layer.weight.shape)}")
    if not isinstance(layer, nn.Linear) and ((layer.groups != 1 and not grouped) or isinstance(layer.padding, str)):
        raise MethodError(f"{packed.method}: a chain needs groups = 1 and padding in numbers; use the composed weight")


def linear(weight: Tensor, bias: Tensor | None = None) -> Any:
    """Returns a linear layer of this weight, (out, in)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
    return _filled(layer, weight, bias)


def convolution(
    weight: Tensor, like: Convolution, axes: Collection[int], *, bias: Tensor | None = None, groups: int = 1
) -> Any:
    """Returns a convolution of this weight that has another's stride, padding and dilation along some axes.

    Only the factor with a spatial extent may be padded, and no factor but the last may have a bias: otherwise the
    borders would come out differently.

    Args:
        weight: (out, in / groups, ...).
        like: the convolution that is factorized.
        axes: spatial axes, from 0, along which this factor does the work.
        bias: (out,), or None.
        groups: of the new convolution.
    """
    count = len(like.kernel_size)

    def along(values: Any, plain: int) -> Any:
        return tuple(int(values[axis]) if axis in axes else plain for axis in range(count))

    cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[count - 1]
    layer = cls(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        along(like.stride, 1),
        along(like.padding, 0),
        along(like.dilation, 1),
        groups,
        bias is not None,
        like.padding_mode,
        weight.device,
        weight.dtype,
    )
    return _filled(layer, weight, bias)


def pointwise(weight: Tensor, like: Convolution, bias: Tensor | None = None, groups: int = 1) -> Any:
    """Returns the convolution of extent 1 that a matrix (out, in / groups) is."""
    wide = weight.reshape(*weight.shape, *[1] * len(like.kernel_size))
    return convolution(wide, like, (), bias=bias, groups=groups)


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
