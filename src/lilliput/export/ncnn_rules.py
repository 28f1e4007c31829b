"""Which of ncnn's layers each operator becomes."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lilliput.core.errors import ModelError
from lilliput.export.ncnn import INT8, Net, Shape, form, raw, removed
from lilliput.export.ncnn_table import Scales
from lilliput.export.quantized import Levels, codes_of
from lilliput.graph.ir import NodeRef, TensorRef
from lilliput.graph.layers import CONVOLUTIONS, LINEAR, arguments_of, norm_of
from lilliput.graph.operators import operators

INF = float("inf")
ALL = 2**62
"""From here on the end of a slice is that of the axis, however long it is."""
UNARY = {
    "abs": 0, "neg": 1, "floor": 2, "ceil": 3, "square": 4, "sqrt": 5, "rsqrt": 6, "exp": 7, "log": 8, "sin": 9,
    "cos": 10, "tan": 11, "asin": 12, "acos": 13, "atan": 14, "reciprocal": 15, "log10": 17, "round": 18, "trunc": 19,
}  # fmt: skip
BINARY = {"add": 0, "sub": 1, "mul": 2, "div": 3, "maximum": 4, "minimum": 5, "pow": 6, "rsub": 7}
REDUCED = {"sum": 0, "mean": 3, "amax": 4, "amin": 5}
SAME = frozenset(
    ("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone", "dropout", "detach",
     "alias", "expand", "type_as", "to")
)  # fmt: skip
PLAIN: dict[str, tuple[str, Callable[[Mapping[str, Any]], dict[int, float]]]] = {
    "relu": ("ReLU", lambda a: {}),
    "leaky_relu": ("ReLU", lambda a: {0: float(a["negative_slope"])}),
    "relu6": ("Clip", lambda a: {0: 0.0, 1: 6.0}),
    "hardtanh": ("Clip", lambda a: {0: float(a["min_val"]), 1: float(a["max_val"])}),
    "clamp": ("Clip", lambda a: {0: _end(a["min"], -INF), 1: _end(a["max"], INF)}),
    "clamp_min": ("Clip", lambda a: {0: float(a["min"]), 1: INF}),
    "clamp_max": ("Clip", lambda a: {0: -INF, 1: float(a["max"])}),
    "sigmoid": ("Sigmoid", lambda a: {}),
    "tanh": ("TanH", lambda a: {}),
    "silu": ("Swish", lambda a: {}),
    "mish": ("Mish", lambda a: {}),
    "selu": ("SELU", lambda a: {}),
    "hardswish": ("HardSwish", lambda a: {0: 1 / 6, 1: 0.5}),
    "hardsigmoid": ("HardSigmoid", lambda a: {0: 1 / 6, 1: 0.5}),
    "gelu": ("GELU", lambda a: {0: int(a["approximate"] == "tanh")}),
    "elu": ("ELU", lambda a: {0: float(a["alpha"])}),
}
"""Functions of one value: ncnn's name, and its settings from the operator's."""
ORDERS = {(0, 1, 2): 0, (0, 2, 1): 1, (1, 0, 2): 2, (1, 2, 0): 3, (2, 0, 1): 4, (2, 1, 0): 5}
"""ncnn's number of an order of three axes: which axis of the source comes first, second, third."""


def translated(net: Net, index: int) -> Any:
    """Adds the layers of a node; returns the number of the tensor that it gives, or a list of them.

    Args:
        net: the layers so far.
        index: of the node.

    Raises:
        ModelError: it has no counterpart.
    """
    node = net.graph.nodes[index]
    if index in net.levels:
        return net.value(net.levels[index].source)
    try:
        if node.operator == "item":
            found = net.values[node.args[0]]
            return found[node.args[1]]
        word, found = node.operator.split(".")[1], arguments_of(node)
        # In the operator's own order.
        bound = {one.name: found[one.name] for one in operators()[node.operator].parameters if one.name in found}
        if norm_of(node) is not None:
            return _batch_norm(net, bound, index)
        if node.operator == LINEAR:
            return _linear(net, bound, index)
        if node.operator in CONVOLUTIONS:
            return _convolution(net, bound, index)
        return _other(net, word, bound, index)
    except (ModelError, KeyError) as error:
        raise ModelError(f"ncnn can't take node {index} ({node.operator}): {error}") from None


