"""A graph in which factorized weights are never multiplied out: each layer becomes the chain that its factors are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lilliput.core.packed import Packed, unpack, weight_method
from lilliput.graph.ir import Graph, Node, NodeRef, Ref, TensorRef, map_node, map_refs, refs_of
from lilliput.graph.layers import CONVOLUTIONS, LINEAR, arguments_of

_EMBEDDING = "aten.embedding.default"
_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Factored:
    """What `factored` gives.

    Attributes:
        graph: with chains.
        tensors: the factors, by the names that the graph uses: `"<weight>.<place in the chain>"`.
        replaced: names of the weights that the graph doesn't use any more.
    """

    graph: Graph
    tensors: dict[str, Tensor]
    replaced: frozenset[str]


def factored(graph: Graph, packed: Mapping[str, Packed | Tensor]) -> Factored:
    """Puts the chains of factorized layers in the place of the layers.

    That is done where a method gives `layers`, all that use the weight are linear layers, convolutions or embeddings,
    and each linear layer or convolution then needs fewer multiplications; elsewhere the graph stays as it is. An
    embedding alone needs none, and stays. Outputs differ by the rounding of sums.

    Args:
        graph: any graph.
        packed: weights by name; others than factorized ones are passed over.

    Example:
        >>> import torch
        >>> from lilliput.factorize.svd import Svd
        >>> from lilliput.graph.trace import trace
        >>> graph, _ = trace(nn.Linear(20, 10), torch.rand(1, 20))
        >>> found = factored(graph, {"weight": Svd(rank=2).pack(torch.randn(10, 20))})
        >>> [tuple(tensor.shape) for tensor in found.tensors.values()], len(found.graph.nodes)
        ([(2, 20), (10, 2)], 2)
    """
    users: dict[str, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for ref in node.refs():
            if isinstance(ref, TensorRef):
                users.setdefault(ref.name, []).append(index)
    kept = {ref.name for ref in refs_of(graph.output) if isinstance(ref, TensorRef)}
    chains: dict[int, list[Any]] = {}
    tensors: dict[str, Tensor] = {}
    replaced: set[str] = set()
    for name, places in users.items():
        part = packed.get(name)
        if not isinstance(part, Packed) or name in kept:
            continue
        found = _chains(part, name, [graph.nodes[place] for place in places])
        if found:
            chains |= zip(places, found)
            tensors |= {_name(name, place): layer.weight.detach() for place, layer in enumerate(found[0])}
            replaced.add(name)
    return Factored(_rebuilt(graph, chains), tensors, frozenset(replaced))


def _name(weight: str, place: int) -> str:
    return f"{weight}.{place}"


def _chains(packed: Packed, name: str, nodes: Sequence[Node]) -> list[list[Any]]:
    """A chain for each user of a weight; none if one can't take it, or gains nothing by it."""
    if all(node.operator == _EMBEDDING for node in nodes):
        return []
    try:
        found = [_layers(packed, node, name) for node in nodes]
    # A layer of another kind, or a stranger's parts: whoever unpacks the weight says what is wrong with those.
    except Exception:
        return []
    return [chain for chain in found if chain] if all(found) else []


def _layers(packed: Packed, node: Node, name: str) -> list[Any] | None:
    """The chain for one user; None if the user stays as it is."""
    like = _like(node, packed.shape, name)
    if like is None:
        return None
    chain = chain_of(packed, like)
    if chain is None or node.operator != _EMBEDDING:
        return chain if chain and multiplications(chain, like) < like.weight.numel() else None
    return chain if all(isinstance(layer, nn.Linear) for layer in chain) else None


def chain_of(packed: Packed, like: Any) -> list[Any] | None:
    """Returns the layers that a factorized weight is in turn; None for weights of methods that don't factorize.

    Args:
        packed: a weight.
        like: the linear layer or convolution in whose place they are to stand; its weight isn't looked at.
    """
    make = getattr(weight_method(packed.method), "layers", None)
    if make is None:
        return None
    parts = {part: unpack(value) for part, value in packed.parts.items()}
    return list(make(replace(packed, parts=parts), like))


