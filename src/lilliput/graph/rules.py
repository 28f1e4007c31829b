"""What each operator does to channel indices: the table of rules, with those for elementwise operators and norms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from lilliput.graph import contract, views
from lilliput.graph.flow import Axes, Flow, Rule, short
from lilliput.graph.ir import Node
from lilliput.graph.operators import operators

Bound = Mapping[str, Any]

_ELEMENTWISE = """
    abs neg positive exp exp2 expm1
    log log1p log2 log10 sqrt rsqrt reciprocal square sign sgn sin cos tan asin acos atan
    sinh cosh tanh asinh acosh atanh erf erfc erfinv lgamma sinc floor ceil round trunc frac sigmoid logit relu relu6
    hardswish hardsigmoid hardtanh silu gelu mish elu selu celu leaky_relu softplus log_sigmoid _prelu_kernel threshold
    hardshrink softshrink logical_not bitwise_not isnan isinf isfinite nan_to_num clamp clip clamp_min clamp_max deg2rad
    rad2deg add sub mul div true_divide floor_divide remainder fmod pow rsub maximum minimum atan2 hypot copysign
    logaddexp xlogy eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor __and__
    __or__ __xor__ where masked_fill lerp addcmul addcdiv clone contiguous detach alias to type_as zeros_like ones_like
    full_like fill
"""
_REDUCTIONS = """
    sum mean amax amin max min argmax argmin prod any all var std var_mean std_mean norm linalg_vector_norm logsumexp
"""
_ALONG = "softmax log_softmax _softmax _log_softmax cumsum cumprod topk sort argsort roll"
_WINDOWS = """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    max_pool2d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
    upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d
"""


def elementwise(flow: Flow, node: Node, bound: Bound) -> Any:
    """Joins what is combined index by index."""
    operands = flow.operands(node)
    if not isinstance(flow.result, tuple):
        flow.block(operands, f"{short(node.operator)} mixes them")
        return flow.fixed()
    return Axes(flow.result, flow.broadcast(operands, flow.result, node.operator))


def reduced(flow: Flow, node: Node, bound: Bound) -> Any:
    """What is reduced over can't be cut: a mean, a maximum or a norm would be another one."""
    operands = flow.operands(node)
    if "other" in bound and len(operands) > 1:
        return elementwise(flow, node, bound)
    x = operands[0]
    rank = len(x.shape)
    given = bound.get("dim")
    dims = {d % rank for d in flow.numbers(given)} if given not in (None, ()) and rank else set(range(rank))
    for d in dims:
        flow.atoms.block(x.labels[d], f"{short(node.operator)} is taken over them")
    keep = bool(bound.get("keepdim"))
    labels = tuple(None if d in dims else label for d, label in enumerate(x.labels) if keep or d not in dims)
    if isinstance(flow.result, list):
        return [Axes(shape, labels) for shape in flow.result]
    return Axes(flow.result, labels)


def along(flow: Flow, node: Node, bound: Bound) -> Any:
    """One dimension, or a few, are mixed; others go on."""
    x = flow.operands(node)[0]
    given = bound.get("dim", bound.get("dims"))
    rank = len(x.shape)
    dims = {d % rank for d in flow.numbers(given)} if given not in (None, ()) else set(range(rank))
    for d in dims:
        flow.atoms.block(x.labels[d], f"{short(node.operator)} mixes them")
    labels = tuple(None if d in dims else label for d, label in enumerate(x.labels))
    if isinstance(flow.result, list):
        return [Axes(shape, labels) for shape in flow.result]
    return Axes(flow.result, labels)


def windows(flow: Flow, node: Node, bound: Bound) -> Any:
    """Pooling, resampling and padding of space."""
    x = flow.operands(node)[0]
    spatial = int(next(letter for letter in reversed(short(node.operator)) if letter.isdigit()))
    for label in x.labels[-spatial:]:
        flow.atoms.block(label, f"{short(node.operator)} slides along them")
    labels = (*x.labels[:-spatial], *(None,) * spatial)
    if isinstance(flow.result, list):
        return [Axes(shape, labels) for shape in flow.result]
    return Axes(flow.result, labels)


def by_channel(flow: Flow, node: Node, bound: Bound) -> Axes:
    """BatchNorm, InstanceNorm and PReLU: tensors of one entry a channel, dimension 1."""
    x, *rest = flow.operands(node)
    label = flow.unify([x.labels[1], *[item.labels[0] for item in rest if item.shape != (1,)]], node.operator)
    return Axes(flow.result, (x.labels[0], label, *x.labels[2:]))


def group_norm(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Whole groups go, each with its own statistics."""
    x, *rest = flow.operands(node)
    label = flow.unify([x.labels[1], *[item.labels[0] for item in rest]], node.operator)
    groups = int(bound["num_groups"])
    for other in x.labels[2:]:
        flow.atoms.block(other, "group_norm takes its statistics over them")
    if groups == 1:
        flow.atoms.block(label, "group_norm takes its statistics over them")
    elif label is not None:
        rows = label.reshape(groups, -1)
        flow.atoms.join(np.repeat(rows[:, :1], rows.shape[1] - 1, 1), rows[:, 1:], "group_norm joins them")
    return Axes(flow.result, (x.labels[0], label, *(None,) * (len(x.shape) - 2)))


def layer_norm(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Fewer channels would have another mean and variance than the same ones with zeros: they stay."""
    x, *rest = flow.operands(node)
    count = len(flow.numbers(bound["normalized_shape"]))
    flow.block([*rest, Axes(x.shape[-count:], x.labels[-count:])], f"{short(node.operator)} is taken over them")
    return Axes(flow.result, (*x.labels[:-count], *(None,) * count))


def gated(flow: Flow, node: Node, bound: Bound) -> Axes:
    """`glu`: one half gates the other."""
    x = flow.operands(node)[0]
    d = int(bound["dim"]) % len(x.shape)
    labels = list(x.labels)
    label = labels[d]
    labels[d] = None if label is None else flow.unify(list(label.reshape(2, -1)), node.operator)
    return Axes(flow.result, tuple(labels))


def created(flow: Flow, node: Node, bound: Bound) -> Axes:
    """One value everywhere: any size suits."""
    shape: tuple[int, ...] = flow.result
    return Axes(shape, tuple(flow.atoms.new(size, soft=True) if size > 1 else None for size in shape))


def item(flow: Flow, node: Node, bound: Bound) -> Any:
    """One of several results."""
    return flow.of(bound["values"])[int(bound["index"])]


@cache
def rules() -> dict[str, Rule]:
    """Returns the rule of each operator that has one, by full name.

    Example:
        >>> rules()["aten.relu.default"] is rules()["aten.add.Tensor"]
        True
    """
    words: dict[Rule, str] = {
        elementwise: _ELEMENTWISE,
        reduced: _REDUCTIONS,
        along: _ALONG,
        windows: _WINDOWS,
        by_channel: "batch_norm instance_norm prelu",
        group_norm: "group_norm",
        layer_norm: "layer_norm rms_norm",
        gated: "glu",
        created: "zeros ones full new_zeros new_ones new_full",
    }
    table = {name: rule for rule, names in words.items() for name in names.split()}
    table |= views.rule_table() | contract.rule_table()
    found = {name: table[short(name)] for name in operators() if name.startswith("aten.") and short(name) in table}
    return found | {"item": item}