def _other(net: Net, word: str, a: Mapping[str, Any], index: int) -> Any:
    first = next(iter(a.values()))
    shape = net.shape(NodeRef(index)) if not isinstance(net.infos[index], list) else ()
    if word in SAME:
        return _same(net, first, shape)
    if word in PLAIN:
        kind, settings = PLAIN[word]
        return net.add(kind, [net.value(first)], form(shape), settings(a))
    if word in UNARY:
        return net.add("UnaryOp", [net.value(first)], form(shape), {0: UNARY[word]})
    if word in BINARY:
        return _binary(net, word, a, shape)
    if word in REDUCED:
        return _reduced(net, word, a, shape)
    rule = RULES.get(word)
    if rule is None:
        raise ModelError("there is no counterpart")
    return rule(net, a, shape)


def _end(value: Any, otherwise: float) -> float:
    return otherwise if value is None else float(value)


def _same(net: Net, first: Any, shape: Shape) -> int:
    """The same numbers in another shape."""
    if isinstance(first, TensorRef) and math.prod(net.shape(first)) != math.prod(shape):
        return net.constant(net.tensors[first.name].expand(shape), form(shape))
    return net.reshape(net.value(first), form(shape))


def _binary(net: Net, word: str, a: Mapping[str, Any], shape: Shape) -> int:
    one, two = list(a.values())[:2]
    if a.get("alpha", 1) != 1:
        raise ModelError("with a factor alpha")
    numbers = [not isinstance(net.infos[r.index], list) and not hasattr(net.infos[r.index], "shape")
               if isinstance(r, NodeRef) else not hasattr(r, "index") and not isinstance(r, TensorRef)
               for r in (one, two)]  # fmt: skip
    if numbers[0]:
        raise ModelError("a number first")
    if numbers[1]:
        return net.add("BinaryOp", [net.value(one)], form(shape), {0: BINARY[word], 1: 1, 2: float(net.number(two))})
    gone = removed(shape)
    takes = []
    for ref in (one, two):
        own = (1,) * (len(shape) - len(net.shape(ref))) + net.shape(ref)
        takes.append(net.reshape(net.value(ref), tuple(s for axis, s in enumerate(own) if axis != gone) or (1,)))
    return net.add("BinaryOp", takes, form(shape), {0: BINARY[word]})


def _axis(net: Net, ref: Any, axis: int) -> int | None:
    """An axis of torch's as one of ncnn's; None for the one that isn't there."""
    if net.follows(ref, axis):
        raise ModelError("over the batch")
    shape = net.shape(ref)
    axis, gone = axis % len(shape), removed(shape)
    return None if axis == gone else axis - (gone is not None and axis > gone)


def _reduced(net: Net, word: str, a: Mapping[str, Any], shape: Shape) -> int:
    source = a.get("self", a.get("input"))
    own, dims = net.shape(source), a.get("dim")
    axes = range(len(own)) if dims in (None, (), []) else [net.number(dims)] if isinstance(dims, int) else dims
    places = sorted(place for axis in axes if (place := _axis(net, source, axis)) is not None)
    if word == "mean" and len(own) == 4 and own[0] == 1 and places == [1, 2]:
        return net.reshape(_global(net, source), form(shape))
    if not places:
        return net.reshape(net.value(source), form(shape))
    kept = tuple(1 if place in places else size for place, size in enumerate(form(own)))
    settings = {0: REDUCED[word], 1: 0, -23303: places, 4: 1, 5: 1}
    return net.reshape(net.add("Reduction", [net.value(source)], kept, settings), form(shape))


