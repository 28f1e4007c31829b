"""Shape and dtype of each result of a graph, and which of its sizes are open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lilliput.core.errors import ModelError
from lilliput.graph.bounds import first_line
from lilliput.graph.ir import Graph, NodeRef, map_node, map_refs
from lilliput.graph.program import Program


@dataclass(frozen=True)
class Info:
    """What is known of a tensor.

    Attributes:
        shape: sizes; None where open.
        dtype: of its elements.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype


def infos_of(graph: Graph, tensors: Mapping[str, Tensor]) -> list[Any]:
    """Returns for each node an `Info`, a list of them, or `int` or `float` for a number.

    The graph is run twice on the meta device with different open sizes: a size that changes is open. Small ones come
    first, then those that networks which halve their input often can take.

    Args:
        graph: any graph.
        tensors: what it uses, by name.

    Raises:
        ModelError: the graph runs at no sizes that were tried.
    """
    found: list[Any] = []
    before: dict[str, int] = {}
    last: Exception | None = None
    for sizes in _tried(graph):
        if any(before.get(name) == size and not _fixed(graph, name) for name, size in sizes.items()):
            continue
        try:
            found.append(_results(graph, tensors, sizes))
        except Exception as error:
            last = error
            continue
        before = sizes
        if len(found) == 2 or not sizes:
            return [_joined(a, b) for a, b in zip(found[0], found[-1])]
    raise ModelError(f"the graph runs at none of the sizes that were tried: {first_line(last or ValueError())}")


def infos_at(graph: Graph, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> list[Any]:
    """Returns for each node what it gives at certain sizes: an `Info`, a list of them, or a number.

    For engines whose files hold fixed sizes.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        sizes: every open size, by its name in `graph.symbols`.

    Raises:
        ModelError: the graph doesn't run at these.
    """
    try:
        return _results(graph, tensors, sizes, _exactly)
    except Exception as error:  # whatever an operator says of the sizes
        raise ModelError(f"the graph doesn't run at the sizes {dict(sizes)}: {first_line(error)}") from None


def _tried(graph: Graph) -> Iterator[dict[str, int]]:
    """Sizes within their bounds: each its own, so that no two agree by chance; then all the same."""
    for apart in (1, 0):
        for base in (2, 3, 8, 16, 32, 64, 96, 128, 224):
            wanted = {name: base + apart * place for place, name in enumerate(graph.symbols)}
            yield {name: _within(size, *graph.symbols[name]) for name, size in wanted.items()}


def _within(size: int, low: int, high: int | None) -> int:
    return min(max(size, low), high or max(size, low))


def _fixed(graph: Graph, name: str) -> bool:
    low, high = graph.symbols[name]
    return low == high


def closed(graph: Graph, tensors: Mapping[str, Tensor], batch: int = 1, length: int = 128) -> Graph:
    """Fixes the open sizes of a graph; numbers that followed them become literals.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        batch: an open first axis, or the nearest that it may be.
        length: the other open sizes.

    Raises:
        ModelError: it doesn't run at this size.

    >>> from lilliput.graph.trace import trace
    >>> model = torch.nn.Linear(3, 4)
    >>> graph, _ = trace(model, torch.rand(2, 3))
    >>> graph.inputs[0].shape, closed(graph, model.state_dict()).inputs[0].shape
    (('n', 3), (1, 3))
    """
    first = {spec.shape[0] for spec in graph.inputs if spec.shape}
    wanted = {name: batch if name in first else length for name in graph.symbols}
    sizes = {name: _within(size, *graph.symbols[name]) for name, size in wanted.items()}
    numbers = {i: info for i, info in enumerate(infos_at(graph, tensors, sizes)) if isinstance(info, int | float)}

    def literal(ref: Any) -> Any:
        return numbers.get(ref.index, ref) if isinstance(ref, NodeRef) else ref

    inputs = tuple(
        replace(i, shape=tuple(sizes[d] if isinstance(d, str) else d for d in i.shape)) for i in graph.inputs
    )
    nodes = tuple(map_node(node, literal) for node in graph.nodes)
    return replace(graph, inputs=inputs, symbols={}, nodes=nodes, output=map_refs(graph.output, literal))


def _results(
    graph: Graph, tensors: Mapping[str, Tensor], sizes: Mapping[str, int], seen: Callable[[Any], Any] | None = None
) -> list[Any]:
    meta = torch.device("meta")
    program = Program(graph)
    held = [torch.empty_like(tensors[name], device=meta) for name in program.tensors]
    given = [
        torch.empty([sizes[d] if isinstance(d, str) else d for d in spec.shape], dtype=spec.dtype, device=meta)
        for spec in graph.inputs
    ]
    dtype = next((tensor.dtype for tensor in held if tensor.is_floating_point()), None)
    values = program.values(given, held)
    found = []
    with torch.no_grad():
        for step in program.steps(dtype, meta):
            values[step.place] = step.run(values)
            found.append((seen or _seen)(values[step.place]))
            for place in step.free:
                values[place] = None
    return found


def _seen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Info(tuple(value.shape), value.dtype)
    return [_seen(item) for item in value] if isinstance(value, list | tuple) else type(value)


def _exactly(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_exactly(item) for item in value]
    return _seen(value) if isinstance(value, Tensor) else value


def _joined(one: Any, other: Any) -> Any:
    if isinstance(one, list):
        return [_joined(a, b) for a, b in zip(one, other)]
    if not isinstance(one, Info):
        return one
    return Info(tuple(a if a == b else None for a, b in zip(one.shape, other.shape)), one.dtype)
