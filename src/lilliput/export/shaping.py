"""Operators that move elements around, take some, or make new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lilliput.export.rules import Unsupported
from lilliput.export.writer import Arguments, Rule, Writer, kind_of, rule
from lilliput.graph.ir import NodeRef

_END = 2**63 - 1


@rule("view", "reshape")
def _view(w: Writer, a: Arguments) -> Any:
    return w.reshape(w.x(a["self"]), list(a.values())[1])


@rule("flatten.using_ints")
def _flatten(w: Writer, a: Arguments) -> Any:
    source, rank = a["self"], w.rank(a["self"])
    if not rank:
        return w.reshape(w.x(source), [1])
    start, end = w.axis(source, a["start_dim"]), w.axis(source, a["end_dim"])
    # 0 copies the size at the same place; those behind the flattened axes stand elsewhere now.
    behind = [_size(w, source, place) for place in range(end + 1, rank)]
    parts = [w.constant([0] * start + [-1]), *behind]
    return w("Reshape", w.x(source), w("Concat", *parts, axis=0) if behind else parts[0])


def _size(w: Writer, source: Any, axis: int) -> str:
    """One size as an integer tensor: fixed, or taken from the shape."""
    axis = w.axis(source, axis)
    size = w.info(source).shape[axis]
    return w.constant([size]) if size is not None else str(w("Shape", w.x(source), start=axis, end=axis + 1))


@rule("unflatten.int")
def _unflatten(w: Writer, a: Arguments) -> Any:
    axis, rank = w.axis(a["self"], a["dim"]), w.rank(a["self"])
    parts = [w.ints([*[0] * axis, *a["sizes"]]), *(_size(w, a["self"], place) for place in range(axis + 1, rank))]
    return w("Reshape", w.x(a["self"]), w("Concat", *parts, axis=0) if len(parts) > 1 else parts[0])


@rule("view_as", "reshape_as")
def _view_as(w: Writer, a: Arguments) -> Any:
    return w("Reshape", w.x(a["self"]), w("Shape", w.x(a["other"])))


@rule("squeeze", "squeeze.dim", "squeeze.dims")
def _squeeze(w: Writer, a: Arguments) -> Any:
    shape = w.info(a["self"]).shape
    wanted = a.get("dim")
    axes = range(len(shape)) if wanted is None else [w.axis(a["self"], dim) for dim in w.fixed(wanted)]
    gone = [axis for axis in axes if shape[axis] == 1]
    return w("Squeeze", w.x(a["self"]), w.constant(gone)) if gone else w.x(a["self"])


@rule("unsqueeze")
def _unsqueeze(w: Writer, a: Arguments) -> Any:
    axis = a["dim"] if a["dim"] >= 0 else a["dim"] + w.rank(a["self"]) + 1
    return w("Unsqueeze", w.x(a["self"]), w.constant([axis]))


def _permuted(w: Writer, source: Any, order: Sequence[int]) -> Any:
    return w("Transpose", w.x(source), perm=[w.axis(source, axis) for axis in order])


@rule("permute")
def _permute(w: Writer, a: Arguments) -> Any:
    return _permuted(w, a["self"], w.fixed(a["dims"]))


@rule("transpose.int", "swapaxes", "t", "mT")
def _transpose(w: Writer, a: Arguments) -> Any:
    order = list(range(w.rank(a["self"])))
    if len(order) < 2:
        return w.x(a["self"])
    one, two = (w.axis(a["self"], dim) for dim in list(a.values())[1:3] or (-2, -1))
    order[one], order[two] = order[two], order[one]
    return _permuted(w, a["self"], order)


@rule("numpy_T")
def _reversed(w: Writer, a: Arguments) -> Any:
    return _permuted(w, a["self"], list(range(w.rank(a["self"])))[::-1])


@rule("movedim.int", "movedim.intlist")
def _movedim(w: Writer, a: Arguments) -> Any:
    rank = w.rank(a["self"])
    sources = [w.axis(a["self"], axis) for axis in w.fixed(a["source"])]
    targets = [w.axis(a["self"], axis) for axis in w.fixed(a["destination"])]
    order: list[int] = [-1] * rank
    for source, target in zip(sources, targets):
        order[target] = source
    rest = iter(axis for axis in range(rank) if axis not in sources)
    return _permuted(w, a["self"], [axis if axis >= 0 else next(rest) for axis in order])


@rule("expand", "broadcast_to")
def _expand(w: Writer, a: Arguments) -> Any:
    sizes = [1 if size == -1 else size for size in a["size"]]
    if all(size == 1 for size in sizes) and len(sizes) == w.rank(a["self"]):
        return w.x(a["self"])
    return w("Expand", w.x(a["self"]), w.ints(sizes))


@rule("expand_as")
def _expand_as(w: Writer, a: Arguments) -> Any:
    return w("Expand", w.x(a["self"]), w("Shape", w.x(a["other"])))


@rule("repeat", "tile")
def _repeat(w: Writer, a: Arguments) -> Any:
    counts = list(a.values())[1]
    rank, name = w.rank(a["self"]), w.x(a["self"])
    if len(counts) > rank:
        name = w("Unsqueeze", name, w.constant(list(range(len(counts) - rank))))
    return w("Tile", name, w.ints([*[1] * (rank - len(counts)), *counts]))


@rule("cat")
def _cat(w: Writer, a: Arguments) -> Any:
    parts = a["tensors"]
    return w("Concat", *(w.operand(part, w.result.dtype) for part in parts), axis=w.axis(parts[0], a["dim"]))


@rule("stack")
def _stack(w: Writer, a: Arguments) -> Any:
    axis = a["dim"] if a["dim"] >= 0 else a["dim"] + len(w.result.shape)
    parts = [w("Unsqueeze", w.operand(part, w.result.dtype), w.constant([axis])) for part in a["tensors"]]
    return w("Concat", *parts, axis=axis)


def _slice(w: Writer, source: Any, axis: int, ends: tuple[Any, Any], step: int = 1) -> str:
    """Elements from an index to before another along one axis."""
    places = (w.ints([ends[0]]), w.ints([ends[1]]))
    return str(w("Slice", w.x(source), *places, w.constant([axis]), w.constant([step])))


def _pieces(w: Writer, source: Any, axis: int) -> list[str]:
    """Pieces one after another, of the sizes that the result's parts have."""
    start, found = 0, []
    for place, part in enumerate(w.result):
        last = place == len(w.result) - 1
        size = part.shape[axis]
        if size is None and not last:
            raise Unsupported("pieces of open sizes")
        found.append(_slice(w, source, axis, (start, _END if last else start + int(size or 0))))
        start += int(size or 0)
    return found


