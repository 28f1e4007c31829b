r"""BatchNorm folded into the layer before it.

In eval mode BatchNorm multiplies each channel by a constant and adds another, which the layer's weight and bias can do:

    gamma (W x + b - mu) / sqrt(var + eps) + beta = (s W) x + (beta + s (b - mu)),   s = gamma / sqrt(var + eps)

(Jacob et al. 2018, arXiv 1712.05877, section 3.2). The BatchNorm stays in the model as an identity whose bias carries
the shift, so that the user's own class holds the folded weights; `absorb` then drops it from the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.graph.ir import Graph, Node, NodeRef, Ref, TensorRef, map_node, map_refs
from lilliput.graph.layers import Layer, Norm, layer_of, norm_of
from lilliput.graph.run import bind_example
from lilliput.graph.shapes import Shape, shapes_of, users_of
from lilliput.graph.simplify import drop_dead
from lilliput.graph.trace import trace


def fold(model: nn.Module, example: Any, traced: tuple[Graph, dict[str, Tensor]] | None = None) -> list[str]:
    """Folds every BatchNorm that follows a linear layer or a convolution, in place.

    Args:
        model: a module without parametrizations; give a copy to keep the original.
        example: as for `trace`.
        traced: what `trace` gave for this model, which holds for the folded one too; found here if not given.

    Returns:
        A line for each BatchNorm: what it was folded into, or why it was kept.

    Raises:
        ModelError: the model can't be traced.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
        >>> for line in fold(model, torch.rand(1, 3, 8, 8)): print(line)
        1: folded into 0
        3: kept, because what it normalises is no layer's output (aten.relu.default)
    """
    graph, constants = traced or trace(model, example)
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state |= dict(model.named_buffers(remove_duplicate=False))
    shapes = shapes_of(graph, state | constants, bind_example(graph, example)) or [None] * len(graph.nodes)
    lines = []
    for node in graph.nodes:
        norm = norm_of(node)
        if norm is None:
            if node.operator == "aten.batch_norm.default":
                lines.append(f"{_label(node)}: kept, because it has no running statistics")
            continue
        reason = _obstacle(graph, norm, state, shapes)
        if reason is None:
            layer = layer_of(graph.nodes[norm.source or 0])
            assert layer is not None
            _fold_one(layer, norm, state)
            reason = f"folded into {layer.name}"
        else:
            reason = f"kept, because {reason}"
        lines.append(f"{norm.name}: {reason}")
    return lines


def _label(node: Node) -> str:
    names = [ref.name for ref in node.refs() if isinstance(ref, TensorRef)]
    return names[0].rpartition(".")[0] if names else "a BatchNorm"


def _obstacle(graph: Graph, norm: Norm, state: Mapping[str, Tensor], shapes: list[Shape | None]) -> str | None:
    """Says why a BatchNorm can't be folded; None when it can."""
    if norm.source is None:
        return "it normalises an input of the network"
    layer = layer_of(graph.nodes[norm.source])
    if layer is None:
        return f"what it normalises is no layer's output ({graph.nodes[norm.source].operator})"
    of_nodes, of_tensors = users_of(graph)
    names = (*norm.tensors, layer.weight, *([layer.bias] if layer.bias else []))
    tied = set(graph.aliases) | set(graph.aliases.values())
    shared = [name for name in names if len(of_tensors[name]) > 1 or name in tied]
    shape = shapes[norm.source]
    obstacles = [
        (len(of_nodes[norm.source]) > 1, f"{layer.name}'s output is used elsewhere too"),
        (bool(shared), f"{shared[0] if shared else ''} is used elsewhere too"),
        (layer.kind == "linear" and (shape is None or len(shape) != 2), f"{layer.name}'s outputs are not its channels"),
        (bool((state[norm.var].double() + norm.eps <= 0).any()), "a variance is not positive"),
    ]
    return next((reason for found, reason in obstacles if found), None)