def _global(net: Net, source: Any) -> int:
    """The mean of each channel; ncnn gives it one axis."""
    return net.add("Pooling", [net.value(source)], (net.shape(source)[1],), {0: 1, 4: 1})


def _batch_norm(net: Net, a: Mapping[str, Any], index: int) -> int:
    mean = net.tensors[a["running_mean"].name]
    parts = [net.tensors[a[key].name] if a[key] is not None else mean * 0 + (key == "weight")
             for key in ("weight", "running_mean", "running_var", "bias")]  # fmt: skip
    settings = {0: len(mean), 1: float(a["eps"])}
    return net.add("BatchNorm", [net.value(a["input"])], form(net.shape(NodeRef(index))), settings, map_raw(parts))


def map_raw(parts: Sequence[Any]) -> list[bytes]:
    """Tensors as they stand in the .bin file."""
    return [raw(part) for part in parts]


def _parameters(net: Net, a: Mapping[str, Any]) -> tuple[str, Any, list[bytes]]:
    """Name and tensor of a product's weight, and the bias for the file."""
    weight, bias = a["weight"], a["bias"]
    if not isinstance(weight, TensorRef) or not isinstance(bias, TensorRef | None):
        raise ModelError("a computed weight")
    return weight.name, net.tensors[weight.name], [] if bias is None else [raw(net.tensors[bias.name])]


def _product(net: Net, kind: str, a: Mapping[str, Any], source: int, shape: Shape, settings: dict[int, Any]) -> int:
    """A convolution or linear layer, in 8 bits where it can be."""
    name, weight, bias = _parameters(net, a)
    settings[1 if kind == "InnerProduct" else 5] = len(bias)
    settings[2 if kind == "InnerProduct" else 6] = weight.numel()
    levels = net.levels_of(a["input"])
    scales, codes = _coded(net.packed.get(name), levels, settings.get(7, 1))
    path = name.removesuffix(".weight").replace(" ", "_") or kind.lower()
    taken = {layer.name for layer in net.layers}
    path = path if path not in taken else f"{path}_{len(net.layers)}"
    if scales is None:
        return net.add(kind, [source], shape, settings, [net.weight(weight), *bias], path)
    assert codes is not None
    settings[8] = 1
    data = codes.tobytes()
    ends = [np.array(scales.weight, np.float32).tobytes(), np.array([scales.source], np.float32).tobytes()]
    held = struct.pack("<I", INT8) + data + bytes(-len(data) % 4)
    found = net.add(kind, [source], shape, settings, [held, *bias, *ends], path)
    net.layers[-1].scales = scales
    return found


def _coded(packed: Any, levels: Levels | None, groups: int) -> tuple[Scales | None, Any]:
    """Scales and codes of a product in 8 bits; ncnn has one scale for all rows of a group."""
    held = codes_of(packed)
    if held is None or levels is None or held.codes.min() < -127:
        return None, None
    rows = np.broadcast_to(held.scale, held.codes.shape[:1])
    if groups > 1:
        grouped = rows.reshape(groups, -1)
        if not (grouped == grouped[:, :1]).all():
            return None, None
        rows = grouped[:, 0]
    reach = max(levels.high - levels.zero, levels.zero - levels.low) * levels.scale
    with np.errstate(divide="ignore"):
        scale = np.where(rows > 0, 1 / rows.astype(np.float64), 0).astype(np.float32)
    return Scales(tuple(scale.tolist()), 127 / reach), np.ascontiguousarray(held.codes)


def _linear(net: Net, a: Mapping[str, Any], index: int) -> int:
    outputs, inputs = net.shape(a["weight"])
    shape = net.shape(NodeRef(index))
    rows = math.prod(shape[:-1])
    source = net.reshape(net.value(a["input"]), (inputs,) if rows == 1 else (rows, inputs))
    found = _product(net, "InnerProduct", a, source, (outputs,) if rows == 1 else (rows, outputs), {0: outputs})
    return net.reshape(found, form(shape))


