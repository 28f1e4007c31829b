"""Neurons with no input or no output, found and cut away (Han et al. 2015, arXiv 1506.02626, section 3.4).

A channel whose incoming weights are all zero gives a constant, which moves into the next layer's bias; a channel
whose outgoing weights are all zero changes nothing. Removing one may leave another without input or output, so that
the search goes on until nothing changes. Only chains are cut: a layer, then BatchNorm, elementwise functions, pooling
and flattening, then the next layer, each used by the next alone. Everything else is kept, and the reason said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.cut import Cut
from lilliput.core.layers import tensors_of
from lilliput.graph.cut import Cuts, cut_tensors
from lilliput.graph.ir import Graph, Node, NodeRef
from lilliput.graph.layers import Layer, arguments_of, layer_of, norm_of
from lilliput.graph.operators import operators
from lilliput.graph.run import bind_example
from lilliput.graph.shapes import Shape, shapes_of, users_of
from lilliput.graph.trace import trace

_ELEMENTWISE = frozenset(
    f"aten.{name}.default"
    for name in (
        *("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "mish", "elu", "selu", "celu"),
        *("leaky_relu", "softplus", "log_sigmoid", "sigmoid", "tanh", "clamp", "abs", "neg", "exp", "square", "sqrt"),
        *("hardshrink", "softshrink", "erf", "sign", "sin", "cos", "threshold"),
    )
) | {f"aten.{name}.{kind}" for name in ("add", "sub", "mul", "div") for kind in ("Tensor", "Scalar")}
_POOLS = frozenset(
    f"aten.{name}{dims}d.default"
    for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
    for dims in (1, 2, 3)
)


@dataclass
class _Chain:
    """A layer, the layer after it, and the nodes between them."""

    producer: Layer
    consumer: Layer
    between: list[Node]
    # Inputs of the consumer that one channel of the producer becomes.
    spread: int


def find_dead(model: nn.Module, example: Any, traced: tuple[Graph, dict[str, Tensor]] | None = None) -> Cuts:
    """Finds the channels that can be removed without changing an output.

    Args:
        model: in which pruned weights are zeros; it is not changed.
        example: as for `trace`.
        traced: what `trace` gave for this model; found here if not given.

    Returns:
        Cuts for `apply_cuts`, and a line for each layer that loses channels or keeps dead ones.

    Raises:
        ModelError: the model can't be traced.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with torch.no_grad(): model[0].weight[1] = 0.0
        >>> cuts = find_dead(model, torch.rand(1, 4))
        >>> cuts.lines, cuts.cuts[0]
        (('0: removed 1 of 3 channels',), Cut(parameter='0.weight', axis=0, kept=(0, 2), size=3))
    """
    graph, constants = traced or trace(model, example)
    state = tensors_of(model)
    shapes = shapes_of(graph, state | constants, bind_example(graph, example)) or [None] * len(graph.nodes)
    work = {name: tensor.detach().double() for name, tensor in state.items() if tensor.is_floating_point()}
    chains: list[_Chain] = []
    reasons: dict[str, str] = {}
    finder = _Finder(graph, shapes)
    for index, node in enumerate(graph.nodes):
        layer = layer_of(node)
        if layer is not None:
            found = finder.chain(index, layer)
            if isinstance(found, _Chain):
                chains.append(found)
            else:
                reasons.setdefault(layer.weight, found)
    gone = _fixed_point(chains, work)
    cuts = [cut for chain in chains for cut in _cuts_of(chain, gone[chain.producer.weight], work)]
    lines = _lines(chains, reasons, gone, work)
    return Cuts(tuple(cuts), _changed(state, work, cuts), tuple(lines))


class _Finder:
    """Follows a layer's output to the next layer."""

    def __init__(self, graph: Graph, shapes: list[Shape | None]) -> None:
        self.graph = graph
        self.shapes = shapes
        self.of_nodes, self.of_tensors = users_of(graph)
        self.tied = set(graph.aliases) | set(graph.aliases.values())

    def chain(self, index: int, layer: Layer) -> _Chain | str:
        """Returns the chain that begins at a layer, or why there is none."""
        if layer.kind == "transposed" or layer.groups != 1:
            return "its convolution is transposed or grouped"
        between: list[Node] = []
        shape = self.shapes[index]
        channel = len(shape) - 1 if shape and layer.kind == "linear" else 1
        spread = 1
        while True:
            users = self.of_nodes[index]
            if len(users) != 1:
                return "its output is used in several places" if users else "nothing uses its output"
            before, index = self.shapes[index], users[0]
            if index == len(self.graph.nodes):
                return "its channels are the network's outputs"
            node = self.graph.nodes[index]
            after = layer_of(node)
            if after is not None:
                return self._close(layer, after, between, (spread, channel, before))
            step = self._step(node, before, self.shapes[index], channel)
            if step is None:
                return f"{node.operator} stands between it and the next layer"
            spread, channel = spread * step[0], step[1]
            between.append(node)

    def _close(
        self, layer: Layer, after: Layer, between: list[Node], state: tuple[int, int, Shape | None]
    ) -> _Chain | str:
        spread, channel, shape = state
        if after.kind == "transposed" or after.groups != 1:
            return f"the next layer, {after.name}, is transposed or grouped"
        if shape is None or channel != (len(shape) - 1 if after.kind == "linear" else 1):
            return f"its channels are not those that the next layer, {after.name}, sums over"
        norms = [norm for norm in map(norm_of, between) if norm is not None]
        names = [layer.weight, layer.bias, after.weight, after.bias, *(name for norm in norms for name in norm.tensors)]
        for name in names:
            if name is not None and (name in self.tied or len(self.of_tensors[name]) > 1):
                return f"{name} is used elsewhere too"
        return _Chain(layer, after, between, spread)

    def _step(self, node: Node, before: Shape | None, after: Shape | None, channel: int) -> tuple[int, int] | None:
        """How a node spreads channels, and the dimension where they are afterwards; None: it can't be passed."""
        if before is None or after is None:
            return None
        inner = channel == 1 and len(before) > 2
        if node.operator in _ELEMENTWISE:
            passes = sum(1 for _ in node.refs()) == 1
        elif node.operator in _POOLS:
            passes = inner and len(after) == len(before)
        elif node.operator == "aten.mean.dim":
            passes = inner and min(dim % len(before) for dim in arguments_of(node)["dim"] or (0,)) > 1
        elif channel == 1 and len(after) == 2 and after[0] == before[0] and _flattens(node):
            return after[1] // before[1], 1
        else:
            passes = channel == 1 and norm_of(node) is not None
        return (1, channel) if passes else None


