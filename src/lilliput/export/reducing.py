"""Sums, means, extremes and orders along axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from lilliput.export.rules import Unsupported
from lilliput.export.writer import Arguments, Rule, Writer, rule


def _axes(w: Writer, source: Any, dim: Any) -> list[int]:
    """The axes that a reduction goes over; all without a choice."""
    items = None if dim is None else list(dim) if isinstance(dim, tuple | list) else [dim]
    return [w.axis(source, axis) for axis in items] if items else list(range(w.rank(source)))


def _reduce(w: Writer, operator: str, name: str, axes: list[int], keep: bool) -> str:
    return str(w(operator, name, w.constant(np.array(axes, np.int64)), keepdims=int(keep)))


def _reduction(operator: str) -> Rule:
    def reduce(w: Writer, a: Arguments) -> Any:
        source = a["self"]
        name = w.operand(source, w.result.dtype)
        return _reduce(w, operator, name, _axes(w, source, a.get("dim")), bool(a.get("keepdim", False)))

    return reduce


rule("sum", "sum.dim_IntList")(_reduction("ReduceSum"))
rule("mean", "mean.dim")(_reduction("ReduceMean"))
rule("amax", "max")(_reduction("ReduceMax"))
rule("amin", "min")(_reduction("ReduceMin"))
rule("prod", "prod.dim_int")(_reduction("ReduceProd"))
rule("logsumexp")(_reduction("ReduceLogSumExp"))


def _truth(operator: str) -> Rule:
    def reduce(w: Writer, a: Arguments) -> Any:
        name = w.cast(w.operand(a["self"], torch.bool), torch.bool, torch.int32)
        found = _reduce(w, operator, name, _axes(w, a["self"], a.get("dim")), bool(a.get("keepdim", False)))
        return w.cast(found, torch.int32, torch.bool)

    return reduce


rule("any", "any.dim", "any.dims")(_truth("ReduceMax"))
rule("all", "all.dim", "all.dims")(_truth("ReduceMin"))


def _extreme(reduce: str, place: str) -> Rule:
    def both(w: Writer, a: Arguments) -> Any:
        axis, keep = w.axis(a["self"], a["dim"]), bool(a["keepdim"])
        values = _reduce(w, reduce, w.x(a["self"]), [axis], keep)
        return [values, w(place, w.x(a["self"]), axis=axis, keepdims=int(keep))]

    return both


rule("max.dim")(_extreme("ReduceMax", "ArgMax"))
rule("min.dim")(_extreme("ReduceMin", "ArgMin"))


def _place(operator: str) -> Rule:
    def find(w: Writer, a: Arguments) -> Any:
        if a["dim"] is None:
            flat = w("Reshape", w.x(a["self"]), w.constant([-1]))
            return w(operator, flat, axis=0, keepdims=0)
        return w(operator, w.x(a["self"]), axis=w.axis(a["self"], a["dim"]), keepdims=int(a["keepdim"]))

    return find


rule("argmax")(_place("ArgMax"))
rule("argmin")(_place("ArgMin"))


def _spread(w: Writer, a: Arguments) -> tuple[str, str]:
    """The variance and the mean."""
    source = a["self"]
    axes, keep = _axes(w, source, a.get("dim")), bool(a.get("keepdim", False))
    less = a["correction"] if "correction" in a else a.get("unbiased", True)
    less = 1.0 if less is None else float(less)
    mean = _reduce(w, "ReduceMean", w.x(source), axes, True)
    apart = w("Sub", w.x(source), mean)
    total = _reduce(w, "ReduceSum", w("Mul", apart, apart), axes, keep)
    kind = w.info(source).dtype
    variance = w("Div", total, w("Sub", _count(w, source, axes), w.constant(less, kind)))
    return variance, mean if keep else str(w("Squeeze", mean, w.constant(axes)))


def _count(w: Writer, source: Any, axes: list[int]) -> str:
    """How many elements axes have together, as a float."""
    kind, sizes = w.info(source).dtype, [w.info(source).shape[axis] for axis in axes]
    if None not in sizes:
        return w.constant(math.prod(size or 0 for size in sizes), kind)
    shape = w("Gather", w("Shape", w.x(source)), w.constant(axes))
    return w.cast(str(w("ReduceProd", shape, keepdims=0)), torch.int64, kind)


rule("var", "var.dim", "var.correction")(lambda w, a: _spread(w, a)[0])
rule("std", "std.dim", "std.correction")(lambda w, a: w("Sqrt", _spread(w, a)[0]))
rule("var_mean.correction")(lambda w, a: list(_spread(w, a)))


@rule("std_mean.correction")
def _std_mean(w: Writer, a: Arguments) -> Any:
    variance, mean = _spread(w, a)
    return [w("Sqrt", variance), mean]


@rule("linalg_vector_norm", "norm.ScalarOpt_dim", "norm.Scalar")
def _norm(w: Writer, a: Arguments) -> Any:
    order = a.get("ord", a.get("p"))
    operator = {2: "ReduceL2", 1: "ReduceL1", None: "ReduceL2"}.get(order)
    if operator is None:
        raise Unsupported(f"the norm of order {order}")
    return _reduce(w, operator, w.x(a["self"]), _axes(w, a["self"], a.get("dim")), bool(a.get("keepdim", False)))


@rule("cumsum")
def _cumsum(w: Writer, a: Arguments) -> Any:
    return w("CumSum", w.operand(a["self"], w.result.dtype), w.constant(w.axis(a["self"], a["dim"])))


@rule("topk")
def _topk(w: Writer, a: Arguments) -> Any:
    axis = w.axis(a["self"], a["dim"])
    return w("TopK", w.x(a["self"]), w.ints([a["k"]]), outputs=2, axis=axis, largest=int(a["largest"]), sorted=1)


@rule("sort", "sort.stable", "argsort")
def _sort(w: Writer, a: Arguments) -> Any:
    axis = w.axis(a["self"], a["dim"])
    size = w("Shape", w.x(a["self"]), start=axis, end=axis + 1)
    found = w("TopK", w.x(a["self"]), size, outputs=2, axis=axis, largest=int(a["descending"]), sorted=1)
    return found if isinstance(w.result, list) else found[1]


def _softened(operator: str) -> Rule:
    return lambda w, a: w(operator, w.operand(a["self"], w.result.dtype), axis=w.axis(a["self"], a["dim"]))


rule("softmax.int", "_softmax")(_softened("Softmax"))
rule("log_softmax.int", "_log_softmax")(_softened("LogSoftmax"))
