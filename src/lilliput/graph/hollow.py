"""Operators that give a tensor of the right shape without computing it: all that following channels needs.

What is in such a tensor is whatever the memory held. So nothing may look at it: where a model's code does, `hollow`
says so, and the model is run in earnest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class LookedAtError(Exception):
    """Something depends on values, which are not there."""


# Small results may as well be computed.
_FEW = 1 << 12


def hollow(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Gives what an operator would, with no values in it.

    Args:
        func: the operator; one in place gives what it would write to.
        name: without namespace and overload.
        args: its arguments.
        kwargs: by name.

    Returns:
        A tensor, or several; None if the operator has to be computed.

    Raises:
        LookedAtError: the result would depend on values that may be missing.
        ValueError, RuntimeError: the shapes don't fit.
    """
    if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
        raise LookedAtError(f"{name} looks at values")
    x = args[0] if args else None
    if isinstance(x, list | tuple):
        return _joined(*args) if name == "cat" else None
    if not isinstance(x, Tensor) or x.dtype is not torch.float32:
        return None
    if name == "_to_copy" and not (kwargs.get("dtype") or x.dtype).is_floating_point:
        raise LookedAtError("values become integers")
    if func._schema.is_mutable:
        plain = _RULES.get(name.removesuffix("_"))
        made = plain(func, args, kwargs) if plain in (_like, _of_two) else None
        return x if made is not None and made.shape == x.shape else None
    rule = _RULES.get(name)
    return None if rule is None else rule(func, args, kwargs)


Arguments = Sequence[Any]
Rule = Callable[[Any, Arguments, Mapping[str, Any]], Any]


def _like(func: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return torch.empty_like(args[0])


def _normed(func: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return torch.empty_like(args[0]), torch.empty(0), torch.empty(0)


def _of_two(func: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    one, two = args[:2]
    if isinstance(two, int | float):
        return torch.empty_like(one)
    if isinstance(two, Tensor) and (two.dtype is one.dtype or two.dim() == 0):
        if one.shape == two.shape:
            return torch.empty_like(one)
        shape: torch.Size = torch.broadcast_shapes(one.shape, two.shape)  # type: ignore[no-untyped-call]
        return torch.empty(shape)
    return None


def _product(func: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    one, two = args[-2:]
    if one.shape[-1] != two.shape[-2]:
        raise ValueError(f"a product of {tuple(one.shape)} and {tuple(two.shape)}")
    return torch.empty(*one.shape[:-1], two.shape[-1])


def _averaged(func: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    if len(args) < 2 or kwargs:
        return None
    x, dims, *keep = args
    gone = {dim % x.dim() for dim in dims or range(x.dim())}
    return torch.empty(
        [1 if dim in gone else size for dim, size in enumerate(x.shape) if keep == [True] or dim not in gone]
    )


def _pooled(func: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return torch.empty(*args[0].shape[:-2], *args[1])


def _by_meta(func: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    """The shape is torch's own to say."""
    if args[0].numel() <= _FEW:
        return None
    return _filled(func(torch.empty(args[0].shape, device="meta"), *args[1:], **kwargs))


def _filled(result: Any) -> Any:
    if isinstance(result, Tensor):
        # Numbers that are no floats may be indices.
        return (torch.empty if result.is_floating_point() else torch.zeros)(result.shape, dtype=result.dtype)
    return tuple(_filled(item) for item in result)


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    rank = tensors[0].dim()
    if any(x.dtype is not torch.float32 or x.dim() != rank for x in tensors):
        return None
    rest = {tuple(size for d, size in enumerate(x.shape) if d != dim % rank) for x in tensors}
    if len(rest) != 1:
        return None
    shape = list(tensors[0].shape)
    shape[dim] = sum(x.shape[dim] for x in tensors)
    return torch.empty(shape)


def _convolved(func: Any, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args
    rows, columns, *kernel = weight.shape
    inputs, outputs = (rows, columns * groups) if transposed else (columns * groups, rows)
    if x.dim() != weight.dim() or x.shape[1] != inputs:
        raise ValueError(f"a convolution of {tuple(x.shape)} with {tuple(weight.shape)}")
    many = [
        list(value) * (len(kernel) if len(value) == 1 else 1) for value in (stride, padding, dilation, output_padding)
    ]
    sizes = []
    for size, width, step, pad, gap, more in zip(x.shape[2:], kernel, *many):
        reach = gap * (width - 1)
        sizes.append(
            (size - 1) * step - 2 * pad + reach + more + 1 if transposed else (size + 2 * pad - reach - 1) // step + 1
        )
    if min(sizes) <= 0 or math.prod(sizes) == 0:
        raise ValueError("a convolution without results")
    return torch.empty(x.shape[0], outputs, *sizes)


_WORDS: dict[Rule, str] = {
    _like: """
        relu sigmoid silu gelu hardtanh hardswish hardsigmoid leaky_relu elu tanh mish softplus _softmax exp clamp_min
        clamp
        """,
    _of_two: "add sub mul div maximum minimum",
    _normed: "native_batch_norm native_layer_norm native_group_norm",
    _product: "addmm mm bmm",
    _averaged: "mean",
    _pooled: "_adaptive_avg_pool2d",
    _by_meta: "max_pool2d_with_indices avg_pool2d upsample_bilinear2d upsample_nearest2d",
    _convolved: "convolution",
}
_RULES = {name: rule for rule, names in _WORDS.items() for name in names.split()}