def _pair(value: Any, count: int = 2) -> tuple[int, int]:
    """Height and width; a convolution of one axis has a height of 1, `count` is 1."""
    items = tuple(value) if isinstance(value, tuple | list) else (value,) * count
    if len(items) == 1 and count == 2:
        items *= 2
    return (1, int(items[0])) if count == 1 else (int(items[0]), int(items[1]))


def _convolution(net: Net, a: Mapping[str, Any], index: int) -> int:
    weight, shape = net.shape(a["weight"]), net.shape(NodeRef(index))
    count = len(weight) - 2
    source, (left, right, top, bottom) = net.margin(a["input"])
    own = net.shape(source)
    if count > 2 or len(own) != count + 2 or own[0] != 1:
        raise ModelError(f"a convolution of {own} by {weight}")
    kernel, stride, dilation = _pair(weight[2:], count), _pair(a["stride"], count), _pair(a["dilation"], count)
    if isinstance(a["padding"], str):
        whole = [d * (k - 1) if a["padding"] == "same" else 0 for d, k in zip(dilation, kernel)]
        before = whole[0] // 2, whole[1] // 2
        after = whole[0] - before[0], whole[1] - before[1]
    else:
        before = after = _pair(a["padding"], count) if count == 2 else (0, _pair(a["padding"], 1)[1])
    groups = int(a["groups"])
    settings: dict[int, Any] = {
        0: weight[0], 1: kernel[1], 11: kernel[0], 2: dilation[1], 12: dilation[0], 3: stride[1], 13: stride[0],
        4: left + before[1], 15: right + after[1], 14: top + before[0], 16: bottom + after[0],
    }  # fmt: skip
    if groups > 1:
        settings[7] = groups
    given = net.value(source)
    out = form(shape)
    if count == 1:
        given, out = net.reshape(given, (own[1], 1, own[2])), (shape[1], 1, shape[2])
    kind = "ConvolutionDepthWise" if groups > 1 else "Convolution"
    return net.reshape(_product(net, kind, a, given, out, settings), form(shape))


