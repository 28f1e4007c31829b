"""Graphs made smaller without changing what they compute."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lilliput.graph.ir import Graph, Node, NodeRef, Ref, map_node, map_refs, refs_of


def drop_dead(graph: Graph, buffers: Iterable[str] | None = None) -> Graph:
    """Removes nodes whose results nothing uses.

    Args:
        graph: any graph.
        buffers: names of buffers, if others than the graph's; those unused are dropped.

    Returns:
        The graph of what the outputs need.
    """
    live = {ref.index for ref in refs_of(graph.output) if isinstance(ref, NodeRef)}
    for index in range(len(graph.nodes) - 1, -1, -1):
        if index in live:
            live |= {ref.index for ref in graph.nodes[index].refs() if isinstance(ref, NodeRef)}
    place: dict[int, int] = {}
    nodes: list[Node] = []

    def move(ref: Ref) -> Ref:
        return NodeRef(place[ref.index]) if isinstance(ref, NodeRef) else ref

    for index, node in enumerate(graph.nodes):
        if index in live:
            place[index] = len(nodes)
            nodes.append(map_node(node, move))
    smaller = replace(graph, nodes=tuple(nodes), output=map_refs(graph.output, move))
    used = set(smaller.tensors)
    names = graph.buffers if buffers is None else buffers
    return replace(smaller, buffers=tuple(name for name in names if name in used))
