"""Sizes written into a graph's nodes follow a cut: the network gets smaller without its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.graph.atoms import Label
from lilliput.graph.check import bind
from lilliput.graph.flow import Axes, Flow, short
from lilliput.graph.ir import Graph, Node
from lilliput.graph.layers import arguments_of
from lilliput.graph.operators import operators
from lilliput.graph.views import slice_of

Gone = NDArray[np.bool_]
Bound = Mapping[str, Any]


def rewrite(flow: Flow, gone: Gone) -> Graph:
    """Returns the graph at its smaller sizes.

    Args:
        flow: of the graph.
        gone: for each atom whether it is removed.
    """
    nodes = []
    for node, value in zip(flow.graph.nodes, flow.values):
        change = _CHANGES.get(short(node.operator))
        touched = [flow.of(ref) for ref in node.refs()]
        if change is not None and any(_touches(item, gone) for item in [*touched, value]):
            node = _with(node, change(_Place(flow, gone, node, value), arguments_of(node)))  # noqa: PLW2901
        nodes.append(node)
    return replace(flow.graph, nodes=tuple(nodes))


def left(label: Label | None, size: int, gone: Gone) -> int:
    """Counts the indices that stay.

    Args:
        label: of a dimension.
        size: of it.
        gone: for each atom whether it is removed.
    """
    return size if label is None else int((~gone[label]).sum())


def _touches(value: Any, gone: Gone) -> bool:
    if isinstance(value, list):
        return any(_touches(item, gone) for item in value)
    return isinstance(value, Axes) and any(label is not None and bool(gone[label].any()) for label in value.labels)


class _Place:
    """A node with the sizes before and after."""

    def __init__(self, flow: Flow, gone: Gone, node: Node, value: Any) -> None:
        self.flow = flow
        self.gone = gone
        self.node = node
        self.out = value
        self.operands = flow.operands(node)

    def sizes(self, axes: Axes) -> list[int]:
        return [left(label, size, self.gone) for label, size in zip(axes.labels, axes.shape)]

    def shape(self, given: Any, offset: int = 0) -> tuple[Any, ...]:
        """A list of sizes with the plain ones replaced; -1 and open ones follow by themselves."""
        new = self.sizes(self.out)[offset:]
        return tuple(size if type(item) is int and item != -1 else item for item, size in zip(given, new))


def _with(node: Node, changes: Mapping[str, Any]) -> Node:
    names = [parameter.name for parameter in operators()[node.operator].positional]
    given = bind(operators()[node.operator], node.args, node.kwargs)
    args, kwargs = list(node.args), dict(node.kwargs)
    for name, value in changes.items():
        if name in names[: len(args)]:
            args[names.index(name)] = value
        elif name in given or name in ("scale", "groups", "num_groups", "start", "end"):
            kwargs[name] = value
    return Node(node.operator, tuple(args), kwargs)


def _shaped(place: _Place, bound: Bound) -> Bound:
    name = "shape" if "shape" in bound else "size"
    given = bound.get(name)
    if not isinstance(given, tuple) or not isinstance(place.out, Axes):
        return {}
    return {name: place.shape(given)}


def _unflattened(place: _Place, bound: Bound) -> Bound:
    dim = int(bound["dim"]) % len(place.operands[0].shape)
    return {"sizes": place.shape(bound["sizes"], dim)}


def _repeated(place: _Place, bound: Bound) -> Bound:
    x, out = place.operands[0], place.sizes(place.out)
    before = [1] * (len(out) - len(x.shape)) + place.sizes(x)
    return {"repeats": tuple(new // old for new, old in zip(out, before))}


def _split(place: _Place, bound: Bound) -> Bound:
    d = int(bound["dim"]) % len(place.operands[0].shape)
    sizes = [place.sizes(piece)[d] for piece in place.out]
    if "split_sizes" in bound:
        return {"split_sizes": tuple(sizes)}
    return {"split_size": sizes[0]} if "split_size" in bound else {}


def _sliced(place: _Place, bound: Bound) -> Bound:
    x = place.operands[0]
    d = int(bound["dim"]) % len(x.shape)
    label = x.labels[d]
    if label is None:
        return {}
    begin, end, _ = slice_of(place.flow, place.node, bound, x.shape[d])
    start = left(label[:begin], begin, place.gone)
    length = left(label[begin:end], end - begin, place.gone)
    return {"start": start, "length": length} if "length" in bound else {"start": start, "end": start + length}


def _convolved(place: _Place, bound: Bound) -> Bound:
    weight = place.flow.of(bound["weight"])
    if int(bound["groups"]) == 1:
        return {}
    x = place.flow.of(bound["input"])
    channels = place.sizes(x)[len(x.shape) - len(weight.shape) + 1]
    transposed = "transpose" in place.node.operator
    per_group = weight.shape[0] // int(bound["groups"]) if transposed else place.sizes(weight)[1]
    return {"groups": channels // per_group}


def _group_normed(place: _Place, bound: Bound) -> Bound:
    x = place.operands[0]
    return {"num_groups": place.sizes(x)[1] * int(bound["num_groups"]) // x.shape[1]}


def _attended(place: _Place, bound: Bound) -> Bound:
    query = place.flow.of(bound["query"])
    if bound.get("scale") is None and place.sizes(query)[-1] != query.shape[-1]:
        return {"scale": query.shape[-1] ** -0.5}
    return {}


_WORDS: dict[Callable[[_Place, Bound], Bound], str] = {
    _shaped: "reshape view expand broadcast_to zeros ones full new_zeros new_ones new_full",
    _unflattened: "unflatten",
    _repeated: "repeat",
    _split: "split split_with_sizes",
    _sliced: "slice narrow",
    _convolved: """
        conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
        """,
    _group_normed: "group_norm",
    _attended: "scaled_dot_product_attention",
}
_CHANGES = {name: change for change, names in _WORDS.items() for name in names.split()}
