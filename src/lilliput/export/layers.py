"""Layers: products, convolutions, norms, pools, attention, resizing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from lilliput.export.quantized import levels_before
from lilliput.export.rules import Unsupported
from lilliput.export.writer import Arguments, Rule, Writer, array_of, numpy_dtype, rule
from lilliput.graph.ir import TensorRef


@rule("linear")
def _linear(w: Writer, a: Arguments) -> Any:
    bias = [w.x(a["bias"])] if a["bias"] is not None else []
    if isinstance(a["weight"], TensorRef) and a["weight"].name in w.few:
        return w.few_bits(w.x(a["input"]), w.few[a["weight"].name], bias)
    if w.rank(a["input"]) == 2:
        return w("Gemm", w.x(a["input"]), *_parts(w, a), transB=1)
    weight = a["weight"]
    if isinstance(weight, TensorRef) and weight.name in w.coded:
        turned = w.dequantized(w.coded[weight.name], turned=True)
    else:
        turned = w("Transpose", w.x(weight), perm=[1, 0])
    product = w("MatMul", w.x(a["input"]), turned)
    return w("Add", product, bias[0]) if bias else product


@rule("mm", "bmm", "matmul", "mv", "dot")
def _matmul(w: Writer, a: Arguments) -> Any:
    one, two = list(a.values())[:2]
    return w("MatMul", w.x(one), w.x(two))


@rule("addmm", "baddbmm")
def _addmm(w: Writer, a: Arguments) -> Any:
    one, two = list(a.values())[1:3]
    product, added = w("MatMul", w.x(one), w.x(two)), w.x(a["self"])
    kind = w.result.dtype
    product = product if a["alpha"] == 1 else w("Mul", product, w.constant(a["alpha"], kind))
    return w("Add", product, added if a["beta"] == 1 else w("Mul", added, w.constant(a["beta"], kind)))


@rule("einsum")
def _einsum(w: Writer, a: Arguments) -> Any:
    return w("Einsum", *(w.x(ref) for ref in a["tensors"]), equation=a["equation"])


@rule("outer")
def _outer(w: Writer, a: Arguments) -> Any:
    return w("Mul", w("Unsqueeze", w.x(a["self"]), w.constant([1])), w.x(list(a.values())[1]))


def _each(value: Any, count: int) -> list[int]:
    items = [int(item) for item in (value if isinstance(value, tuple | list) else (value,))]
    return items if len(items) == count else items * count


def _bias(w: Writer, a: Arguments) -> list[str]:
    return [w.x(a["bias"])] if a["bias"] is not None else []


@rule("conv1d", "conv2d", "conv3d", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def _conv(w: Writer, a: Arguments) -> Any:
    count = w.rank(a["weight"]) - 2
    dilation, padding = _each(a["dilation"], count), a["padding"]
    if isinstance(padding, str):
        sizes = [w.size(a["weight"], axis + 2) for axis in range(count)]
        whole = [d * (size - 1) if padding == "same" else 0 for d, size in zip(dilation, sizes)]
        pads = [*(size // 2 for size in whole), *(size - size // 2 for size in whole)]
    else:
        pads = _each(padding, count) * 2
    settings: dict[str, Any] = {"strides": _each(a["stride"], count), "pads": pads, "dilations": dilation}
    rank = w.rank(a["input"])
    source = w.x(a["input"]) if rank == count + 2 else w("Unsqueeze", w.x(a["input"]), w.constant([0]))
    found = w("Conv", source, *_parts(w, a), group=a["groups"], **settings)
    return found if rank == count + 2 else w("Squeeze", found, w.constant([0]))


def _parts(w: Writer, a: Arguments) -> list[str]:
    """The weight and the bias, as integers where they can stay so."""
    weight, bias = a["weight"], a["bias"]
    if not isinstance(weight, TensorRef) or weight.name not in w.coded:
        return [w.x(weight), *_bias(w, a)]
    held = w.coded[weight.name]
    if bias is None or not w.whole_bias:
        return [w.dequantized(held), *_bias(w, a)]
    step = w.levels[levels_before(w.graph, a["input"], w.levels) or 0].scale
    values = array_of(w.tensors[bias.name])
    held = held.beside(values, step)
    codes, steps = held.whole(values, step)
    told = w.constant(codes), w.constant(steps), w.constant(np.zeros(steps.shape, np.int32))
    return [w.dequantized(held), w("DequantizeLinear", *told, axis=0)]


@rule("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transpose(w: Writer, a: Arguments) -> Any:
    count = w.rank(a["weight"]) - 2
    return w("ConvTranspose", w.x(a["input"]), w.x(a["weight"]), *_bias(w, a), strides=_each(a["stride"], count),
             pads=_each(a["padding"], count) * 2, output_padding=_each(a["output_padding"], count),
             dilations=_each(a["dilation"], count), group=a["groups"])  # fmt: skip


@rule("convolution")
def _convolution(w: Writer, a: Arguments) -> Any:
    if not a["transposed"]:
        return _conv(w, a)
    return _conv_transpose(w, a)


def _filled(w: Writer, size: int, value: float, kind: torch.dtype) -> str:
    return w.constant(np.full(size, value, numpy_dtype(kind)))


@rule("batch_norm")
def _batch_norm(w: Writer, a: Arguments) -> Any:
    if a["training"] or a["running_mean"] is None:
        raise Unsupported("a BatchNorm without running statistics")
    kind, size = w.info(a["running_mean"]).dtype, w.size(a["running_mean"], 0)
    scale = w.x(a["weight"]) if a["weight"] is not None else _filled(w, size, 1.0, kind)
    shift = w.x(a["bias"]) if a["bias"] is not None else _filled(w, size, 0.0, kind)
    return w("BatchNormalization", w.x(a["input"]), scale, shift, w.x(a["running_mean"]), w.x(a["running_var"]),
             epsilon=float(a["eps"]))  # fmt: skip


@rule("layer_norm")
def _layer_norm(w: Writer, a: Arguments) -> Any:
    sizes = w.fixed(a["normalized_shape"])
    kind = w.result.dtype
    scale = w.x(a["weight"]) if a["weight"] is not None else w.constant(np.ones(sizes, numpy_dtype(kind)))
    return w("LayerNormalization", w.x(a["input"]), scale, *_bias(w, a), axis=-len(sizes), epsilon=float(a["eps"]))


@rule("rms_norm")
def _rms_norm(w: Writer, a: Arguments) -> Any:
    axes = list(range(-len(a["normalized_shape"]), 0))
    kind, source = w.result.dtype, w.x(a["input"])
    eps = a["eps"] if a["eps"] is not None else torch.finfo(kind).eps
    mean = w("ReduceMean", w("Mul", source, source), w.constant(axes), keepdims=1)
    found = w("Div", source, w("Sqrt", w("Add", mean, w.constant(eps, kind))))
    return found if a["weight"] is None else w("Mul", found, w.x(a["weight"]))


def _per_channel(w: Writer, name: str, ref: Any, rank: int) -> str:
    return str(w("Reshape", name, w.constant([-1] + [1] * (rank - 2)))) if rank > 2 else name


@rule("group_norm", "instance_norm")
def _group_norm(w: Writer, a: Arguments) -> Any:
    source, rank, kind = a["input"], w.rank(a["input"]), w.result.dtype
    if a.get("running_mean") is not None and not a.get("use_input_stats", True):
        raise Unsupported("an instance norm with running statistics")
    groups = a.get("num_groups") or w.size(source, 1)
    split = w("Reshape", w.x(source), w.constant([0, groups, -1]))
    ones, zeros = _filled(w, groups, 1.0, kind), _filled(w, groups, 0.0, kind)
    normal = w("InstanceNormalization", split, ones, zeros, epsilon=float(a["eps"]))
    found = w("Reshape", normal, w("Shape", w.x(source)))
    if a["weight"] is not None:
        found = w("Mul", found, _per_channel(w, w.x(a["weight"]), a["weight"], rank))
    return found if a["bias"] is None else w("Add", found, _per_channel(w, w.x(a["bias"]), a["bias"], rank))


def _pool(operator: str, dims: int) -> Rule:
    def pool(w: Writer, a: Arguments) -> Any:
        kernel = _each(a["kernel_size"], dims)
        settings: dict[str, Any] = {
            "kernel_shape": kernel,
            "strides": _each(a["stride"], dims) if a["stride"] else kernel,
            "pads": _each(a["padding"], dims) * 2,
            "ceil_mode": int(a["ceil_mode"]),
        }
        if operator == "MaxPool":
            settings["dilations"] = _each(a["dilation"], dims)
        elif a.get("divisor_override") is not None:
            raise Unsupported("an average with a divisor of its own")
        else:
            settings["count_include_pad"] = int(a["count_include_pad"])
        return w(operator, w.x(a["self"]), **settings)

    return pool


for _dims in (1, 2, 3):
    rule(f"max_pool{_dims}d")(_pool("MaxPool", _dims))
    rule(f"avg_pool{_dims}d")(_pool("AveragePool", _dims))


def _adaptive(dims: int) -> Rule:
    def pool(w: Writer, a: Arguments) -> Any:
        wanted = w.fixed(a["output_size"])
        wanted = wanted if len(wanted) == dims else wanted * dims
        if all(size == 1 for size in wanted):
            return w("GlobalAveragePool", w.x(a["self"]))
        sizes = [w.size(a["self"], axis - dims) for axis in range(dims)]
        if all(size % target == 0 for size, target in zip(sizes, wanted)):
            steps = [size // target for size, target in zip(sizes, wanted)]
            return w("AveragePool", w.x(a["self"]), kernel_shape=steps, strides=steps)
        return _averaged(w, a["self"], sizes, wanted)

    return pool


def _averaged(w: Writer, source: Any, sizes: list[int], wanted: list[int]) -> Any:
    """Windows that overlap, as products with matrices of averages, axis by axis."""
    if len(sizes) > 2:
        raise Unsupported("an adaptive pool of three axes whose sizes don't divide")
    name, kind = w.x(source), numpy_dtype(w.result.dtype)
    for place, (size, target) in enumerate(zip(sizes, wanted)):
        matrix = np.zeros((target, size), kind)
        for row in range(target):
            start, end = row * size // target, -(-(row + 1) * size // target)
            matrix[row, start:end] = 1 / (end - start)
        last = place == len(sizes) - 1
        held = w.constant(np.ascontiguousarray(matrix.T if last else matrix))
        name = w("MatMul", name, held) if last else w("MatMul", held, name)
    return name


for _dims in (1, 2, 3):
    rule(f"adaptive_avg_pool{_dims}d")(_adaptive(_dims))
rule("_adaptive_avg_pool2d")(_adaptive(2))


@rule("scaled_dot_product_attention")
def _attention(w: Writer, a: Arguments) -> Any:
    query, key, kind = a["query"], a["key"], w.result.dtype
    if a["enable_gqa"]:
        raise Unsupported("attention with fewer heads of keys than of queries")
    scale = a["scale"] if a["scale"] is not None else 1 / math.sqrt(w.size(query, -1))
    order = list(range(w.rank(key)))
    order[-1], order[-2] = order[-2], order[-1]
    scaled = w("Mul", w.x(query), w.constant(float(scale), kind))
    scores = w("MatMul", scaled, w("Transpose", w.x(key), perm=order))
    least = w.constant(float(torch.finfo(kind).min), kind)
    if a["is_causal"]:
        lengths = [w("Shape", w.x(ref), start=len(order) - 2, end=len(order) - 1) for ref in (query, key)]
        ones = w("Expand", w.constant(1.0, kind), w("Concat", *lengths, axis=0))
        seen = w.cast(w("Trilu", ones, w.constant(0), upper=0), kind, torch.bool)
        scores = w("Where", seen, scores, least)
    mask = a["attn_mask"]
    if mask is not None and w.info(mask).dtype == torch.bool:
        scores = w("Where", w.x(mask), scores, least)
    elif mask is not None:
        scores = w("Add", scores, w.operand(mask, kind))
    return w("MatMul", w("Softmax", scores, axis=-1), w.x(a["value"]))


def _resize(mode: str, dims: int) -> Rule:
    def resize(w: Writer, a: Arguments) -> Any:
        source = w.x(a.get("input", a.get("self")))
        aligned = bool(a.get("align_corners", False))
        where = "asymmetric" if mode == "nearest" else "align_corners" if aligned else "half_pixel"
        settings: dict[str, Any] = {
            "mode": mode,
            "coordinate_transformation_mode": where,
            "nearest_mode": "floor" if mode == "nearest" else None,
            "cubic_coeff_a": -0.75 if mode == "cubic" else None,
        }
        factors = a.get("scale_factors")
        if factors:
            return w("Resize", source, "", w.constant([1.0, 1.0, *map(float, factors)], torch.float32), **settings)
        head = w("Shape", source, start=0, end=2)
        sizes = w("Concat", head, w.ints(a["output_size"]), axis=0)
        return w("Resize", source, "", "", sizes, **settings)

    return resize


for _dims, _kind in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
    rule(f"upsample_nearest{_dims}d", f"upsample_nearest{_dims}d.vec")(_resize("nearest", _dims))
    rule(f"upsample_{_kind}{_dims}d", f"upsample_{_kind}{_dims}d.vec")(_resize("linear", _dims))
rule("upsample_bicubic2d", "upsample_bicubic2d.vec")(_resize("cubic", 2))
