"""Shapes of a graph's results, and who uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lilliput.graph.ir import Graph, NodeRef, TensorRef, refs_of
from lilliput.graph.program import Program

Shape = tuple[int, ...]


def shapes_of(
    graph: Graph, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor] | None = None
) -> list[Shape | None] | None:
    """Runs a graph once to see the shapes of its results.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        inputs: what goes in; without, open sizes are taken to be 2, or as near to it as they may be.

    Returns:
        The shape of each node's result, None where that is no tensor; None altogether if it can't be run so.
    """
    program = Program(graph)
    held = [tensors[name] for name in program.tensors]
    given = list(inputs) if inputs is not None else _invented(graph)
    dtype = next((tensor.dtype for tensor in held if tensor.is_floating_point()), None)
    values = program.values(given, held)
    shapes: list[Shape | None] = []
    with torch.no_grad():
        for step in program.steps(dtype, (held or given)[0].device):
            try:
                result: Any = step.run(values)
            except Exception:
                return None
            values[step.place] = result
            for place in step.free:
                values[place] = None
            shapes.append(tuple(result.shape) if isinstance(result, Tensor) else None)
    return shapes


def _invented(graph: Graph) -> list[Tensor]:
    sizes = {name: min(max(low, 2), high or 2) for name, (low, high) in graph.symbols.items()}
    return [
        torch.zeros([sizes[d] if isinstance(d, str) else d for d in spec.shape], dtype=spec.dtype)
        for spec in graph.inputs
    ]


def users_of(graph: Graph) -> tuple[list[list[int]], dict[str, list[int]]]:
    """Lists who uses what; the output counts as node `len(graph.nodes)`.

    Args:
        graph: any graph.

    Returns:
        For each node and for each tensor's name the indices of its users, one entry a use.
    """
    of_nodes: list[list[int]] = [[] for _ in graph.nodes]
    of_tensors: dict[str, list[int]] = {}
    uses = [(index, ref) for index, node in enumerate(graph.nodes) for ref in node.refs()]
    uses += [(len(graph.nodes), ref) for ref in refs_of(graph.output)]
    for index, ref in uses:
        if isinstance(ref, NodeRef):
            of_nodes[ref.index].append(index)
        elif isinstance(ref, TensorRef):
            of_tensors.setdefault(ref.name, []).append(index)
    return of_nodes, of_tensors