def multiplications(chain: Sequence[Any], like: Any) -> float:
    """Returns how many multiplications a chain needs for each output place; the layer itself needs `weight.numel()`.

    What pads the borders is left out.

    Args:
        chain: linear layers, or convolutions.
        like: the layer in whose place they stand.
    """
    # Before a stride there are more places than at the output.
    places = math.prod(getattr(like, "stride", (1,)))
    total = 0.0
    for layer in chain:
        places /= math.prod(getattr(layer, "stride", (1,)))
        total += layer.weight.numel() * places
    return total


def _like(node: Node, shape: Sequence[int], name: str) -> Any:
    """A layer without memory that does what a node does with a weight; None for other nodes."""
    bound = arguments_of(node)
    if bound.get("weight") != TensorRef(name) or sum(ref == TensorRef(name) for ref in node.refs()) != 1:
        return None
    if node.operator in (LINEAR, _EMBEDDING):
        return nn.Linear(shape[1], shape[0], bias=False, device="meta") if len(shape) == 2 else None
    if node.operator not in CONVOLUTIONS:
        return None
    count = len(shape) - 2
    stride, dilation, groups = _each(bound["stride"], count), _each(bound["dilation"], count), bound["groups"]
    padding = bound["padding"]
    if isinstance(padding, str):
        whole = [d * (size - 1) if padding == "same" else 0 for d, size in zip(dilation, shape[2:])]
        if any(size % 2 for size in whole):
            return None
        padding = tuple(size // 2 for size in whole)
    layer: Any = _KINDS[count - 1]
    return layer(
        shape[1] * groups,
        shape[0],
        tuple(shape[2:]),
        stride,
        _each(padding, count),
        dilation,
        groups,
        bias=False,
        device="meta",
    )


def _each(value: Any, count: int) -> tuple[int, ...]:
    items = value if isinstance(value, tuple) else (value,)
    return tuple(int(item) for item in items) * (1 if len(items) == count else count)


def _rebuilt(graph: Graph, chains: Mapping[int, list[Any]]) -> Graph:
    """The graph with chains in the place of some nodes."""
    nodes: list[Node] = []
    moved: list[int] = []

    def move(ref: Ref) -> Ref:
        return NodeRef(moved[ref.index]) if isinstance(ref, NodeRef) else ref

    gone = set()
    for index, old in enumerate(graph.nodes):
        node = map_node(old, move)
        if index in chains:
            bound = arguments_of(node)
            gone.add(bound["weight"].name)
            make = _looked_up if node.operator == _EMBEDDING else _in_turn
            nodes.extend(make(chains[index], bound, len(nodes)))
        else:
            nodes.append(node)
        moved.append(len(nodes) - 1)
    aliases = {alias: name for alias, name in graph.aliases.items() if name not in gone}
    return replace(graph, nodes=tuple(nodes), output=map_refs(graph.output, move), aliases=aliases)


def _in_turn(chain: Sequence[Any], bound: Mapping[str, Any], start: int) -> list[Node]:
    """The nodes of a chain; the bias comes last."""
    source, nodes = bound["input"], []
    for place, layer in enumerate(chain):
        weight = TensorRef(_name(bound["weight"].name, place))
        bias = bound["bias"] if place == len(chain) - 1 else None
        if isinstance(layer, nn.Linear):
            nodes.append(Node(LINEAR, (source, weight, bias)))
        else:
            setting = (tuple(layer.stride), tuple(layer.padding), tuple(layer.dilation), layer.groups)
            nodes.append(Node(f"aten.conv{len(layer.kernel_size)}d.default", (source, weight, bias, *setting)))
        source = NodeRef(start + place)
    return nodes


def _looked_up(chain: Sequence[Any], bound: Mapping[str, Any], start: int) -> list[Node]:
    """An embedding by a chain of linear layers, W = W_n ... W_1: row i of W is row i of W_n times the others."""
    name = bound["weight"].name
    last = len(chain) - 1
    nodes = [Node(_EMBEDDING, (TensorRef(_name(name, last)), bound["indices"]))]
    for place in range(last - 1, -1, -1):
        turned = Node("aten.t.default", (TensorRef(_name(name, place)),))
        nodes.append(turned)
        nodes.append(Node(LINEAR, (NodeRef(start + len(nodes) - 2), NodeRef(start + len(nodes) - 1))))
    return nodes