def _flattens(node: Node) -> bool:
    """Whether a node flattens all but the batch, at whatever size; a size written into the model would not follow."""
    bound = arguments_of(node)
    if node.operator == "aten.flatten.using_ints":
        return bool(bound["start_dim"] == 1)
    shape = bound.get("shape")
    return node.operator == "aten.reshape.default" and isinstance(shape, tuple) and shape[1:] == (-1,)


def _fixed_point(chains: Sequence[_Chain], work: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moves constants and drops channels until nothing changes; for each producer, which channels are gone."""
    gone = {
        chain.producer.weight: torch.zeros(work[chain.producer.weight].shape[0], dtype=torch.bool) for chain in chains
    }
    changed = True
    while changed:
        changed = False
        for chain in chains:
            _move_constants(chain, work)
            dead = ~_columns(chain, work).flatten(2).any(2).any(0)
            if bool(dead.all()):
                # A module needs a channel, even one that does nothing.
                dead[0] = False
            if bool((dead & ~gone[chain.producer.weight]).any()):
                gone[chain.producer.weight] |= dead
                work[chain.producer.weight][dead] = 0.0
                changed = True
    return gone


def _columns(chain: _Chain, work: dict[str, Tensor]) -> Tensor:
    """The consumer's weight as outputs x channels of the producer x rest; a view."""
    weight = work[chain.consumer.weight]
    channels = work[chain.producer.weight].shape[0]
    return weight.view(weight.shape[0], channels, -1)


def _move_constants(chain: _Chain, work: dict[str, Tensor]) -> None:
    """Moves what channels without input give into the next layer's bias, where that is exact."""
    weight = work[chain.producer.weight]
    columns = _columns(chain, work)
    without = ~weight.flatten(1).any(1) & columns.flatten(2).any(2).any(0)
    if not bool(without.any()):
        return
    constant, exact = _through(chain, work)
    added = columns.sum(2) * constant
    exact &= (constant == 0) | torch.tensor(not chain.consumer.padded)
    if chain.consumer.bias is None:
        exact &= ~added.any(0)
    moved = without & exact & torch.isfinite(constant)
    if chain.consumer.bias is not None:
        work[chain.consumer.bias] += added[:, moved].sum(1)
    columns[:, moved] = 0.0


def _through(chain: _Chain, work: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What a constant channel has become when it reaches the consumer, and whether it is constant still."""
    channels = work[chain.producer.weight].shape[0]
    value = work[chain.producer.bias].clone() if chain.producer.bias else torch.zeros(channels).double()
    exact = torch.ones(channels, dtype=torch.bool)
    for node in chain.between:
        norm = norm_of(node)
        if norm is not None:
            value = (value - work[norm.mean]) * (work[norm.var] + norm.eps).rsqrt()
            value = value * work[norm.weight] if norm.weight else value
            value = value + work[norm.bias] if norm.bias else value
        elif node.operator in _ELEMENTWISE:
            value = _evaluate(node, value)
        elif "avg_pool" in node.operator and _pads_with_zeros(node):
            exact &= value == 0
    return value, exact


def _pads_with_zeros(node: Node) -> bool:
    padding = arguments_of(node).get("padding", 0)
    return any(padding) if isinstance(padding, tuple) else bool(padding)


def _evaluate(node: Node, value: Tensor) -> Tensor:
    def put(argument: Any) -> Any:
        return value if isinstance(argument, NodeRef) else argument

    call = operators()[node.operator].call
    result: Tensor = call(*map(put, node.args), **{name: put(item) for name, item in node.kwargs.items()})
    return result


def _cuts_of(chain: _Chain, gone: Tensor, work: dict[str, Tensor]) -> list[Cut]:
    if not bool(gone.any()):
        return []
    kept, size = tuple(int(index) for index in (~gone).nonzero().flatten()), len(gone)
    cuts = [Cut(chain.producer.weight, 0, kept, size)]
    if chain.producer.bias is not None:
        cuts.append(Cut(chain.producer.bias, 0, kept, size))
    norms = [norm for norm in map(norm_of, chain.between) if norm is not None]
    cuts += [Cut(name, 0, kept, size) for norm in norms for name in norm.tensors]
    wide = tuple(index * chain.spread + offset for index in kept for offset in range(chain.spread))
    return [*cuts, Cut(chain.consumer.weight, 1, wide, size * chain.spread)]


def _changed(state: dict[str, Tensor], work: dict[str, Tensor], cuts: Sequence[Cut]) -> dict[str, Tensor]:
    """What holds other numbers after the cuts than before."""
    before, after = cut_tensors(state, cuts), cut_tensors(work, cuts)
    return {
        name: after[name].to(tensor.dtype)
        for name, tensor in before.items()
        if name in after and not torch.equal(after[name].to(tensor.dtype), tensor)
    }


def _lines(
    chains: Sequence[_Chain], reasons: dict[str, str], gone: dict[str, Tensor], work: dict[str, Tensor]
) -> list[str]:
    lines = []
    for chain in chains:
        removed = gone[chain.producer.weight]
        if bool(removed.any()):
            lines.append(f"{chain.producer.name}: removed {int(removed.sum())} of {len(removed)} channels")
        left = ~work[chain.producer.weight].flatten(1).any(1) & ~removed
        if bool(left.any()):
            why = "what they give is not zero, and the next layer pads or has no bias"
            if not bool(_columns(chain, work).any()):
                why = "a layer needs one"
            lines.append(f"{chain.producer.name}: kept {int(left.sum())} channels without input: because {why}")
    for weight, reason in reasons.items():
        idle = int((~work[weight].flatten(1).any(1)).sum()) if work[weight].dim() > 1 else 0
        if idle:
            lines.append(f"{weight.rpartition('.')[0]}: kept {idle} channels without input: because {reason}")
    return lines
