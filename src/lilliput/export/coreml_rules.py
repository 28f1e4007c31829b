"""Each operator in Core ML's language."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lilliput.export.coreml import Arguments, Rule, Writer, rule
from lilliput.export.rules import Unsupported
from lilliput.export.steps import affine_of
from lilliput.graph.ir import InputRef, NodeRef, TensorRef
from lilliput.graph.layers import norm_of

MOST = np.float32(3.4e38)


def _items(value: Any, count: int) -> list[int]:
    items = list(value) if isinstance(value, tuple | list) else [value]
    return [int(item) for item in (items if len(items) == count else items * count)]


def _first(a: Arguments) -> Any:
    return next(iter(a.values()))


@rule("conv1d", "conv1d.padding", "conv2d", "conv2d.padding", "conv3d", "conv3d.padding")
def _conv(w: Writer, a: Arguments) -> Any:
    weight, count = w.weight(a["weight"]), len(w.tensors[a["weight"].name].shape) - 2
    strides, dilations = _items(a["stride"], count), _items(a["dilation"], count)
    more: dict[str, Any] = {"pad_type": "custom"}
    if isinstance(a["padding"], str):
        sizes = w.tensors[a["weight"].name].shape[2:]
        total = [d * (k - 1) if a["padding"] == "same" else 0 for d, k in zip(dilations, sizes)]
        more["pad"] = [side for t in total for side in (t // 2, t - t // 2)]
    else:
        more["pad"] = [side for side in _items(a["padding"], count) for _ in (0, 1)]
    if a["bias"] is not None:
        more["bias"] = w.array(a["bias"])
    told = {"strides": strides, "dilations": dilations, "groups": int(a["groups"])}
    return w.make.conv(x=w.value(a["input"]), weight=weight, **told, **more)


@rule("linear")
def _linear(w: Writer, a: Arguments) -> Any:
    more = {} if a["bias"] is None else {"bias": w.array(a["bias"])}
    return w.make.linear(x=w.value(a["input"]), weight=w.weight(a["weight"]), **more)


@rule("batch_norm")
def _batch_norm(w: Writer, a: Arguments) -> Any:
    norm = norm_of(w.graph.nodes[w.index])
    if norm is None:
        raise Unsupported("a BatchNorm without running statistics")
    sides = (1, -1) + (1,) * (len(w.shape) - 2)
    factor, shift = (array.reshape(sides) for array in affine_of(norm, w.tensors))
    return w.make.add(x=w.make.mul(x=w.value(a["input"]), y=factor), y=shift)


@rule("layer_norm")
def _layer_norm(w: Writer, a: Arguments) -> Any:
    axes = list(range(-len(a["normalized_shape"]), 0))
    more = {key: w.array(a[name]) for key, name in (("gamma", "weight"), ("beta", "bias")) if a[name] is not None}
    return w.make.layer_norm(x=w.value(a["input"]), axes=axes, epsilon=np.float32(a["eps"]), **more)


def _pool(average: bool) -> Rule:
    def pool(w: Writer, a: Arguments) -> Any:
        kernel, pads = _items(a["kernel_size"], 2), _items(a["padding"], 2)
        stride = _items(a["stride"], 2) if a["stride"] else kernel
        if _items(a.get("dilation", 1), 2) != [1, 1] or a.get("divisor_override") is not None or a["ceil_mode"]:
            raise Unsupported("a pool with gaps, a divisor, or sizes rounded up")
        told = {"kernel_sizes": kernel, "strides": stride, "pad_type": "custom"}
        told["pad"] = [side for pad in pads for side in (pad, pad)]
        if not average:
            return w.make.max_pool(x=w.value(a["self"]), **told)
        without = not a["count_include_pad"]
        return w.make.avg_pool(x=w.value(a["self"]), exclude_padding_from_average=without, **told)

    return pool


rule("max_pool2d")(_pool(False))
rule("avg_pool2d")(_pool(True))


@rule("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive(w: Writer, a: Arguments) -> Any:
    x = w.value(a["self"])
    steps = [size // wanted for size, wanted in zip(x.shape[-2:], w.shape[-2:])]
    if [step * wanted for step, wanted in zip(steps, w.shape[-2:])] != list(x.shape[-2:]):
        raise Unsupported("an adaptive pool whose sizes don't divide")
    if w.shape[-2:] == (1, 1):
        return w.make.reduce_mean(x=x, axes=[-2, -1], keep_dims=True)
    return w.make.avg_pool(x=x, kernel_sizes=steps, strides=steps, pad_type="valid")


@rule("mean.dim")
def _mean(w: Writer, a: Arguments) -> Any:
    return w.make.reduce_mean(x=w.value(a["self"]), axes=list(a["dim"]), keep_dims=bool(a["keepdim"]))


def _function(name: str, **told: Any) -> Rule:
    return lambda w, a: getattr(w.make, name)(x=w.value(_first(a)), **told)


for _name in ("relu", "relu6", "sigmoid", "tanh", "exp", "sqrt", "abs", "silu", "erf", "softplus"):
    rule(_name)(_function(_name))
rule("rsqrt")(_function("rsqrt", epsilon=np.float32(0)))
rule("neg")(_function("mul", y=np.float32(-1)))
rule("hardsigmoid")(_function("sigmoid_hard", alpha=np.float32(1 / 6), beta=np.float32(0.5)))


@rule("hardswish")
def _hardswish(w: Writer, a: Arguments) -> Any:
    x = w.value(_first(a))
    return w.make.mul(x=x, y=w.make.sigmoid_hard(x=x, alpha=np.float32(1 / 6), beta=np.float32(0.5)))


@rule("hardtanh", "clamp")
def _clamp(w: Writer, a: Arguments) -> Any:
    low, high = (a["min_val"], a["max_val"]) if "min_val" in a else (a["min"], a["max"])
    x = w.value(a["self"])
    if low == 0 and high in (None, 6):
        return w.make.relu(x=x) if high is None else w.make.relu6(x=x)
    ends = (-MOST if low is None else np.float32(low), MOST if high is None else np.float32(high))
    return w.make.clip(x=x, alpha=ends[0], beta=ends[1])


@rule("gelu")
def _gelu(w: Writer, a: Arguments) -> Any:
    return w.make.gelu(x=w.value(a["self"]), mode="TANH_APPROXIMATION" if a["approximate"] == "tanh" else "EXACT")


@rule("leaky_relu")
def _leaky_relu(w: Writer, a: Arguments) -> Any:
    return w.make.leaky_relu(x=w.value(a["self"]), alpha=np.float32(a["negative_slope"]))


@rule("softmax.int", "_softmax")
def _softmax(w: Writer, a: Arguments) -> Any:
    return w.make.softmax(x=w.value(a["self"]), axis=int(a["dim"]))


@rule("scaled_dot_product_attention")
def _attention(w: Writer, a: Arguments) -> Any:
    if a["attn_mask"] is not None or a["is_causal"] or a["enable_gqa"]:
        raise Unsupported("attention with a mask, or with fewer heads of keys")
    query = w.value(a["query"])
    scale = a["scale"] if a["scale"] is not None else 1 / math.sqrt(query.shape[-1])
    scaled = w.make.mul(x=query, y=np.float32(scale))
    scores = w.make.matmul(x=scaled, y=w.value(a["key"]), transpose_y=True)
    return w.make.matmul(x=w.make.softmax(x=scores, axis=-1), y=w.value(a["value"]))


@rule("matmul", "bmm", "mm")
def _matmul(w: Writer, a: Arguments) -> Any:
    one, two = list(a.values())[:2]
    return w.make.matmul(x=w.value(one), y=w.value(two))


def _binary(operator: str) -> Rule:
    def combine(w: Writer, a: Arguments) -> Any:
        one, two = (w.value(ref) for ref in list(a.values())[:2])
        if a.get("alpha", 1) != 1:
            two = w.make.mul(x=two, y=np.float32(a["alpha"]))
        return getattr(w.make, operator)(x=one, y=two)

    return combine


for _name, _operator in (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("div", "real_div")):
    rule(f"{_name}.Tensor", f"{_name}.Scalar")(_binary(_operator))
rule("pow.Tensor_Scalar")(_binary("pow"))
rule("ge.Scalar")(_binary("greater_equal"))


@rule("where.Scalar")
def _where(w: Writer, a: Arguments) -> Any:
    return w.make.select(cond=w.value(a["condition"]), a=np.float32(a["self"]), b=np.float32(a["other"]))


@rule("clone", "contiguous", "detach", "dropout", "identity", "alias", "to.dtype")
def _same(w: Writer, a: Arguments) -> Any:
    if not w.infos[w.index].dtype.is_floating_point:
        raise Unsupported("another type")
    return w.value(_first(a))


@rule("view", "reshape", "flatten.using_ints", "squeeze", "squeeze.dim", "squeeze.dims", "unsqueeze", "unflatten.int")
def _reshape(w: Writer, a: Arguments) -> Any:
    x = w.value(a["self"])
    return x if tuple(x.shape) == w.shape else w.make.reshape(x=x, shape=list(w.shape))


@rule("permute", "transpose.int", "t", "mT")
def _permute(w: Writer, a: Arguments) -> Any:
    x = w.value(a["self"])
    rank = len(x.shape)
    order = [axis % rank for axis in a["dims"]] if "dims" in a else list(range(rank))
    if "dims" not in a:
        one, two = (axis % rank for axis in (list(a.values())[1:3] or (-2, -1)))
        order[one], order[two] = order[two], order[one]
    return w.make.transpose(x=x, perm=order)


@rule("cat")
def _cat(w: Writer, a: Arguments) -> Any:
    return w.make.concat(values=[w.value(ref) for ref in a["tensors"]], axis=int(a["dim"]) % len(w.shape))


def _sliced(w: Writer, x: Any, axis: int, ends: tuple[int, int, int], drop: bool = False) -> Any:
    """Elements from an index to before another along one axis, which may be dropped."""
    begin, end, stride = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
    begin[axis], end[axis], stride[axis] = ends
    found = w.make.slice_by_index(x=x, begin=begin, end=end, stride=stride)
    return w.make.squeeze(x=found, axes=[axis]) if drop else found


@rule("slice.Tensor")
def _slice(w: Writer, a: Arguments) -> Any:
    x = w.value(a["self"])
    axis = a["dim"] % len(x.shape)
    return _sliced(w, x, axis, slice(a["start"], a["end"], a["step"]).indices(x.shape[axis]))


@rule("select.int")
def _select(w: Writer, a: Arguments) -> Any:
    x = w.value(a["self"])
    axis = a["dim"] % len(x.shape)
    place = a["index"] % x.shape[axis]
    return _sliced(w, x, axis, (place, place + 1, 1), True)


@rule("chunk", "split.Tensor", "split_with_sizes", "unbind.int")
def _split(w: Writer, a: Arguments) -> Any:
    x, parts = w.value(a["self"]), w.infos[w.index]
    axis = a.get("dim", 0) % len(x.shape)
    found, start = [], 0
    for part in parts:
        drop = len(part.shape) != len(x.shape)
        size = 1 if drop else part.shape[axis]
        found.append(_sliced(w, x, axis, (start, start + size, 1), drop))
        start += size
    return found


@rule("item")
def _item(w: Writer, a: Arguments) -> Any:
    parts, place = list(a.values())[:2]
    return w.values[parts][place]


@rule("pad", "constant_pad_nd")
def _pad(w: Writer, a: Arguments) -> Any:
    x, pad = w.value(a["self"]), list(a["pad"])
    if a.get("mode", "constant") != "constant" or min(pad, default=0) < 0:
        raise Unsupported("a margin that isn't constant")
    sides = [0] * (2 * len(x.shape))
    for place in range(len(pad) // 2):
        sides[-2 - 2 * place], sides[-1 - 2 * place] = pad[2 * place], pad[2 * place + 1]
    return w.make.pad(x=x, pad=sides, mode="constant", constant_val=np.float32(a["value"] or 0))


@rule("expand")
def _expand(w: Writer, a: Arguments) -> Any:
    x = w.value(a["self"])
    if isinstance(a["self"], TensorRef):
        return np.ascontiguousarray(np.broadcast_to(x, w.shape))
    shape = (1,) * (len(w.shape) - len(x.shape)) + tuple(x.shape)
    if shape == w.shape:
        return x if tuple(x.shape) == w.shape else w.make.reshape(x=x, shape=list(shape))
    whole = w.make.reshape(x=x, shape=list(shape)) if len(x.shape) != len(shape) else x
    return w.make.tile(x=whole, reps=[to // size for to, size in zip(w.shape, shape)])


@rule("embedding")
def _embedding(w: Writer, a: Arguments) -> Any:
    if not isinstance(a["indices"], NodeRef | InputRef):
        raise Unsupported("a constant index")
    return w.make.gather(x=w.weight(a["weight"]), indices=w.value(a["indices"]), axis=0)
