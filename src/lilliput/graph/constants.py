"""What removed channels gave, moved into the biases behind them (the constants of Han et al. 2015, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput.graph.groups import Analysis
from lilliput.graph.ir import InputRef, NodeRef
from lilliput.graph.layers import Layer, layer_of, norm_of
from lilliput.graph.program import Program
from lilliput.graph.run import bind_example
from lilliput.graph.shapes import users_of

Removed = Mapping[tuple[str, int], NDArray[np.int64]]


def constants_of(analysis: Analysis, removed: Removed, example: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Finds what channels give whose incoming weights are zero, and what biases take it up.

    A layer's bias takes up the sum of its weights times the constants, exact where no zeros are padded; a layer
    without a bias leaves it to the running mean of the BatchNorm behind it, with the opposite sign.

    Args:
        analysis: of a model.
        removed: indices by parameter and axis.
        example: as for `trace`.

    Returns:
        Weights with the incoming ones of removed channels set to zero, and their outgoing ones where the constant
        can't be taken up: what the result is to be equal to. And the new biases and means, at full size.
    """
    graph, tensors = analysis.graph, analysis.tensors
    silenced: dict[str, Tensor] = {}
    layers = [(index, layer) for index, node in enumerate(graph.nodes) if (layer := layer_of(node)) is not None]
    for _, layer in layers:
        gone = removed.get((layer.weight, 1 if layer.kind == "transposed" else 0))
        if gone is not None and layer.weight not in silenced:
            weight = tensors[layer.weight].detach().clone()
            weight.index_fill_(1 if layer.kind == "transposed" else 0, torch.from_numpy(gone), 0.0)
            silenced[layer.weight] = weight
    consumers = {index: layer for index, layer in layers if (layer.weight, 1) in removed and layer.groups == 1}
    seen = _inputs_of(analysis, consumers, silenced, example)
    values: dict[str, Tensor] = {}
    for index, layer in consumers.items():
        if layer.kind == "transposed":
            continue
        places = torch.from_numpy(removed[layer.weight, 1])
        weight = silenced.get(layer.weight, tensors[layer.weight].detach().clone())
        constant, exact = _constant(seen[index], places, weight.dim() - 2, layer.padded)
        target = _target(analysis, index, layer)
        if target is None:
            exact &= constant == 0
        silenced[layer.weight] = weight.index_fill(1, places[exact.logical_not()], 0.0)
        moved = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        added = (moved[:, places[exact]].double() @ constant[exact].double()).to(weight)
        if target is not None and bool(added.any()):
            name, sign = target
            values[name] = values.get(name, tensors[name].detach()) + sign * added
    return silenced, values


def _inputs_of(
    analysis: Analysis, consumers: Mapping[int, Layer], silenced: Mapping[str, Tensor], example: Any
) -> dict[int, Tensor]:
    """Runs the graph with silenced channels; what goes into the consumers."""
    program = Program(analysis.graph)
    held = [silenced.get(name, analysis.tensors[name]) for name in program.tensors]
    inputs = bind_example(analysis.graph, example)
    values = program.values(inputs, held)
    dtype = next((tensor.dtype for tensor in held if tensor.is_floating_point()), None)
    seen: dict[int, Tensor] = {}
    for index, step in enumerate(program.steps(dtype, (held or inputs)[0].device)):
        if index in consumers:
            source = consumers[index].source
            assert isinstance(source, NodeRef | InputRef)
            seen[index] = values[program.place(source)]
        values[step.place] = step.run(values)
        for place in step.free:
            values[place] = None
    return seen


def _constant(x: Tensor, gone: Tensor, spatial: int, padded: bool) -> tuple[Tensor, Tensor]:
    channels = x.movedim(x.dim() - spatial - 1 if spatial > 0 else -1, 0)[gone].flatten(1)
    low, high = channels.amin(1), channels.amax(1)
    exact = high - low <= 1e-5 * (1 + high.abs())
    if padded:
        exact &= high.abs().maximum(low.abs()) <= 1e-7
    return torch.where(exact, channels.mean(1), torch.zeros(())), exact


def _target(analysis: Analysis, index: int, layer: Layer) -> tuple[str, float] | None:
    """The bias, or the running mean, that takes up what a layer's removed inputs gave; and the sign."""
    of_nodes, of_tensors = users_of(analysis.graph)
    tied = set(analysis.graph.aliases) | set(analysis.graph.aliases.values())

    def alone(name: str) -> bool:
        return len(of_tensors[name]) == 1 and name not in tied

    if not alone(layer.weight):
        return None
    if layer.bias is not None:
        return (layer.bias, 1.0) if alone(layer.bias) else None
    users = of_nodes[index]
    norm = norm_of(analysis.graph.nodes[users[0]]) if len(users) == 1 and users[0] < len(analysis.graph.nodes) else None
    return (norm.mean, -1.0) if norm is not None and alone(norm.mean) else None
