"""Sums, products and shapes in LiteRT."""

from __future__ import annotations

from typing import Any

import numpy as np

from lilliput.export.litert import LAST, Arguments, Rule, Value, Writer, rule
from lilliput.export.rules import Unsupported
from lilliput.graph.ir import InputRef, NodeRef, TensorRef


def _is_ref(value: Any) -> bool:
    return isinstance(value, NodeRef | InputRef | TensorRef)


def _binary(operator: str) -> Rule:
    def combine(w: Writer, a: Arguments) -> Value:
        one, two = list(a.values())[:2]
        if a.get("alpha", 1) != 1:
            raise Unsupported("a sum with a factor")
        values = [w.value(ref) for ref in (one, two) if _is_ref(ref)]
        if operator == "ADD" and w.target is not None and len(values) == 2 and all(v.levels for v in values):
            last = values[0].last
            same = all(v.shape == w.shape for v in values)
            if same:
                return w.emit("ADD", [w.codes(one, last), w.codes(two, last)], w.shape, last, w.target, act=w.act)
        last = any(v.last for v in values) and all(len(v.shape) == 4 or v.array is not None for v in values)
        places = [w.floats(x, last) if _is_ref(x) else w.constant(np.array(x, np.float32)) for x in (one, two)]
        return w.emit(operator, places, w.shape, last, act=w.act)

    return combine


rule("add.Tensor", "add.Scalar")(_binary("ADD"))
rule("sub.Tensor", "sub.Scalar")(_binary("SUB"))
rule("mul.Tensor", "mul.Scalar")(_binary("MUL"))
rule("div.Tensor", "div.Scalar")(_binary("DIV"))


@rule("clone", "contiguous", "detach", "dropout", "identity", "alias")
def _same(w: Writer, a: Arguments) -> Value:
    return w.value(next(iter(a.values())))


@rule("view", "reshape", "flatten.using_ints", "squeeze", "squeeze.dim", "squeeze.dims", "unsqueeze", "unflatten.int")
def _reshape(w: Writer, a: Arguments) -> Value:
    """The same numbers in another shape; codes stay codes."""
    source = a["self"]
    value = w.value(source)
    if value.shape == w.shape:
        return value
    coded = value.levels is not None
    # One place a channel: both orders are the same.
    last = value.last and value.shape[2:] == (1, 1)
    given = w.codes(source, last) if coded else w.floats(source, last)
    return w.emit("RESHAPE", [given, w.constant(np.array(w.shape, np.int32))], w.shape, False, value.levels)


@rule("permute", "transpose.int", "t", "mT")
def _permute(w: Writer, a: Arguments) -> Value:
    value = w.value(a["self"])
    rank = len(value.shape)
    if "dims" in a:
        order = [axis % rank for axis in a["dims"]]
    else:
        order = list(range(rank))
        one, two = (axis % rank for axis in (list(a.values())[1:3] or (-2, -1)))
        order[one], order[two] = order[two], order[one]
    if value.last and tuple(order) == LAST:
        # A picture whose channels the network itself moves to the end: as it lies here.
        made = Value(w.shape, False, value.levels)
        coded = value.levels is not None
        made.places[False, coded] = w.codes(a["self"], True) if coded else w.floats(a["self"], True)
        return made
    given = w.codes(a["self"]) if value.levels is not None else w.floats(a["self"])
    return w.emit("TRANSPOSE", [given, w.constant(np.array(order, np.int32))], w.shape, False, value.levels)


@rule("cat")
def _cat(w: Writer, a: Arguments) -> Value:
    parts = [w.value(ref) for ref in a["tensors"]]
    axis, last = a["dim"] % len(w.shape), all(part.last for part in parts)
    places = [w.floats(ref, last) for ref in a["tensors"]]
    return w.emit("CONCATENATION", places, w.shape, last, axis=LAST.index(axis) if last else axis, act=0)


def _sliced(w: Writer, source: Any, axis: int, ends: tuple[int, int, int], shape: Any) -> Value:
    """Elements from an index to before another along one axis."""
    sizes = w.value(source).shape
    begin, end = [0] * len(sizes), list(sizes)
    begin[axis], end[axis] = ends[0], ends[1]
    steps = [1] * len(sizes)
    steps[axis] = ends[2]
    told = [w.constant(np.array(each, np.int32)) for each in (begin, end, steps)]
    return w.emit("STRIDED_SLICE", [w.floats(source), *told], shape, begin=0, end=0, shrink=0)


@rule("slice.Tensor")
def _slice(w: Writer, a: Arguments) -> Value:
    sizes = w.value(a["self"]).shape
    axis = a["dim"] % len(sizes)
    start, stop, step = slice(a["start"], a["end"], a["step"]).indices(sizes[axis])
    return _sliced(w, a["self"], axis, (start, stop, step), w.shape)


@rule("select.int")
def _select(w: Writer, a: Arguments) -> Value:
    sizes = w.value(a["self"]).shape
    axis = a["dim"] % len(sizes)
    place = a["index"] % sizes[axis]
    one = _sliced(w, a["self"], axis, (place, place + 1, 1), (*sizes[:axis], 1, *sizes[axis + 1 :]))
    return w.emit("RESHAPE", [one.places[False, False], w.constant(np.array(w.shape, np.int32))], w.shape)


@rule("chunk", "split.Tensor", "split_with_sizes", "unbind.int")
def _split(w: Writer, a: Arguments) -> Any:
    sizes, parts = w.value(a["self"]).shape, w.infos[w.index]
    axis = a.get("dim", 0) % len(sizes)
    found, start = [], 0
    for part in parts:
        whole = len(part.shape) == len(sizes)
        size = part.shape[axis] if whole else 1
        held = (*sizes[:axis], size, *sizes[axis + 1 :])
        one = _sliced(w, a["self"], axis, (start, start + size, 1), held)
        if not whole:
            shape = w.constant(np.array(part.shape, np.int32))
            one = w.emit("RESHAPE", [one.places[False, False], shape], part.shape)
        found.append(one)
        start += size
    return found


@rule("item")
def _item(w: Writer, a: Arguments) -> Any:
    parts, place = list(a.values())[:2]
    return w.values[parts][place]


@rule("pad", "constant_pad_nd")
def _pad(w: Writer, a: Arguments) -> Value:
    sizes, pad = w.value(a["self"]).shape, list(a["pad"])
    if a.get("mode", "constant") != "constant" or a["value"] or min(pad, default=0) < 0:
        raise Unsupported("a margin that isn't zeros")
    sides = [(0, 0)] * len(sizes)
    for place in range(len(pad) // 2):
        sides[-1 - place] = (pad[2 * place], pad[2 * place + 1])
    return w.emit("PAD", [w.floats(a["self"]), w.constant(np.array(sides, np.int32))], w.shape)


@rule("expand")
def _expand(w: Writer, a: Arguments) -> Value:
    value = w.value(a["self"])
    if value.shape != w.shape:
        raise Unsupported("an expansion to other sizes")
    return value


@rule("embedding")
def _embedding(w: Writer, a: Arguments) -> Value:
    return w.emit("GATHER", [w.floats(a["weight"]), w.floats(a["indices"])], w.shape, axis=0)
