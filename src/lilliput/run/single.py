"""Networks that take one example at a time, behind the calls of the original model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lilliput.graph.ir import Graph
from lilliput.graph.run import bind_inputs, check_inputs
from lilliput.graph.structure import join


def one_by_one(
    graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any], call: Callable[[list[Tensor]], Sequence[Tensor]]
) -> Any:
    """Runs a batch one example after another; returns what the original model would.

    Args:
        graph: whose calls these are.
        args: of the call; the first axis of an input of open sizes counts examples.
        kwargs: the same.
        call: from the inputs of one example, in the graph's order, to its results, which are its own memory.

    Raises:
        ModelError: inputs that the graph doesn't take.
    """
    inputs = bind_inputs(graph, args, kwargs)
    check_inputs(graph.inputs, graph.symbols, inputs)
    batched = [isinstance(spec.shape[0], str) for spec in graph.inputs]
    rows = []
    for place in range(max([len(x) for x, many in zip(inputs, batched) if many], default=1)):
        rows.append(call([x[place : place + 1] if many else x for x, many in zip(inputs, batched)]))
    results = iter(torch.cat(column) if len(rows) > 1 else column[0] for column in zip(*rows))
    return join(graph.output, lambda _: next(results))
