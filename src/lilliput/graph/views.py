"""Rules for operators that only move values: reshapes, permutations, slices, concatenation, repetition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lilliput.graph.atoms import FIXED, Label
from lilliput.graph.flow import Axes, Flow, Rule, short, solid
from lilliput.graph.ir import Node, NodeRef

# A label is spread over merged dimensions only up to here.
_MOST_INDICES = 1 << 22

Bound = Mapping[str, Any]


def reshape(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Splits and merges dimensions; a dimension that is split is cut along one of its parts, the same in all others."""
    x: Axes = flow.of(next(node.refs()))
    shape: tuple[int, ...] = flow.result
    out: list[Label | None] = [None] * len(shape)
    if math.prod(shape) == 0:
        return flow.fixed()  # type: ignore[no-any-return]
    for place, (inner, outer) in enumerate(_segments(x.shape, shape)):
        labels = [x.labels[d] for d in inner]
        if all(label is None for label in labels):
            continue
        if len(inner) == len(outer) == 1:
            out[outer[0]] = labels[0]
            continue
        flat = _merge(flow, [x.shape[d] for d in inner], labels)
        if flat is not None:
            for d, label in zip(outer, _split(flow, node, place, flat.reshape([shape[d] for d in outer]))):
                out[d] = label
    return Axes(shape, tuple(out))


