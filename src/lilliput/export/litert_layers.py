"""Layers, pools and activations in LiteRT."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lilliput.export.litert import Arguments, Rule, Value, Writer, act_of, rule
from lilliput.export.quantized import Codes
from lilliput.export.rules import Unsupported
from lilliput.export.steps import affine_of
from lilliput.export.tflite import Scales
from lilliput.graph.ir import NodeRef, TensorRef
from lilliput.graph.layers import arguments_of, is_margin, norm_of

SAME, VALID = 0, 1


def _pair(value: Any) -> tuple[int, int]:
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    return int(items[0]), int(items[-1])


@rule("conv2d", "conv2d.padding")
def _conv(w: Writer, a: Arguments) -> Value:
    weight = a["weight"]
    if not isinstance(weight, TensorRef):
        raise Unsupported("a computed weight")
    shape = tuple(w.tensors[weight.name].shape)
    stride, dilation, groups = _pair(a["stride"]), _pair(a["dilation"]), int(a["groups"])
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, shape[2:])]
    if isinstance(a["padding"], str):
        total = [(r - 1 if a["padding"] == "same" else 0) for r in reach]
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = [(p, p) for p in _pair(a["padding"])]
    source, pads = _past_margins(w, a["input"], pads)
    deep = groups == w.value(source).shape[1] and shape[1] == 1 and groups > 1
    axis = 3 if deep else 0
    operands, levels = _operands(w, a, (source, deep, axis))
    given, padding = _padded(w, source, operands[0], (reach, stride, pads), levels is not None)
    options: dict[str, Any] = {"padding": padding, "stride_w": stride[1], "stride_h": stride[0], "act": w.act,
               "dilation_w": dilation[1], "dilation_h": dilation[0]}  # fmt: skip
    if deep:
        options["multiplier"] = shape[0] // groups
    operator = "DEPTHWISE_CONV_2D" if deep else "CONV_2D"
    return w.emit(operator, [given, *operands[1:]], w.shape, True, levels, **options)


def _operands(w: Writer, a: Arguments, how: tuple[Any, bool, int]) -> tuple[list[int], Any]:
    """Input, weight and bias of a convolution, and the levels of its result if these are codes."""
    source, deep, axis = how

    def turn(array: Any) -> Any:
        return array.transpose(1, 2, 3, 0) if deep else array.transpose(0, 2, 3, 1)

    return _product(w, a, source, (turn, axis, True))


def _product(w: Writer, a: Arguments, source: Any, how: tuple[Any, int, bool]) -> tuple[list[int], Any]:
    """Input, weight and bias of a layer, and the levels of its result if these are codes.

    Args:
        w: the writer.
        a: the layer's arguments.
        source: its input.
        how: what brings the weight into order, the axis of its outputs then, whether channels are last.
    """
    turn, axis, last = how
    name, bias = a["weight"].name, a["bias"]
    rows = len(w.tensors[name])
    values = np.zeros(rows, np.float32) if bias is None else w.tensors[bias.name].detach().numpy().astype(np.float32)
    levels, before = w.target, w.value(source).levels
    if name not in w.coded or levels is None or before is None:
        return [w.floats(source, last), w.weight(name, turn, axis), w.constant(values)], None
    held = _wide(w.coded[name].beside(values, before.scale), levels.scale * 2.0**-24 / before.scale)
    codes, steps = held.whole(values, before.scale)
    return [w.codes(source, last), w.eight(held, turn, axis), w.constant(codes, Scales(steps))], levels


def _wide(held: Codes, least: float) -> Codes:
    """The same with scales of at least this much: rows far below a step of the result, which engines refuse."""
    if not (held.scale < least).any():
        return held
    wider = np.maximum(held.scale, np.float32(least)).astype(np.float32)
    ratio = (held.scale / wider).reshape(-1, *[1] * (held.codes.ndim - 1))
    return Codes(np.round(held.codes * ratio).astype(np.int8), wider)


def _past_margins(w: Writer, ref: Any, pads: list[tuple[int, int]]) -> tuple[Any, list[tuple[int, int]]]:
    """What is padded with zeros before a convolution, and by how much in all."""
    while isinstance(ref, NodeRef) and is_margin(w.graph.nodes[ref.index]):
        bound = arguments_of(w.graph.nodes[ref.index])
        pad = list(bound["pad"])
        if len(pad) > 4:
            break
        (top, bottom), (left, right) = pads
        pads = [(top + sum(pad[2:3]), bottom + sum(pad[3:4])), (left + pad[0], right + pad[1])]
        ref = bound["self"]
    return ref, pads


def _padded(w: Writer, source: Any, given: int, how: Any, coded: bool, lowest: Any = None) -> tuple[int, int]:
    """What goes into a window operator, and its padding: `SAME` where that is the same, else zeros around."""
    reach, stride, pads = how
    shape = w.value(source).shape
    if not any(map(any, pads)):
        return given, VALID
    if all(_same(n, *rest) for n, *rest in zip(shape[2:], reach, stride, pads)):
        return given, SAME
    sides = w.constant(np.array([(0, 0), *pads, (0, 0)], np.int32))
    wide = (*shape[:2], *(n + sum(pad) for n, pad in zip(shape[2:], pads)))
    levels = w.value(source).levels if coded else None
    operator, more = ("PAD", []) if lowest is None else ("PADV2", [lowest])
    padded = w.emit(operator, [given, sides, *more], wide, True, levels)
    return padded.places[True, levels is not None], VALID


def _same(size: int, reach: int, stride: int, pad: tuple[int, int]) -> bool:
    """Whether the format's own padding does what these zeros do along one axis."""
    out = -(-size // stride)
    total = max((out - 1) * stride + reach - size, 0)
    return (size + sum(pad) - reach) // stride + 1 == out and pad[0] == total // 2


@rule("linear")
def _linear(w: Writer, a: Arguments) -> Value:
    if not isinstance(a["weight"], TensorRef):
        raise Unsupported("a computed weight")
    operands, levels = _product(w, a, a["input"], (lambda array: array, 0, False))
    return w.emit("FULLY_CONNECTED", operands, w.shape, False, levels, act=w.act, keep=len(w.shape) > 2)


@rule("batch_norm")
def _batch_norm(w: Writer, a: Arguments) -> Value:
    norm = norm_of(w.graph.nodes[w.index])
    if norm is None:
        raise Unsupported("a BatchNorm without running statistics")
    last = len(w.shape) == 4
    sides = (-1,) if last or len(w.shape) == 2 else (-1,) + (1,) * (len(w.shape) - 2)
    factor, shift = (w.constant(array.reshape(sides)) for array in affine_of(norm, w.tensors))
    scaled = w.emit("MUL", [w.floats(a["input"], last), factor], w.shape, last, act=0)
    return w.emit("ADD", [scaled.places[last, False], shift], w.shape, last, act=0)


@rule("layer_norm")
def _layer_norm(w: Writer, a: Arguments) -> Value:
    count, shape = len(a["normalized_shape"]), w.shape
    axes = w.constant(np.arange(len(shape) - count, len(shape), dtype=np.int32))
    narrow = (*shape[: len(shape) - count], *[1] * count)

    def do(operator: str, *given: int, sides: Any = shape, **options: Any) -> int:
        return w.emit(operator, given, sides, **options).places[False, False]

    source = w.floats(a["input"])
    apart = do("SUB", source, do("MEAN", source, axes, sides=narrow, keep=True), act=0)
    spread = do("MEAN", do("MUL", apart, apart, act=0), axes, sides=narrow, keep=True)
    safe = do("ADD", spread, w.constant(np.array(a["eps"], np.float32)), sides=narrow, act=0)
    found = do("MUL", apart, do("RSQRT", safe, sides=narrow), act=0)
    if a["weight"] is not None:
        found = do("MUL", found, w.floats(a["weight"]), act=0)
    if a["bias"] is not None:
        found = do("ADD", found, w.floats(a["bias"]), act=0)
    return Value(shape, False, None, {(False, False): found})


def _nonnegative(w: Writer, ref: Any) -> bool:
    if not isinstance(ref, NodeRef):
        return False
    if ref.index in w.levels:
        levels = w.levels[ref.index]
        return levels.low == levels.zero or _nonnegative(w, levels.source)
    node = w.graph.nodes[ref.index]
    return act_of(node) > 0 or (
        node.operator == "aten.max_pool2d.default" and _nonnegative(w, arguments_of(node)["self"])
    )


def _pool(operator: str) -> Rule:
    def pool(w: Writer, a: Arguments) -> Value:
        source, shape = a["self"], w.value(a["self"]).shape
        kernel, pads = _pair(a["kernel_size"]), [(p, p) for p in _pair(a["padding"])]
        stride = _pair(a["stride"]) if a["stride"] else kernel
        out = [(n + sum(p) - k) // s + 1 for n, p, k, s in zip(shape[2:], pads, kernel, stride)]
        if len(shape) != 4 or list(w.shape[2:]) != out or _pair(a.get("dilation", 1)) != (1, 1):
            raise Unsupported("a pool with gaps, or rounded up")
        if a.get("divisor_override") is not None:
            raise Unsupported("an average with a divisor of its own")
        coded = operator == "MAX_POOL_2D" and w.value(source).levels is not None
        given = w.codes(source, True) if coded else w.floats(source, True)
        lowest = None
        if operator == "MAX_POOL_2D" and not _nonnegative(w, source):
            lowest = w.constant(np.array(-3.4e38, np.float32))
            if coded and any(map(any, pads)):
                coded, given = False, w.floats(source, True)
        elif operator != "MAX_POOL_2D" and a["count_include_pad"] and any(map(any, pads)):
            sides = w.constant(np.array([(0, 0), *pads, (0, 0)], np.int32))
            wide = (*shape[:2], *(n + sum(p) for n, p in zip(shape[2:], pads)))
            given, pads = w.emit("PAD", [given, sides], wide, True).places[True, False], [(0, 0), (0, 0)]
        same = all(_same(*each) for each in zip(shape[2:], kernel, stride, pads))
        if operator != "MAX_POOL_2D" and any(map(any, pads)) and not same:
            raise Unsupported("an average over windows at the border")
        given, padding = _padded(w, source, given, (kernel, stride, pads), coded, lowest)
        levels = w.value(source).levels if coded else None
        options: dict[str, Any] = {"padding": padding, "stride_w": stride[1], "stride_h": stride[0], "act": 0}
        options |= {"filter_w": kernel[1], "filter_h": kernel[0]}
        return w.emit(operator, [given], w.shape, True, levels, **options)

    return pool


rule("max_pool2d")(_pool("MAX_POOL_2D"))
rule("avg_pool2d")(_pool("AVERAGE_POOL_2D"))


@rule("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive(w: Writer, a: Arguments) -> Value:
    shape = w.value(a["self"]).shape
    if w.shape == shape:
        return w.value(a["self"])
    if w.shape[2:] == (1, 1) and len(shape) == 4:
        return _mean_of(w, a["self"], (2, 3), True)
    steps = [size // wanted for size, wanted in zip(shape[2:], w.shape[2:])]
    if len(shape) != 4 or [step * wanted for step, wanted in zip(steps, w.shape[2:])] != list(shape[2:]):
        raise Unsupported("an adaptive pool whose sizes don't divide")
    options: dict[str, Any] = {"padding": VALID, "stride_w": steps[1], "stride_h": steps[0], "filter_w": steps[1],
               "filter_h": steps[0], "act": 0}  # fmt: skip
    return w.emit("AVERAGE_POOL_2D", [w.floats(a["self"], True)], w.shape, True, **options)


@rule("mean.dim")
def _mean(w: Writer, a: Arguments) -> Value:
    rank = len(w.value(a["self"]).shape)
    return _mean_of(w, a["self"], tuple(sorted(axis % rank for axis in a["dim"])), bool(a["keepdim"]))


def _mean_of(w: Writer, source: Any, axes: tuple[int, ...], keep: bool) -> Value:
    """A mean, of codes where the source and the result are on levels."""
    value = w.value(source)
    last = len(value.shape) == 4 and axes == (2, 3)
    over = w.constant(np.array((1, 2) if last else axes, np.int32))
    levels = w.target if value.levels is not None else None
    given = w.codes(source, last) if levels is not None else w.floats(source, last)
    # Without the axes of a picture, channels are last in both orders.
    return w.emit("MEAN", [given, over], w.shape, last and keep, levels, keep=keep)


def _activation(operator: str) -> Rule:
    return lambda w, a: _acted(w, a, operator)


def _acted(w: Writer, a: Arguments, operator: str) -> Value:
    """A function of each element; a ReLU of codes has codes."""
    source = next(iter(a.values()))
    value = w.value(source)
    levels = value.levels
    if levels is not None and operator in {"RELU", "RELU6"}:
        low, high = ((end - levels.zero) * levels.scale for end in (levels.low, levels.high))
        top = operator == "RELU" or high < 6 * (1 + 1e-6)
        if low >= 0 and top:
            return value
        # Zero is a level. Six is none, but codes that were put on levels already as a layer's target come to the same.
        if top or (isinstance(source, NodeRef) and w.targets.get(source.index) is levels):
            return w.emit(operator, [w.codes(source, value.last)], w.shape, value.last, levels)
    return w.emit(operator, [w.floats(source, value.last)], w.shape, value.last)


for _name, _operator in (
    ("relu", "RELU"), ("relu6", "RELU6"), ("sigmoid", "LOGISTIC"), ("tanh", "TANH"), ("exp", "EXP"), ("neg", "NEG"),
    ("sqrt", "SQRT"), ("rsqrt", "RSQRT"), ("abs", "ABS"), ("hardswish", "HARD_SWISH"),
):  # fmt: skip
    rule(_name)(_activation(_operator))


@rule("hardtanh", "clamp")
def _clamp(w: Writer, a: Arguments) -> Value:
    number = act_of(w.graph.nodes[w.index])
    if number:
        return _acted(w, a, "RELU6" if number == 3 else "RELU")
    ends = (a["min_val"], a["max_val"]) if "min_val" in a else (a["min"], a["max"])
    last = w.value(a["self"]).last
    place = w.floats(a["self"], last)
    for operator, end in zip(("MAXIMUM", "MINIMUM"), ends):
        if end is not None:
            given = [place, w.constant(np.array(end, np.float32))]
            place = w.emit(operator, given, w.shape, last).places[last, False]
    return Value(w.shape, last, None, {(last, False): place})


@rule("silu")
def _silu(w: Writer, a: Arguments) -> Value:
    last = w.value(a["self"]).last
    place = w.floats(a["self"], last)
    gate = w.emit("LOGISTIC", [place], w.shape, last).places[last, False]
    return w.emit("MUL", [place, gate], w.shape, last, act=0)


@rule("hardsigmoid")
def _hardsigmoid(w: Writer, a: Arguments) -> Value:
    last = w.value(a["self"]).last
    moved = w.emit("ADD", [w.floats(a["self"], last), w.constant(np.array(3, np.float32))], w.shape, last, act=3)
    return w.emit("MUL", [moved.places[last, False], w.constant(np.array(1 / 6, np.float32))], w.shape, last, act=0)


@rule("gelu")
def _gelu(w: Writer, a: Arguments) -> Value:
    last = w.value(a["self"]).last
    return w.emit("GELU", [w.floats(a["self"], last)], w.shape, last, approximate=a["approximate"] == "tanh")


@rule("leaky_relu")
def _leaky_relu(w: Writer, a: Arguments) -> Value:
    last = w.value(a["self"]).last
    return w.emit("LEAKY_RELU", [w.floats(a["self"], last)], w.shape, last, alpha=float(a["negative_slope"]))


@rule("softmax.int", "_softmax")
def _softmax(w: Writer, a: Arguments) -> Value:
    if a["dim"] % len(w.shape) != len(w.shape) - 1:
        raise Unsupported("a softmax that isn't over the last axis")
    return w.emit("SOFTMAX", [w.floats(a["self"])], w.shape, beta=1.0)


@rule("scaled_dot_product_attention")
def _attention(w: Writer, a: Arguments) -> Value:
    if a["attn_mask"] is not None or a["is_causal"] or a["enable_gqa"]:
        raise Unsupported("attention with a mask, or with fewer heads of keys")
    query, key = w.value(a["query"]).shape, w.value(a["key"]).shape
    scale = a["scale"] if a["scale"] is not None else 1 / math.sqrt(query[-1])
    sides = (*query[:-1], key[-2])
    scaled = w.emit("MUL", [w.floats(a["query"]), w.constant(np.array(scale, np.float32))], query, act=0)
    scores = w.emit("BATCH_MATMUL", [scaled.places[False, False], w.floats(a["key"])], sides, x=False, y=True)
    soft = w.emit("SOFTMAX", [scores.places[False, False]], sides, beta=1.0)
    return w.emit("BATCH_MATMUL", [soft.places[False, False], w.floats(a["value"])], w.shape, x=False, y=False)


@rule("matmul", "bmm", "mm")
def _matmul(w: Writer, a: Arguments) -> Value:
    one, two = list(a.values())[:2]
    return w.emit("BATCH_MATMUL", [w.floats(one), w.floats(two)], w.shape, x=False, y=False)