@rule("split.Tensor", "split.sizes", "split_with_sizes", "chunk", "tensor_split.sections")
def _split(w: Writer, a: Arguments) -> Any:
    return _pieces(w, a["self"], w.axis(a["self"], a["dim"]))


@rule("unbind.int")
def _unbind(w: Writer, a: Arguments) -> Any:
    axis = w.axis(a["self"], a["dim"])
    return [w("Gather", w.x(a["self"]), w.constant(place), axis=axis) for place in range(len(w.result))]


@rule("narrow")
def _narrow(w: Writer, a: Arguments) -> Any:
    start, length = a["start"], a["length"]
    end = start + length if isinstance(start, int) and isinstance(length, int) else None
    if end is None:
        raise Unsupported("narrow at open sizes")
    return _slice(w, a["self"], w.axis(a["self"], a["dim"]), (start, end))


@rule("slice.Tensor")
def _slice_tensor(w: Writer, a: Arguments) -> Any:
    start, end = (a["start"] if a["start"] is not None else 0), (a["end"] if a["end"] is not None else _END)
    if start == 0 and end == _END and a["step"] == 1:
        return w.x(a["self"])
    return _slice(w, a["self"], w.axis(a["self"], a["dim"]), (start, end), a["step"])


@rule("select.int")
def _select(w: Writer, a: Arguments) -> Any:
    axis = w.axis(a["self"], a["dim"])
    if isinstance(a["index"], int):
        return w("Gather", w.x(a["self"]), w.constant(a["index"]), axis=axis)
    return w("Squeeze", w("Gather", w.x(a["self"]), w.ints([a["index"]]), axis=axis), w.constant([axis]))


@rule("flip")
def _flip(w: Writer, a: Arguments) -> Any:
    axes = [w.axis(a["self"], axis) for axis in w.fixed(a["dims"])]
    count = len(axes)
    return w("Slice", w.x(a["self"]), w.constant([-1] * count), w.constant([-_END] * count), w.constant(axes),
             w.constant([-1] * count))  # fmt: skip


