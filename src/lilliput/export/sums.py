"""Residual sums of integers: what a layer takes on levels, the sum takes on the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lilliput.export.quantized import levels_in
from lilliput.graph.ir import Graph, NodeRef, Ref, map_node

ADD = "aten.add.Tensor"


def sums_of_levels(graph: Graph) -> Graph:
    """Returns a graph whose sums take levels where a layer puts the same value on levels, as engines' own tools do.

    A residual network's value goes to a layer, by levels, and as it is to the sum behind: an engine then holds it
    twice, and adds floats. Only sums both of whose terms are on levels then are changed: these engines add as integers.
    The value moves by half a level at most, as it does for the layer.

    Args:
        graph: any graph.
    """
    levels = levels_in(graph)
    first: dict[Ref, int] = {}
    for index in sorted(levels):
        first.setdefault(levels[index].source, index)
    nodes = list(graph.nodes)
    for index, node in enumerate(nodes):
        if node.operator != ADD:
            continue
        moved: dict[Ref, Ref | None] = {ref: _on_levels(ref, index, levels, first) for ref in node.refs()}
        if len(moved) == 2 and None not in moved.values() and any(ref != to for ref, to in moved.items()):
            nodes[index] = map_node(node, lambda ref, moved=moved: moved[ref])
    return replace(graph, nodes=tuple(nodes))


def _on_levels(ref: Any, before: int, levels: Any, first: dict[Ref, int]) -> Ref | None:
    """A value on levels, found before a node; None if there is none."""
    if isinstance(ref, NodeRef) and ref.index in levels:
        return ref
    place = first.get(ref, before)
    return NodeRef(place) if place < before else None
