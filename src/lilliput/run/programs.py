"""Stretches of a network as programs, one compiled call each, and what is between them in another engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core import kernel
from lilliput.core.errors import LilliputError
from lilliput.core.packed import Packed
from lilliput.export.sizes import Info
from lilliput.graph.ir import Graph, NodeRef
from lilliput.graph.layers import layer_of
from lilliput.run.line import Call, Line, Part, in_torch
from lilliput.run.lower import RULES, Lowered, Lowering, Stuck
from lilliput.run.pieces import Piece, pieces_of
from lilliput.run.steps import Unfit

CLOSE, ROUGH = 1e-4, 0.5
"""How far a program's results may be from torch's, relative: without signs; with them, where each layer was compared by
itself, but a number near 0 that gets the other sign changes what lies behind, and in deep networks much of it."""
SIZES = 8
"""Programs for sizes other than those of the example; at more sizes torch runs the stretch."""
TRIES = 24
"""Nodes that are found to be beyond programs until no more are looked for."""
WORDS = "one call"
"""What runs a stretch as a program, for listings."""


class ProgramCall:
    """A stretch as programs, one for each sizes of what goes in.

    Args:
        piece: of the graph.
        given: an example of what goes in.
        tensors: of the graph.
        weights: as the file holds them.
        timed: measure which way of running a layer is fastest.

    Raises:
        Unfit: a program can't do it, `Stuck` where that is because of a node of the piece's graph.
    """

    def __init__(
        self,
        piece: Piece,
        given: Sequence[Tensor],
        tensors: Mapping[str, Tensor],
        weights: Mapping[str, Packed | Tensor],
        timed: bool,
    ) -> None:
        self.piece, self.tensors, self.weights = piece, tensors, weights
        self.plain = in_torch(piece, tensors)
        self.kinds: dict[str, str] = {}
        first = self._lowered(given, timed)
        self.signs = first.signs
        wanted = self.plain(list(given))
        limit = ROUGH if first.signs else CLOSE
        for found, right in zip(first.program(given), wanted, strict=True):
            size = float(torch.linalg.vector_norm(right.double()))
            apart = float(torch.linalg.vector_norm(found.double() - right.double()))
            if found.shape != right.shape or not apart <= limit * size + 1e-30:
                raise Unfit(f"a program's result is {apart / max(size, 1e-30):.2g} away from the dense one's")
        self.calls: dict[Any, Call] = {_key(given): first.program}

    def __call__(self, given: list[Any]) -> list[Any]:
        """Runs the stretch."""
        key = _key(given)
        call = self.calls.get(key)
        if call is None:
            call = self.plain
            if len(self.calls) <= SIZES:
                with suppress(LilliputError):
                    call = self._lowered(given, False).program
                self.calls[key] = call
        return call(given)

    def _lowered(self, given: Sequence[Tensor], timed: bool) -> Lowered:
        return Lowering(self.piece.graph, given, self.tensors, self.weights, timed, self.kinds).lower()


def _key(given: Sequence[Tensor]) -> Any:
    return tuple([x.shape for x in given])


@dataclass(frozen=True)
class Programs:
    """A network with programs in it.

    Attributes:
        line: runs it.
        kinds: what layers run on in programs, by weight.
        whole: nothing is left to another engine.
    """

    line: Line
    kinds: Mapping[str, str]
    whole: bool


def programs(
    graph: Graph,
    infos: Sequence[Any],
    inputs: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, Packed | Tensor],
    timed: bool,
    between: Callable[[Piece, list[Any]], Part],
) -> Programs | None:
    """Cuts a graph into stretches that programs can run, as long as may be, and the others.

    Args:
        graph: any graph.
        infos: of its nodes.
        inputs: an example.
        tensors: by name, unpacked.
        weights: as the file holds them.
        timed: measure which way of running a layer is fastest.
        between: what runs other stretches, from the piece and what goes in on the example.

    Returns:
        None where no layer runs in a program.
    """
    if kernel.variant() == "reference" or any(x.dtype != torch.float32 for x in inputs):
        return None
    apart = {i for i, node in enumerate(graph.nodes) if node.operator in RULES and _floats(infos[i])}
    made: dict[tuple[int, ...], ProgramCall] = {}
    pieces: list[Piece] = []
    for _ in range(TRIES):
        pieces = pieces_of(graph, infos, (), apart)
        refused = _made(graph, pieces, apart, made, _Example(inputs, tensors), (tensors, weights, timed))
        if refused is None:
            break
        apart -= refused
    else:
        return None
    if not any(piece.nodes in made for piece in pieces):
        return None
    example, parts = _Example(inputs, tensors), []
    for piece in pieces:
        call, given = made.get(piece.nodes), example.given(piece)
        parts.append(between(piece, given) if call is None else Part(piece, call, WORDS))
        example.run(piece, given)
    kinds = {name: kind for piece in pieces if piece.nodes in made for name, kind in made[piece.nodes].kinds.items()}
    return Programs(Line(graph, parts, tensors), kinds, all(piece.nodes in made for piece in pieces))


class _Example:
    """Values on the example, as far as they were asked for."""

    def __init__(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> None:
        self.inputs, self.tensors, self.values = inputs, tensors, dict[Any, Any]()

    def given(self, piece: Piece) -> list[Any]:
        return [self.values[r] if isinstance(r, NodeRef) else self.inputs[r.index] for r in piece.takes]  # type: ignore[union-attr]

    def run(self, piece: Piece, given: list[Any]) -> None:
        self.values.update(zip(piece.gives, in_torch(piece, self.tensors)(given)))


def _made(
    graph: Graph,
    pieces: Sequence[Piece],
    apart: set[int],
    made: dict[tuple[int, ...], ProgramCall],
    example: _Example,
    rest: tuple[Mapping[str, Tensor], Mapping[str, Packed | Tensor], bool],
) -> set[int] | None:
    """Makes the programs of pieces; the nodes that can't be in one, or None where all could."""
    for piece in pieces:
        given = example.given(piece)
        layers = any(layer_of(graph.nodes[index]) is not None for index in piece.nodes)
        if _is_apart(piece, apart) and not layers:
            return set(piece.nodes) & apart
        if _is_apart(piece, apart) and piece.nodes not in made:
            try:
                made[piece.nodes] = ProgramCall(piece, given, *rest)
            except Stuck as stuck:
                return {piece.members[stuck.index]}
            except LilliputError:
                return set(piece.nodes) & apart
        example.run(piece, given)
    return None


def _is_apart(piece: Piece, apart: set[int]) -> bool:
    return any(index in apart for index in piece.nodes)


def _floats(info: Any) -> bool:
    return isinstance(info, Info)
