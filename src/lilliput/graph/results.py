"""Where the results of layers go: into other layers alone, or into sums, concatenations and pools too."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from lilliput.graph.ir import Graph, Node
from lilliput.graph.layers import arguments_of, is_margin, layer_of, norm_of
from lilliput.graph.shapes import users_of

PASSED = frozenset(
    f"aten.{name}"
    for name in (
        *("max_pool1d.default", "max_pool2d.default", "max_pool3d.default", "dropout.default", "flatten.using_ints"),
        *("view.default", "reshape.default", "transpose.int", "permute.default", "contiguous.default"),
    )
)
"""Levels stay levels through these."""


@dataclass(frozen=True)
class Result:
    """A layer's result that no quantizer of another layer's input takes as it is.

    Attributes:
        path: of the module that gives it: the layer, or the BatchNorm behind it.
        low: what an activation function behind it takes away below; -inf if nothing.
        high: what it takes away above.
    """

    path: str
    low: float = -math.inf
    high: float = math.inf


def open_results(graph: Graph, names: Collection[str], quantized: Collection[str]) -> list[Result]:
    """Finds the results of layers that go elsewhere than into one layer whose input is quantized.

    The network's own outputs are none of them, nor are results of layers that are called more than once.

    Args:
        graph: any graph.
        names: of the layers' weights.
        quantized: names of the weights of layers whose inputs are quantized.

    Example:
        >>> from torch import nn, rand
        >>> from lilliput.graph.trace import trace
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU6(), nn.Softmax(1))
        >>> open_results(trace(model, rand(1, 2))[0], {"0.weight", "2.weight"}, {"2.weight"})
        [Result(path='2', low=0.0, high=6.0)]
    """
    of_nodes, of_tensors = users_of(graph)
    found = []
    for index, node in enumerate(graph.nodes):
        layer = layer_of(node)
        if layer is None or layer.weight not in names or len(of_tensors[layer.weight]) > 1:
            continue
        path, place = layer.name if "." in layer.weight else "", index
        following = [graph.nodes[user] for user in of_nodes[index] if user < len(graph.nodes)]
        norm = norm_of(following[0]) if len(of_nodes[index]) == 1 and following else None
        if norm is not None and norm.source == index and len(of_tensors[norm.mean]) == 1:
            path, place = norm.name, of_nodes[index][0]
        low, high = -math.inf, math.inf
        while len(of_nodes[place]) == 1 and of_nodes[place][0] < len(graph.nodes):
            following = [graph.nodes[of_nodes[place][0]]]
            bounds = bounds_of(following[0])
            if bounds is None and following[0].operator not in PASSED and not is_margin(following[0]):
                break
            if bounds is not None:
                low, high = max(low, bounds[0]), min(high, bounds[1])
            place = of_nodes[place][0]
        users = set(of_nodes[place])
        taker = layer_of(graph.nodes[min(users)]) if len(users) == 1 and min(users) < len(graph.nodes) else None
        if users != {len(graph.nodes)} and (taker is None or taker.weight not in quantized):
            found.append(Result(path, low, high))
    return found


def bounds_of(node: Node) -> tuple[float, float] | None:
    """Returns what a node clips its input to; None if it does something else.

    Args:
        node: any node.
    """
    word = node.operator.split(".")[1].rstrip("_")
    if word in {"relu", "relu6"}:
        return 0.0, math.inf if word == "relu" else 6.0
    if node.operator not in {"aten.hardtanh.default", "aten.clamp.default"}:
        return None
    bound = arguments_of(node)
    low, high = (bound["min_val"], bound["max_val"]) if word == "hardtanh" else (bound["min"], bound["max"])
    if not all(isinstance(end, int | float | None) for end in (low, high)):
        return None
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))