@rule("roll")
def _roll(w: Writer, a: Arguments) -> Any:
    shifts, axes = w.fixed(a["shifts"]), w.fixed(a["dims"])
    name = w.x(a["self"])
    if len(axes) != len(shifts):
        raise Unsupported("roll of the flattened tensor")
    for shift, dim in zip(shifts, axes):
        axis = w.axis(a["self"], dim)
        size = w.info(a["self"]).shape[axis]
        cut = -shift if size is None else -shift % max(size, 1)
        if not cut:
            continue
        one = w("Slice", name, w.constant([cut]), w.constant([_END]), w.constant([axis]))
        two = w("Slice", name, w.constant([0]), w.constant([cut]), w.constant([axis]))
        name = w("Concat", one, two, axis=axis)
    return name


def _triangular(upper: int) -> Rule:
    return lambda w, a: w("Trilu", w.x(a["self"]), w.constant(a["diagonal"]), upper=upper)


rule("tril")(_triangular(0))
rule("triu")(_triangular(1))


def _padded(w: Writer, a: Arguments, mode: str, value: Any = None) -> Any:
    rank, pad = w.rank(a["self"]), w.fixed(list(a.values())[1])
    begins, ends = [0] * rank, [0] * rank
    for place in range(len(pad) // 2):
        begins[rank - 1 - place], ends[rank - 1 - place] = pad[2 * place], pad[2 * place + 1]
    filler = [w.constant(value or 0, w.result.dtype)] if mode == "constant" else []
    return w("Pad", w.x(a["self"]), w.constant(begins + ends), *filler, mode=mode)


rule("constant_pad_nd")(lambda w, a: _padded(w, a, "constant", a["value"]))
rule("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")(lambda w, a: _padded(w, a, "reflect"))
rule("replication_pad1d", "replication_pad2d", "replication_pad3d")(lambda w, a: _padded(w, a, "edge"))


@rule("pad")
def _pad(w: Writer, a: Arguments) -> Any:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return _padded(w, a, modes[a["mode"]], a["value"])


@rule("pixel_shuffle")
def _pixel_shuffle(w: Writer, a: Arguments) -> Any:
    return w("DepthToSpace", w.x(a["self"]), blocksize=a["upscale_factor"], mode="CRD")


@rule("pixel_unshuffle")
def _pixel_unshuffle(w: Writer, a: Arguments) -> Any:
    factor, source = a["downscale_factor"], a["self"]
    if w.rank(source) != 4:
        raise Unsupported("pictures without a batch")
    step = w.constant([factor])
    height, width = (w("Div", _size(w, source, axis), step) for axis in (2, 3))
    channels = _size(w, source, 1)
    split = w("Reshape", w.x(source), w("Concat", w.constant([0]), channels, height, step, width, step, axis=0))
    moved = w("Transpose", split, perm=[0, 1, 3, 5, 2, 4])
    wide = w("Mul", channels, w.constant([factor * factor]))
    return w("Reshape", moved, w("Concat", w.constant([0]), wide, height, width, axis=0))


@rule("channel_shuffle")
def _channel_shuffle(w: Writer, a: Arguments) -> Any:
    groups, source = a["groups"], w.x(a["self"])
    each = w("Div", _size(w, a["self"], 1), w.constant([groups]))
    split = w("Reshape", source, w("Concat", w.constant([0, groups]), each, w.constant([-1]), axis=0))
    return w("Reshape", w("Transpose", split, perm=[0, 2, 1, 3]), w("Shape", source))


@rule("embedding")
def _embedding(w: Writer, a: Arguments) -> Any:
    return w("Gather", w.x(a["weight"]), w.x(a["indices"]), axis=0)


@rule("index_select")
def _index_select(w: Writer, a: Arguments) -> Any:
    index = w.x(a["index"])
    index = index if w.rank(a["index"]) else w("Unsqueeze", index, w.constant([0]))
    return w("Gather", w.x(a["self"]), index, axis=w.axis(a["self"], a["dim"]))


@rule("gather", "take_along_dim")
def _gather(w: Writer, a: Arguments) -> Any:
    index = a["index"] if "index" in a else a["indices"]
    return w("GatherElements", w.x(a["self"]), w.x(index), axis=w.axis(a["self"], a["dim"]))


@rule("index.Tensor")
def _index(w: Writer, a: Arguments) -> Any:
    given = [(axis, index) for axis, index in enumerate(a["indices"]) if index is not None]
    if any(w.info(index).dtype == torch.bool for _, index in given):
        raise Unsupported("a mask as index")
    if len(given) == 1:
        axis, index = given[0]
        return w("Gather", w.x(a["self"]), w.operand(index, torch.int64), axis=axis)
    if [axis for axis, _ in given] != list(range(len(given))):
        raise Unsupported("several indices that don't begin at the first axis")
    names = [w.operand(index, torch.int64) for _, index in given]
    zero = w.constant(0)
    total = w("Mul", names[0], zero)
    for name in names[1:]:
        total = w("Add", total, w("Mul", name, zero))
    parts = [w("Unsqueeze", w("Add", name, total), w.constant([-1])) for name in names]
    return w("GatherND", w.x(a["self"]), w("Concat", *parts, axis=-1))


def _filled(w: Writer, value: Any, sizes: str) -> Any:
    return w("Expand", w.constant(value, w.result.dtype), sizes)


rule("zeros")(lambda w, a: _filled(w, 0, w.ints(a["size"])))
rule("ones")(lambda w, a: _filled(w, 1, w.ints(a["size"])))
rule("full")(lambda w, a: w("Expand", w.operand(a["fill_value"], w.result.dtype), w.ints(a["size"])))
rule("new_zeros")(lambda w, a: _filled(w, 0, w.ints(a["size"])))
rule("new_ones")(lambda w, a: _filled(w, 1, w.ints(a["size"])))
rule("new_full")(lambda w, a: _filled(w, a["fill_value"], w.ints(a["size"])))
rule("zeros_like")(lambda w, a: _filled(w, 0, w("Shape", w.x(a["self"]))))
rule("ones_like")(lambda w, a: _filled(w, 1, w("Shape", w.x(a["self"]))))
rule("full_like", "fill.Scalar")(
    lambda w, a: _filled(w, a.get("fill_value", a.get("value")), w("Shape", w.x(a["self"])))
)
rule("scalar_tensor")(lambda w, a: w.operand(a["s"], w.result.dtype))


@rule("arange", "arange.start", "arange.start_step")
def _arange(w: Writer, a: Arguments) -> Any:
    kind = w.result.dtype
    numbers = [a.get("start", 0), a["end"], a.get("step", 1)]
    if all(isinstance(number, int | float) for number in numbers):
        return w.constant(np.arange(*numbers).astype(str(kind).removeprefix("torch.")))
    scalars = [
        w("Squeeze", w.operand(number, kind)) if isinstance(number, NodeRef) else w.constant(number, kind)
        for number in numbers
    ]
    return w("Range", *scalars)


@rule("sym_size.int")
def _sym_size(w: Writer, a: Arguments) -> Any:
    axis = w.axis(a["self"], a["dim"])
    return w("Shape", w.x(a["self"]), start=axis, end=axis + 1)


@rule("sym_numel")
def _sym_numel(w: Writer, a: Arguments) -> Any:
    return w("Reshape", w("Size", w.x(a["self"])), w.constant([1]))


def _integers(operator: str) -> Rule:
    return lambda w, a: w(operator, w.ints([a["a"]]), w.ints([a["b"]]))


for _name, _operator in (
    ("add", "Add"),
    ("sub", "Sub"),
    ("mul", "Mul"),
    ("max", "Max"),
    ("min", "Min"),
    ("mod", "Mod"),
):
    rule(f"sym.{_name}")(_integers(_operator))


@rule("sym.floordiv")
def _sym_floordiv(w: Writer, a: Arguments) -> Any:
    # Sizes aren't negative, but -(n // -k), a ceiling, is written with these.
    exact = w("Div", *(w.cast(w.ints([a[name]]), torch.int64, torch.float64) for name in ("a", "b")))
    return w.cast(w("Floor", exact), torch.float64, torch.int64)


rule("sym.neg")(lambda w, a: w("Neg", w.ints([a["a"]])))


def _floats(operator: str) -> Rule:
    return lambda w, a: w(operator, w.operand(a["a"], torch.float32), w.operand(a["b"], torch.float32))


for _name, _operator in (("truediv", "Div"), ("addf", "Add"), ("subf", "Sub"), ("mulf", "Mul")):
    rule(f"sym.{_name}")(_floats(_operator))


def _rounded(operator: str) -> Rule:
    def convert(w: Writer, a: Arguments) -> Any:
        return w.cast(w(operator, w.operand(a["a"], torch.float32)), torch.float32, torch.int64)

    return convert


rule("sym.floor")(_rounded("Floor"))
rule("sym.ceil")(_rounded("Ceil"))
rule("sym.int")(lambda w, a: w("Cast", w.operand(a["a"], torch.float32), to=kind_of(torch.int64)))
rule("sym.float")(lambda w, a: w.operand(a["a"], torch.float32))


@rule("item")
def _item(w: Writer, a: Arguments) -> Any:
    return w.values[a["values"].index][a["index"]]