def _segments(one: Sequence[int], two: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of dimensions of equal products, without those of size 1."""
    left, right = [d for d in range(len(one)) if one[d] != 1], [d for d in range(len(two)) if two[d] != 1]
    segments = []
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        m, n = one[a[0]], two[b[0]]
        while m != n:
            if m < n:
                a.append(left.pop(0))
                m *= one[a[-1]]
            else:
                b.append(right.pop(0))
                n *= two[b[-1]]
        segments.append((a, b))
    return segments


def _merge(flow: Flow, sizes: list[int], labels: list[Label | None]) -> Label | None:
    """The label of dimensions that become one: by one of them; the others can't be cut."""
    known = [d for d, label in enumerate(labels) if label is not None]
    carrier = max(known, key=lambda d: (not flow.atoms.is_soft(labels[d]), sizes[d]))  # type: ignore[arg-type]
    for d in known:
        if d != carrier:
            flow.atoms.block(labels[d], "they are merged with another dimension")
    label = labels[carrier]
    assert label is not None
    if math.prod(sizes) > _MOST_INDICES:
        flow.atoms.block(label, "they are spread over too many features")
        return None
    view = label.reshape([-1 if d == carrier else 1 for d in range(len(sizes))])
    return np.ascontiguousarray(np.broadcast_to(view, sizes)).ravel()


def _split(flow: Flow, node: Node, place: int, block: Label) -> list[Label | None]:
    dims = range(block.ndim)
    varying = [d for d in dims if bool((block != np.take(block, [0], d)).any())]
    if not varying:
        # One atom throughout: the last dimension may stand for it, as a whole.
        flow.atoms.block(block.ravel()[:1], "they can't be told apart after a reshape")
        return [None] * block.ndim
    order = varying
    if len(varying) > 1:
        # Heads before what is within a head; of a shuffle, and of query, key and value in one, the inner dimension.
        preferred = varying[-2] if len(varying) > 2 or not _shuffles(flow) else varying[-1]
        order = [preferred, *[d for d in reversed(varying) if d != preferred]]
    chosen = order[flow.choose(place, len(order))]
    moved = np.moveaxis(block, chosen, -1).reshape(-1, block.shape[chosen])
    label = moved[0].copy()
    if moved.shape[0] > 1:
        reason = f"{short(node.operator)} splits them"
        flow.atoms.join(np.broadcast_to(label, moved[1:].shape).copy(), moved[1:], reason)
    flow.note(place, len(order), label)
    return [label if d == chosen else None for d in dims]


def _shuffles(flow: Flow) -> bool:
    """Whether the present node's result is transposed and merged again: a channel shuffle."""
    here = NodeRef(len(flow.values))
    for merges in (("transpose", "permute", "swapaxes"), ("reshape", "flatten")):
        for index in range(here.index + 1, min(here.index + 4, len(flow.graph.nodes))):
            node = flow.graph.nodes[index]
            if here in node.refs() and short(node.operator) in merges:
                here = NodeRef(index)
                break
        else:
            return False
    # Back to what it was before it was split.
    before = flow.of(next(flow.graph.nodes[len(flow.values)].refs()))
    return bool(flow.results[here.index] == before.shape)


def permuted(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Any permutation of dimensions."""
    x: Axes = flow.of(next(node.refs()))
    rank, name = len(x.shape), short(node.operator)
    order = list(range(rank))
    if name == "permute":
        order = [d % rank for d in flow.numbers(bound["dims"])]
    elif name in ("transpose", "swapaxes"):
        a, b = (int(value) % rank for value in node.args[1:3])  # type: ignore[arg-type]
        order[a], order[b] = b, a
    elif name == "movedim":
        source = [d % rank for d in flow.numbers(bound["source"])]
        target = [d % rank for d in flow.numbers(bound["destination"])]
        rest = iter(d for d in order if d not in source)
        order = [source[target.index(d)] if d in target else next(rest) for d in range(rank)]
    elif name == "numpy_T":
        order.reverse()
    elif rank > 1:
        order[-2:] = [order[-1], order[-2]]
    return Axes(tuple(x.shape[d] for d in order), tuple(x.labels[d] for d in order))


def resqueezed(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Dimensions of size 1 come or go."""
    x: Axes = flow.of(next(node.refs()))
    kept = iter([label for size, label in zip(x.shape, x.labels) if size != 1])
    return Axes(flow.result, tuple(None if size == 1 else next(kept) for size in flow.result))


def expanded(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Dimensions of size 1, or new ones, take any size."""
    x: Axes = flow.of(next(node.refs()))
    shape: tuple[int, ...] = flow.result
    labels = []
    for back in range(len(shape), 0, -1):
        same = len(x.shape) >= back and x.shape[-back] == shape[-back]
        labels.append(x.labels[-back] if same else flow.atoms.new(shape[-back], soft=True))
    return Axes(shape, tuple(labels))


def repeated(flow: Flow, node: Node, bound: Bound) -> Axes:
    """`repeat`: whole runs of indices again."""
    x: Axes = flow.of(next(node.refs()))
    shape: tuple[int, ...] = flow.result
    labels: list[Label | None] = []
    for back in range(len(shape), 0, -1):
        size = x.shape[-back] if len(x.shape) >= back else 1
        label = x.labels[-back] if len(x.shape) >= back else None
        if size == 1 and shape[-back] > 1:
            labels.append(flow.atoms.new(shape[-back], soft=True))
        else:
            labels.append(None if label is None else np.tile(label, shape[-back] // size))
    return Axes(shape, tuple(labels))


def interleaved(flow: Flow, node: Node, bound: Bound) -> Axes:
    """`repeat_interleave`: each index several times."""
    x: Axes = flow.of(bound["self"])
    if bound.get("dim") is None:
        flow.block(x, "repeat_interleave flattens them")
        return flow.fixed()  # type: ignore[no-any-return]
    d = int(bound["dim"]) % len(x.shape)
    labels = list(x.labels)
    label = labels[d]
    labels[d] = None if label is None else np.repeat(label, flow.result[d] // x.shape[d])
    return Axes(flow.result, tuple(labels))


def concatenated(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Labels one behind the other; along other dimensions they are joined."""
    shape: tuple[int, ...] = flow.result
    tensors = [flow.of(item) for item in bound["tensors"]]
    tensors = [x for x in tensors if len(x.shape) == len(shape)]
    d = int(bound["dim"]) % len(shape)
    labels: list[Label | None] = []
    for place in range(len(shape)):
        parts = [x.labels[place] for x in tensors]
        if place != d:
            labels.append(flow.unify(parts, node.operator))
        elif all(part is None for part in parts):
            labels.append(None)
        else:
            labels.append(np.concatenate([solid(part, x.shape[d]) for part, x in zip(parts, tensors)]))
    return Axes(shape, tuple(labels))


def stacked(flow: Flow, node: Node, bound: Bound) -> Axes:
    """A new dimension, which can't be cut."""
    shape: tuple[int, ...] = flow.result
    tensors = [flow.of(item) for item in bound["tensors"]]
    labels = list(flow.broadcast(tensors, tensors[0].shape, node.operator))
    labels.insert(int(bound["dim"]) % len(shape), None)
    return Axes(shape, tuple(labels))


def pieces(flow: Flow, node: Node, bound: Bound) -> list[Axes]:
    """Splits and chunks. Pieces whose size is counted, not listed, must stay equal: they lose the same indices."""
    x: Axes = flow.of(next(node.refs()))
    d = int(bound["dim"]) % len(x.shape)
    sizes = [shape[d] for shape in flow.result]
    label = x.labels[d]
    parts: list[Label | None] = [None] * len(sizes)
    if label is not None:
        ends = np.cumsum(sizes)
        parts = [label[end - size : end] for end, size in zip(ends, sizes)]
        listed = "sizes" in node.operator
        if not listed and len(set(sizes)) > 1:
            flow.atoms.block(label, f"{short(node.operator)} makes pieces of several sizes")
        elif not listed and len(parts) > 1:
            flow.unify(parts, node.operator)
    labels = [tuple(part if place == d else other for place, other in enumerate(x.labels)) for part in parts]
    return [Axes(shape, label) for shape, label in zip(flow.result, labels)]


def taken(flow: Flow, node: Node, bound: Bound) -> Any:
    """`select` and `unbind`: the dimension goes, and can't be cut."""
    x: Axes = flow.of(next(node.refs()))
    d = int(bound["dim"]) % len(x.shape)
    flow.atoms.block(x.labels[d], f"{short(node.operator)} takes single ones")
    rest = tuple(label for place, label in enumerate(x.labels) if place != d)
    if isinstance(flow.result, list):
        return [Axes(shape, rest) for shape in flow.result]
    return Axes(flow.result, rest)


def sliced(flow: Flow, node: Node, bound: Bound) -> Axes:
    """A range of indices."""
    x: Axes = flow.of(next(node.refs()))
    d = int(bound["dim"]) % len(x.shape)
    label = x.labels[d]
    if label is not None:
        begin, end, step = slice_of(flow, node, bound, x.shape[d])
        if step != 1:
            flow.atoms.block(label, "a slice takes every so many of them")
            label = None
        else:
            label = label[begin:end] if end - begin > 1 else None
            if label is None:
                flow.atoms.block(x.labels[d], "a slice takes a single one")
    return Axes(flow.result, tuple(label if place == d else other for place, other in enumerate(x.labels)))


def slice_of(flow: Flow, node: Node, bound: Bound, size: int) -> tuple[int, int, int]:
    """Returns begin, end and step of a slice or `narrow`.

    Args:
        flow: for the numbers.
        node: the slice.
        bound: its arguments.
        size: of the dimension.
    """
    if short(node.operator) == "narrow":
        begin = int(flow.of(bound["start"])) % size
        return begin, begin + int(flow.of(bound["length"])), 1
    given = [flow.of(bound.get(name)) for name in ("start", "end", "step")]
    return slice(*[None if value is None else int(value) for value in given]).indices(size)


def padded(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Zeros or copies at the ends of dimensions; padded channels can't be cut."""
    x: Axes = flow.of(next(node.refs()))
    pads = flow.numbers(bound.get("pad", bound.get("padding")))
    labels = list(x.labels)
    for place in range(len(pads) // 2):
        d = len(x.shape) - 1 - place
        before, after = pads[2 * place : 2 * place + 2]
        label = labels[d]
        if label is None or not (before or after):
            continue
        if "constant" not in node.operator and bound.get("mode", "constant") != "constant":
            flow.atoms.block(label, f"{short(node.operator)} copies some of them")
            labels[d] = None
            continue
        if min(before, after) < 0:
            flow.atoms.block(label, f"{short(node.operator)} crops them")
            labels[d] = None
            continue
        labels[d] = np.concatenate([np.full(before, FIXED), label, np.full(after, FIXED)])
    return Axes(flow.result, tuple(labels))


def flipped(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Indices in reverse."""
    x: Axes = flow.of(next(node.refs()))
    dims = {d % len(x.shape) for d in flow.numbers(bound["dims"])}
    return Axes(x.shape, tuple(y if y is None or d not in dims else y[::-1].copy() for d, y in enumerate(x.labels)))


def shuffled_pixels(flow: Flow, node: Node, bound: Bound) -> Axes:
    """`pixel_shuffle`, `pixel_unshuffle`: each channel is r * r of the other."""
    x: Axes = flow.of(next(node.refs()))
    shape: tuple[int, ...] = flow.result
    label, d = x.labels[-3], len(shape) - 3
    for other in x.labels[-2:]:
        flow.atoms.block(other, f"{short(node.operator)} mixes them")
    if label is not None and shape[d] < x.shape[-3]:
        block = label.reshape(shape[d], -1)
        flow.atoms.join(np.repeat(block[:, :1], block.shape[1] - 1, 1), block[:, 1:], "pixel_shuffle joins them")
        label = block[:, 0].copy() if shape[d] > 1 else None
    elif label is not None:
        label = np.repeat(label, shape[d] // x.shape[-3])
    return Axes(shape, (*x.labels[:-3], label, None, None))


def unfolded(flow: Flow, node: Node, bound: Bound) -> Axes:
    """`im2col`: each channel becomes as many features as the kernel has places."""
    x: Axes = flow.of(bound["self"])
    shape: tuple[int, ...] = flow.result
    if len(x.shape) != 4:
        flow.block(x, "im2col mixes them")
        return flow.fixed()  # type: ignore[no-any-return]
    for other in x.labels[2:]:
        flow.atoms.block(other, "im2col mixes them")
    label = x.labels[1]
    return Axes(shape, (x.labels[0], None if label is None else np.repeat(label, shape[1] // x.shape[1]), None))


def rule_table() -> dict[str, Rule]:
    """Returns the rules by operator name, without overload."""
    words: dict[Rule, str] = {
        reshape: "reshape view flatten unflatten view_as reshape_as",
        permuted: "permute transpose swapaxes t mT numpy_T movedim",
        resqueezed: "squeeze unsqueeze",
        expanded: "expand expand_as broadcast_to",
        repeated: "repeat",
        interleaved: "repeat_interleave",
        concatenated: "cat",
        stacked: "stack",
        pieces: "split split_with_sizes chunk tensor_split",
        taken: "select unbind",
        sliced: "slice narrow",
        padded: "pad constant_pad_nd",
        flipped: "flip",
        shuffled_pixels: "pixel_shuffle pixel_unshuffle",
        unfolded: "im2col",
    }
    return {name: rule for rule, names in words.items() for name in names.split()}
