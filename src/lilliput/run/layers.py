"""What each layer of an artifact takes by itself, packed and with floats, in the engine that runs the network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from lilliput.core.errors import LilliputError
from lilliput.export.quantized import levels_before, levels_in
from lilliput.file.artifact import Artifact
from lilliput.graph.ir import Graph, InputRef, NodeRef, TensorRef
from lilliput.graph.layers import arguments_of, layer_of
from lilliput.graph.program import Program
from lilliput.run.choice import ONNX, OPENVINO, TORCH, Chooser, installed
from lilliput.run.clock import race
from lilliput.run.pieces import Piece, piece_of
from lilliput.run.programs import WORDS, ProgramCall


@dataclass(frozen=True)
class Seconds:
    """Of one layer.

    Attributes:
        packed: as the artifact holds it, what puts its input on levels included.
        floats: with floats for weights and inputs.
    """

    packed: float
    floats: float


def layer_seconds(artifact: Artifact, way: str) -> dict[str, Seconds]:
    """Measures each linear layer and convolution alone, on what goes into it.

    Args:
        artifact: with a graph.
        way: in which `native` runs the network: the engine of that way is asked.

    Returns:
        By the name of the weight; the sum over layers that share one.
    """
    chooser = Chooser(artifact)
    graph, levels = chooser.found.graph, levels_in(chooser.found.graph)
    engine = way if way in {OPENVINO, TORCH} else ONNX if installed() else TORCH
    values = _values(chooser)
    found: dict[str, Seconds] = {}
    for index, node in enumerate(graph.nodes):
        layer = layer_of(node)
        if layer is None:
            continue
        before = levels_before(graph, arguments_of(node)["input"], levels)
        nodes = {index} | (_chain(graph, before, levels[before].source) if before is not None else set())
        calls: dict[str, Callable[[], Any]] = {}
        for name, members, packed in (("packed", nodes, artifact.weights), ("floats", {index}, {})):
            piece = piece_of(graph, chooser.infos, members)
            given = [values[ref] for ref in piece.takes]
            calls[name] = _of(_run(chooser, piece, given, (way, engine, packed)), given)
        seconds = race(calls, seconds=0.03)
        earlier = found.get(layer.weight, Seconds(0.0, 0.0))
        found[layer.weight] = Seconds(earlier.packed + seconds["packed"], earlier.floats + seconds["floats"])
    return found


def _run(chooser: Chooser, piece: Piece, given: list[Any], how: tuple[str, str, Any]) -> Callable[[list[Any]], Any]:
    """What runs a layer: a program where the network runs as one, as far as it may be; else the engine."""
    way, engine, packed = how
    if way == WORDS:
        with suppress(LilliputError):
            return ProgramCall(piece, given, chooser.tensors, packed, True)
    run: Callable[[list[Any]], Any] = chooser.stretch(piece, engine, packed)[0]
    return run


def _of(run: Any, given: list[Any]) -> Callable[[], Any]:
    return lambda: run(given)


def _chain(graph: Graph, last: int, source: Any) -> set[int]:
    """The nodes that put something on levels."""
    found, waiting = set(), [last]
    while waiting:
        index = waiting.pop()
        if index in found or NodeRef(index) == source:
            continue
        found.add(index)
        waiting += [ref.index for ref in graph.nodes[index].refs() if isinstance(ref, NodeRef)]
    return found


def _values(chooser: Chooser) -> dict[Any, Any]:
    """What every node gives on the example."""
    graph = chooser.found.graph
    program = Program(graph)
    values = program.values(list(chooser.example), [chooser.tensors[name] for name in program.tensors])
    with torch.no_grad():
        for step in program.steps(graph.dtype, torch.device("cpu")):
            values[step.place] = step.run(values)
    found: dict[Any, Any] = {InputRef(place): tensor for place, tensor in enumerate(chooser.example)}
    found |= {NodeRef(index): values[program.place(NodeRef(index))] for index in range(len(graph.nodes))}
    return found | {TensorRef(name): chooser.tensors[name] for name in program.tensors}