def _pool(mean: bool) -> Callable[[Net, Mapping[str, Any], Shape], int]:
    def pool(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
        kernel, padding = _pair(a["kernel_size"]), _pair(a["padding"])
        stride = _pair(a["stride"]) if a["stride"] else kernel
        if _pair(a.get("dilation", 1)) != (1, 1) or a.get("divisor_override"):
            raise ModelError("a pool with a dilation, or a divisor of its own")
        settings = {
            0: int(mean), 1: kernel[1], 11: kernel[0], 2: stride[1], 12: stride[0], 3: padding[1], 13: padding[0],
            14: padding[1], 15: padding[0], 5: int(not a["ceil_mode"]),
        }  # fmt: skip
        if mean:
            settings[6] = int(a["count_include_pad"])
        return net.add("Pooling", [net.value(a["self"])], form(shape), settings)

    return pool


def _adaptive(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    if shape[2:] == (1, 1):
        return net.reshape(_global(net, a["self"]), form(shape))
    settings = {0: 1, 7: 1, 8: shape[3], 18: shape[2]}
    return net.add("Pooling", [net.value(a["self"])], form(shape), settings)


def _layer_norm(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    affine = a["weight"] is not None
    size = math.prod(net.number(a["normalized_shape"]))
    weight = net.tensors[a["weight"].name] if affine else None
    bias = net.tensors[a["bias"].name] if a["bias"] is not None else None
    data = [] if weight is None else map_raw([weight, weight * 0 if bias is None else bias])
    return net.add(
        "LayerNorm", [net.value(a["input"])], form(shape), {0: size, 1: float(a["eps"]), 2: int(affine)}, data
    )


def _group_norm(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    affine = a["weight"] is not None
    data = map_raw([net.tensors[a[key].name] for key in ("weight", "bias")]) if affine else []
    settings = {0: int(a["num_groups"]), 1: shape[1], 2: float(a["eps"]), 3: int(affine)}
    return net.add("GroupNorm", [net.value(a["input"])], form(shape), settings, data)


def _prelu(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    slopes = net.tensors[a["weight"].name]
    return net.add("PReLU", [net.value(a["self"])], form(shape), {0: slopes.numel()}, [raw(slopes)])


def _softmax(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    axis = _axis(net, a.get("self", a.get("input")), a["dim"])
    if axis is None:
        raise ModelError("a softmax over one number")
    return net.add("Softmax", [net.value(a["self"])], form(shape), {0: axis, 1: 1})


def _cat(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    gone, axis = removed(shape), a["dim"] % len(shape)
    if axis == gone or any(net.follows(ref, axis) for ref in a["tensors"]):
        raise ModelError("a concatenation of batches")
    axis -= gone is not None and axis > gone
    takes = [
        net.reshape(net.value(ref), tuple(size for place, size in enumerate(net.shape(ref)) if place != gone))
        for ref in a["tensors"]
    ]
    return net.add("Concat", takes, form(shape), {0: axis})


def _crop(net: Net, ref: Any, dim: int, start: int, end: int) -> int:
    """Some places of one axis."""
    own, source = net.shape(ref), net.value(ref)
    axis = _axis(net, ref, dim)
    if axis is None or (start, end) == (0, own[dim % len(own)]):
        return source
    shape = tuple(end - start if place == axis else size for place, size in enumerate(form(own)))
    return net.add("Crop", [source], shape, {-23309: [start], -23310: [end], -23311: [axis]})


def _select(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    size = net.shape(a["self"])[a["dim"]]
    place = net.number(a["index"]) % size
    return net.reshape(_crop(net, a["self"], a["dim"], place, place + 1), form(shape))


def _slice(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    if a["step"] != 1:
        raise ModelError("every so many places")
    if net.follows(a["self"], a["dim"]) and not net.number(a["start"]) and net.number(a["end"] or ALL) >= ALL:
        return net.value(a["self"])
    size = net.shape(a["self"])[a["dim"]]
    start, end, _ = slice(net.number(a["start"]), net.number(a["end"])).indices(size)
    return net.reshape(_crop(net, a["self"], a["dim"], start, end), form(shape))


def _unbind(net: Net, a: Mapping[str, Any], shape: Shape) -> list[int]:
    own, dim = net.shape(a["self"]), a["dim"]
    part = form([size for axis, size in enumerate(own) if axis != dim % len(own)])
    return [net.reshape(_crop(net, a["self"], dim, place, place + 1), part) for place in range(own[dim])]


def _chunk(net: Net, a: Mapping[str, Any], shape: Shape) -> list[int]:
    own, dim = net.shape(a["self"]), a["dim"]
    sizes = a.get("split_sizes", a.get("split_size", None))
    if "chunks" in a:
        sizes = -(-own[dim] // a["chunks"])
    if isinstance(sizes, int):
        sizes = [min(sizes, own[dim] - start) for start in range(0, own[dim], sizes)]
    found, start = [], 0
    for size in sizes or ():
        part = form([size if axis == dim % len(own) else one for axis, one in enumerate(own)])
        found.append(net.reshape(_crop(net, a["self"], dim, start, start + size), part))
        start += size
    return found


def _permute(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    """Axes of size 1 go anywhere, and those that stay neighbours are one; ncnn orders the rest."""
    own, count = net.shape(a["self"]), len(net.shape(a["self"]))
    if "dims" in a:
        order = [axis % count for axis in a["dims"]]
    else:
        order = list(range(count))
        one, two = (a["dim0"] % count, a["dim1"] % count) if "dim0" in a else (0, 1)
        order[one], order[two] = order[two], order[one]
    runs: list[list[int]] = []
    for axis in (axis for axis in order if own[axis] != 1):
        if runs and not any(own[between] != 1 for between in range(runs[-1][-1] + 1, axis)) and axis > runs[-1][-1]:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    ranks = sorted(range(len(runs)), key=lambda place: runs[place][0])
    before = tuple(math.prod(own[axis] for axis in runs[place]) for place in ranks)
    wanted = tuple(ranks.index(place) for place in range(len(runs)))
    if wanted == tuple(range(len(runs))):
        return net.reshape(net.value(a["self"]), form(shape))
    if len(runs) == 2:
        before, wanted = (1, *before), (0, 2, 1)
    if wanted not in ORDERS:
        raise ModelError("an order of more than three axes")
    source = net.reshape(net.value(a["self"]), before)
    after = tuple(before[place] for place in wanted)
    return net.reshape(net.add("Permute", [source], after, {0: ORDERS[wanted]}), form(shape))


def _attention(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    if a["is_causal"] or a["enable_gqa"]:
        raise ModelError("a causal attention, or one with fewer heads of keys")
    query, key, value = (net.value(a[name]) for name in ("query", "key", "value"))
    own = net.shape(a["query"])
    scale = float(a["scale"]) if a["scale"] is not None else own[-1] ** -0.5
    scaled = net.add("BinaryOp", [query], form(own), {0: BINARY["mul"], 1: 1, 2: scale})
    wide = form((*own[:-1], net.shape(a["key"])[-2]))
    scores = net.add("MatMul", [scaled, key], wide, {0: 1})
    if a["attn_mask"] is not None:
        raise ModelError("a mask")
    seen = net.add("Softmax", [scores], wide, {0: len(wide) - 1, 1: 1})
    return net.add("MatMul", [seen, value], form(shape), {0: 0})


def _matmul(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    one, two = list(a.values())[:2]
    if len(form(net.shape(one))) != len(form(net.shape(two))) or len(form(shape)) < 2:
        raise ModelError(f"a product of {net.shape(one)} and {net.shape(two)}")
    return net.add("MatMul", [net.value(one), net.value(two)], form(shape), {0: 0})


def _pad(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
    pads: list[int] = [*a["pad"], 0, 0, 0, 0]
    left, right, top, bottom = pads[:4]
    if any(pads[4:]) or a.get("mode", "constant") != "constant" or min(a["pad"]) < 0:
        raise ModelError("a margin other than of a constant around height and width")
    settings = {0: top, 1: bottom, 2: left, 3: right, 4: 0, 5: float(a["value"] or 0)}
    return net.add("Padding", [net.value(a["self"])], form(shape), settings)


def _resize(kind: int) -> Callable[[Net, Mapping[str, Any], Shape], int]:
    def resize(net: Net, a: Mapping[str, Any], shape: Shape) -> int:
        settings = {0: kind, 3: shape[2], 4: shape[3], 6: int(bool(a.get("align_corners", False)))}
        return net.add("Interp", [net.value(a.get("input", a.get("self")))], form(shape), settings)

    return resize


RULES: dict[str, Callable[[Net, Mapping[str, Any], Shape], Any]] = {
    "max_pool2d": _pool(False), "avg_pool2d": _pool(True), "adaptive_avg_pool2d": _adaptive,
    "layer_norm": _layer_norm, "group_norm": _group_norm, "prelu": _prelu, "_prelu_kernel": _prelu,
    "softmax": _softmax, "_softmax": _softmax, "cat": _cat, "select": _select, "slice": _slice, "unbind": _unbind,
    "chunk": _chunk, "split": _chunk, "split_with_sizes": _chunk,
    "permute": _permute, "transpose": _permute, "swapaxes": _permute, "t": _permute,
    "scaled_dot_product_attention": _attention, "matmul": _matmul, "bmm": _matmul, "mm": _matmul,
    "pad": _pad, "constant_pad_nd": _pad, "upsample_nearest2d": _resize(1), "upsample_bilinear2d": _resize(2),
}  # fmt: skip