def _fold_one(layer: Layer, norm: Norm, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        mean, var = state[norm.mean], state[norm.var]
        weight = state[layer.weight]
        scale = (var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * state[norm.weight].double()
        shift = -mean.double() * scale
        if norm.bias is not None:
            shift = shift + state[norm.bias].double()
        if layer.bias is not None:
            shift = shift + state[layer.bias].double() * scale
            state[layer.bias].zero_()
        weight.copy_(scale_outputs(weight.double(), scale, layer))
        var.fill_(1.0 - norm.eps)
        if norm.weight is not None:
            state[norm.weight].fill_(1.0)
        # Without a bias of its own, the running mean carries the shift.
        if norm.bias is not None:
            state[norm.bias].copy_(shift)
            mean.zero_()
        else:
            mean.copy_(-shift)


def scale_outputs(weight: Tensor, scale: Tensor, layer: Layer) -> Tensor:
    """Multiplies each output channel of a weight.

    Args:
        weight: of the layer.
        scale: one factor an output channel.
        layer: says where the channels are; transposed convolutions hold them group by group in axis 1.

    Returns:
        The scaled weight.
    """
    if layer.kind != "transposed":
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
    factors = scale.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
    return (grouped * factors).reshape(weight.shape)


def absorb(graph: Graph, tensors: Mapping[str, Tensor]) -> Graph:
    """Drops each BatchNorm that `fold` has made an identity; its bias becomes the layer's.

    The tensors that the graph no longer uses still belong to the user's own class, and so to the file: as constants
    they take a few bytes there.

    Args:
        graph: traced from a folded model.
        tensors: what it uses, by name.

    Returns:
        The smaller graph, whose outputs differ by no more than the rounding of the sums.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> lines = fold(model, torch.rand(1, 3, 8, 8))
        >>> graph, constants = trace(model, torch.rand(1, 3, 8, 8))
        >>> [node.operator for node in absorb(graph, model.state_dict() | constants).nodes]
        ['aten.conv2d.default', 'aten.relu.default']
    """
    of_nodes, _ = users_of(graph)
    found = [
        (index, norm, layer)
        for index, node in enumerate(graph.nodes)
        if (norm := norm_of(node)) is not None
        and norm.source is not None
        and len(of_nodes[norm.source]) == 1
        and (layer := layer_of(graph.nodes[norm.source])) is not None
        and _is_identity(norm, tensors)
        and not (layer.bias is not None and bool(tensors[layer.bias].any()))
    ]
    # Only a linear layer's outputs may lie along another axis than that which is normalised.
    shapes = shapes_of(graph, tensors) if any(layer.kind == "linear" for _, _, layer in found) else None
    nodes = list(graph.nodes)
    moved: dict[int, int] = {}
    for index, norm, layer in found:
        source = norm.source or 0
        shape = shapes[source] if shapes is not None else None
        if norm.bias is None or (layer.kind == "linear" and (shape is None or len(shape) != 2)):
            continue
        before = nodes[source]
        rest = {name: value for name, value in before.kwargs.items() if name != "bias"}
        nodes[source] = Node(before.operator, (*before.args[:2], TensorRef(norm.bias), *before.args[3:]), rest)
        moved[index] = source

    def move(ref: Ref) -> Ref:
        return NodeRef(moved[ref.index]) if isinstance(ref, NodeRef) and ref.index in moved else ref

    smaller = replace(graph, nodes=tuple(map_node(node, move) for node in nodes), output=map_refs(graph.output, move))
    return drop_dead(smaller)


def _is_identity(norm: Norm, tensors: Mapping[str, Tensor]) -> bool:
    spread = (tensors[norm.var].double() + norm.eps).sqrt()
    ones = norm.weight is None or bool((tensors[norm.weight] == 1).all())
    # The variance is the nearest to 1 - eps that its dtype holds.
    near = max(1e-6, torch.finfo(tensors[norm.var].dtype).eps)
    return ones and not bool(tensors[norm.mean].any()) and bool(((spread - 1).abs() <= near).all())
