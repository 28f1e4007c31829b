"""A graph cut into pieces: some nodes alone, and the stretches between them, each a graph of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lilliput.export.sizes import Info
from lilliput.graph.ir import Branch, Graph, InputRef, InputSpec, NodeRef, Ref, TensorRef, map_node, refs_of


@dataclass(frozen=True)
class Piece:
    """Some nodes of a graph.

    Attributes:
        nodes: their places in the graph, ascending.
        members: these and what came along, in the order of the piece's own nodes.
        graph: they alone; its output is a tuple.
        infos: of the results of its nodes.
        takes: what goes in, references of the whole graph.
        gives: what comes out and is used elsewhere.
        alone: a node by itself.
    """

    nodes: tuple[int, ...]
    members: tuple[int, ...]
    graph: Graph
    infos: tuple[Any, ...]
    takes: tuple[Ref, ...]
    gives: tuple[NodeRef, ...]
    alone: bool


def pieces_of(graph: Graph, infos: Sequence[Any], alone: Collection[int], apart: Collection[int] = ()) -> list[Piece]:
    """Cuts a graph.

    Numbers of open sizes and lists of tensors don't go from piece to piece: the nodes that make them are in each piece
    that needs them.

    Args:
        graph: any graph.
        infos: of its nodes, see `export.sizes.infos_of`.
        alone: nodes that are to be pieces by themselves.
        apart: nodes that are in no piece with others than such.

    Returns:
        Pieces in an order in which they can be run; nodes that nothing needs are in none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lilliput.export.sizes import infos_of
        >>> from lilliput.graph.trace import trace
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Tanh())
        >>> graph, _ = trace(model, torch.rand(1, 4))
        >>> infos = infos_of(graph, model.state_dict())
        >>> [(piece.nodes, piece.alone) for piece in pieces_of(graph, infos, {2})]
        [((0, 1), False), ((2,), True), ((3,), False)]
    """
    needed = _needed(graph)
    runs: list[tuple[list[int], bool]] = []
    kind: bool | None = None  # of the last run: whether its nodes are apart; None for numbers only
    for index in range(len(graph.nodes)):
        if index not in needed:
            continue
        own = index in apart if isinstance(infos[index], Info) else None
        if index in alone:
            runs.append(([index], True))
        elif runs and not runs[-1][1] and (own is None or kind is None or own == kind):
            runs[-1][0].append(index)
            kind = kind if own is None else own
        else:
            runs.append(([index], False))
            kind = own
    cutter = _Cutter(graph, infos, [set(nodes) for nodes, _ in runs])
    made = [cutter.piece(place, nodes, single) for place, (nodes, single) in enumerate(runs)]
    # A run of numbers only is in the pieces that need it.
    return [piece for piece in made if piece.gives]


def piece_of(graph: Graph, infos: Sequence[Any], nodes: Collection[int]) -> Piece:
    """Takes some nodes out of a graph as one piece.

    Args:
        graph: any graph.
        infos: of its nodes.
        nodes: which; what only they need and is no tensor comes along.
    """
    rest = _needed(graph) - set(nodes)
    return _Cutter(graph, infos, [set(nodes), rest]).piece(0, sorted(nodes), False)


def _needed(graph: Graph) -> set[int]:
    """The nodes that the output needs."""
    waiting = [ref.index for ref in refs_of(graph.output) if isinstance(ref, NodeRef)]
    found: set[int] = set()
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting += [ref.index for ref in graph.nodes[index].refs() if isinstance(ref, NodeRef)]
    return found


class _Cutter:
    def __init__(self, graph: Graph, infos: Sequence[Any], runs: Sequence[set[int]]) -> None:
        self.graph, self.infos = graph, infos
        self.home = {index: place for place, nodes in enumerate(runs) for index in nodes}
        self.members = [self._closed(nodes) for nodes in runs]
        self.results = {ref for ref in refs_of(graph.output) if isinstance(ref, NodeRef)}
        self.asked: dict[int, set[int]] = {}
        for place, nodes in enumerate(self.members):
            for index in nodes:
                for ref in graph.nodes[index].refs():
                    if isinstance(ref, NodeRef) and ref.index not in nodes:
                        self.asked.setdefault(ref.index, set()).add(place)

    def _closed(self, nodes: set[int]) -> set[int]:
        """Adds the nodes that make the numbers and lists that these need."""
        found, waiting = set(nodes), list(nodes)
        while waiting:
            for ref in self.graph.nodes[waiting.pop()].refs():
                if not isinstance(ref, NodeRef) or ref.index in found or isinstance(self.infos[ref.index], Info):
                    continue
                found.add(ref.index)
                waiting.append(ref.index)
        return found

    def piece(self, place: int, nodes: Sequence[int], single: bool) -> Piece:
        members = sorted(self.members[place])
        gives = tuple(
            NodeRef(index)
            for index in nodes
            if NodeRef(index) in self.results or (isinstance(self.infos[index], Info) and index in self.asked)
        )
        inside = {index: number for number, index in enumerate(members)}
        takes: dict[Ref, InputRef] = {}

        def moved(ref: Ref) -> Ref:
            if isinstance(ref, TensorRef):
                return ref
            if isinstance(ref, NodeRef) and ref.index in inside:
                return NodeRef(inside[ref.index])
            return takes.setdefault(ref, InputRef(len(takes)))

        kept = tuple(map_node(self.graph.nodes[index], moved) for index in members)
        specs, symbols = self._inputs(list(takes))
        output = Branch("tuple", (), tuple(NodeRef(inside[ref.index]) for ref in gives))
        part = replace(
            self.graph, inputs=specs, symbols=symbols, nodes=kept, output=output, call=(), aliases={}, buffers=()
        )
        infos = tuple(self.infos[index] for index in members)
        return Piece(tuple(nodes), tuple(members), part, infos, tuple(takes), gives, single)

    def _inputs(self, refs: Sequence[Ref]) -> tuple[tuple[InputSpec, ...], dict[str, tuple[int, int | None]]]:
        specs: list[InputSpec] = []
        symbols: dict[str, tuple[int, int | None]] = {}
        for ref in refs:
            if isinstance(ref, InputRef):
                spec = self.graph.inputs[ref.index]
                specs.append(replace(spec, name=f"input_{ref.index}"))
                symbols |= {size: self.graph.symbols[size] for size in spec.shape if isinstance(size, str)}
                continue
            assert isinstance(ref, NodeRef)
            info = self.infos[ref.index]
            shape = [f"v{ref.index}_{axis}" if size is None else size for axis, size in enumerate(info.shape)]
            symbols |= {size: (0, None) for size in shape if isinstance(size, str)}
            specs.append(InputSpec(f"value_{ref.index}", info.dtype, tuple(shape)))
        return tuple(specs), symbols
