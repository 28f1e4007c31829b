"""Quantized activations and 8-bit weights as ONNX's own operators, which its engines compute with integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.packed import Packed, unpack
from lilliput.graph.ir import Graph, NodeRef, Ref, TensorRef, map_node, map_refs, refs_of
from lilliput.graph.layers import CONVOLUTIONS, LINEAR, arguments_of, is_margin
from lilliput.graph.shapes import users_of

# Through these an engine moves the levels up to the layer.
_THROUGH = frozenset(
    f"aten.{name}"
    for name in (
        *("relu.default", "relu6.default", "hardtanh.default", "clamp.default", "max_pool2d.default"),
        *("flatten.using_ints", "view.default", "reshape.default", "transpose.int", "permute.default"),
    )
)


@dataclass(frozen=True)
class Levels:
    """What a chain of nodes does: (clip(round(x / scale) + zero, low, high) - zero) scale.

    Attributes:
        source: x.
        scale: of a step.
        zero: the code of 0.
        low: the lowest code.
        high: the highest.
    """

    source: Ref
    scale: float
    zero: int
    low: int
    high: int


@dataclass(frozen=True)
class Codes:
    """A weight in 8 bits: codes * scale, symmetric.

    Attributes:
        codes: int8, of the weight's shape.
        scale: float32, one, or one for each row.
    """

    codes: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]

    def whole(self, bias: np.ndarray[Any, Any], step: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Returns a bias in steps of the products, int32, and the steps.

        Args:
            bias: one number a row.
            step: scale of the layer's input.
        """
        steps = (np.broadcast_to(self.scale, bias.shape).astype(np.float32) * np.float32(step)).astype(np.float32)
        safe = np.where(steps > 0, steps, 1).astype(np.float64)
        return np.round(bias.astype(np.float64) / safe).astype(np.int32), steps

    def beside(self, bias: np.ndarray[Any, Any], step: float) -> Codes:
        """Returns the same with larger scales where the bias, in steps of the products, would exceed 32 bits.

        That is so where BatchNorm's fold has left next to nothing of a row beside its bias.

        Args:
            bias: one number a row.
            step: scale of the layer's input.
        """
        least = np.abs(bias).astype(np.float64) / (step * 2.0**30)
        scale = np.broadcast_to(self.scale, bias.shape)
        if not (least > scale).any():
            return self
        wider = np.maximum(scale, least).astype(np.float32)
        ratio = (scale / wider).reshape(-1, *[1] * (self.codes.ndim - 1))
        return Codes(np.round(self.codes * ratio).astype(np.int8), wider)


def levels_in(graph: Graph, most: int = 256) -> dict[int, Levels]:
    """Finds where activations are put on a limited number of levels; by the last node of each chain.

    Args:
        graph: any graph.
        most: of the levels, a power of two; codes are counted from 0, or as signed integers.
    """
    found = {}
    for index, node in enumerate(graph.nodes):
        levels = _chain(graph, index) if node.operator == "aten.mul.Tensor" else None
        if levels is None or not levels.low < levels.high:
            continue
        if (levels.low >= 0 and levels.high < most) or (-most // 2 <= levels.low and levels.high < most // 2):
            found[index] = levels
    return found


def needed(graph: Graph, levels: Mapping[int, Levels]) -> list[int]:
    """Returns the nodes that the outputs need, chains that put something on levels by their last one alone.

    Args:
        graph: any graph.
        levels: of `levels_in`.
    """
    found: set[int] = set()
    waiting = list(refs_of(graph.output))
    while waiting:
        ref = waiting.pop()
        if isinstance(ref, NodeRef) and ref.index not in found:
            found.add(ref.index)
            waiting += graph.nodes[ref.index].refs() if ref.index not in levels else [levels[ref.index].source]
    return sorted(found)


def signs_of(graph: Graph, index: int) -> Ref | None:
    """Returns what signs are taken of, where(x >= 0, 1, -1) as floats; None if a node does something else.

    Args:
        graph: any graph.
        index: of its last node.
    """
    ref: Any = NodeRef(index)
    for operator, inner, fixed in (
        ("aten.to.dtype", "self", {}),
        ("aten.where.Scalar", "condition", {"self": 1, "other": -1}),
        ("aten.ge.Scalar", "self", {"other": 0}),
    ):
        if not isinstance(ref, NodeRef) or graph.nodes[ref.index].operator != operator:
            return None
        bound = arguments_of(graph.nodes[ref.index])
        if any(bound[key] != value for key, value in fixed.items()):
            return None
        ref = bound[inner]
    return ref  # type: ignore[no-any-return]


def _chain(graph: Graph, index: int) -> Levels | None:
    """Reads backwards: mul, [sub], clamp, [add], round, div."""
    steps: dict[str, Mapping[str, Any]] = {}
    ref: Any = NodeRef(index)
    for word, needed in (
        ("mul", True),
        ("sub", False),
        ("clamp", True),
        ("add", False),
        ("round", True),
        ("div", True),
    ):
        found = _before(graph, ref)
        if found is not None and found[0].split(".")[1] == word:
            steps[word] = found[1]
            ref = found[1]["self"]
        elif needed:
            return None
    scale, low, high = steps["mul"]["other"], steps["clamp"]["min"], steps["clamp"]["max"]
    shifts = [(steps[word]["other"], steps[word]["alpha"]) if word in steps else (0, 1) for word in ("add", "sub")]
    if shifts[0] != shifts[1] or shifts[0][1] != 1 or steps["div"]["other"] != scale:
        return None
    if not isinstance(scale, float) or not all(type(item) is int for item in (shifts[0][0], low, high)):
        return None
    return Levels(ref, scale, shifts[0][0], low, high)


def _before(graph: Graph, ref: Any) -> tuple[str, Mapping[str, Any]] | None:
    if not isinstance(ref, NodeRef):
        return None
    node = graph.nodes[ref.index]
    return node.operator, arguments_of(node)


def codes_of(packed: Packed | Tensor | None) -> Codes | None:
    """Returns the codes of a weight that `quantize/uniform` packed symmetrically to one scale, or one a row.

    Args:
        packed: any weight of an artifact.
    """
    if not isinstance(packed, Packed) or packed.method != "quantize/uniform" or packed.dtype != torch.float32:
        return None
    if packed.settings.get("per") not in ("tensor", "row") or "levels" in packed.parts or "zero" in packed.parts:
        return None
    codes, scale = unpack(packed.parts["codes"]), unpack(packed.parts["scale"])
    if codes.dtype != torch.int8 or scale.dtype != torch.float32 or codes.ndim < 2:
        return None
    return Codes(codes.numpy(), scale.numpy())


def coded_layers(
    graph: Graph, packed: Mapping[str, Packed | Tensor], levels: Mapping[int, Levels], sums: bool = False
) -> tuple[dict[str, Codes], dict[int, Levels]]:
    """Finds the weights that can stay in 8 bits, and the levels that only such layers take.

    All users of such a weight are layers between levels: linear ones, and convolutions whose results go on levels
    again. Levels before another layer between levels are better written as what they are: an engine that finds floats
    for weights there puts these in 8 bits itself, with one scale for all.

    Args:
        graph: any graph.
        packed: weights by name.
        levels: of `levels_in`.
        sums: the engine multiplies integers also where the results of a convolution stay floats, and leaves floats
            for weights alone.
    """
    users, of_tensors = users_of(graph)
    known = {name: codes_of(packed.get(name)) for name in of_tensors}
    while True:
        again = requantized(graph, levels)
        found = {}
        for name, codes in known.items():
            places = of_tensors[name]
            if codes is None or any(place >= len(graph.nodes) for place in places):
                continue
            fits = sums or codes.codes.ndim == 2
            if all(multiplies(graph, p, levels) == name and (fits or p in again) for p in places):
                found[name] = codes
        if sums:
            return found, dict(levels)
        kept = {i: chain for i, chain in levels.items() if not _tempting(graph, users, i, (found, again))}
        if len(kept) == len(levels):
            return found, dict(levels)
        levels = kept


def _tempting(graph: Graph, users: list[list[int]], index: int, known: tuple[Mapping[str, Codes], set[int]]) -> bool:
    """Whether a result goes, perhaps past a margin of zeros, to a layer between levels with floats for weights."""
    found, again = known
    for place in users[index]:
        if place >= len(graph.nodes):
            continue
        if is_margin(graph.nodes[place]):
            if _tempting(graph, users, place, known):
                return True
        elif place in again and graph.nodes[place].operator in CONVOLUTIONS | {LINEAR}:
            weight = arguments_of(graph.nodes[place])["weight"]
            if not isinstance(weight, TensorRef) or weight.name not in found:
                return True
    return False


def levels_before(graph: Graph, ref: Any, levels: Mapping[int, Any]) -> int | None:
    """Returns the node that puts a layer's input on levels, perhaps before a margin of zeros.

    Args:
        graph: any graph.
        ref: the layer's input.
        levels: of `levels_in`.
    """
    while isinstance(ref, NodeRef) and is_margin(graph.nodes[ref.index]):
        ref = arguments_of(graph.nodes[ref.index])["self"]
    return ref.index if isinstance(ref, NodeRef) and ref.index in levels else None


def multiplies(graph: Graph, place: int, levels: Mapping[int, Any]) -> str | None:
    """Returns the name of the weight by which a node multiplies what is on levels; None if it does something else.

    Args:
        graph: any graph.
        place: of the node.
        levels: of `levels_in`.
    """
    node = graph.nodes[place]
    if node.operator not in CONVOLUTIONS | {LINEAR}:
        return None
    bound = arguments_of(node)
    weight, bias = bound["weight"], bound["bias"]
    if not isinstance(weight, TensorRef) or not isinstance(bias, TensorRef | None) or bias == weight:
        return None
    return weight.name if levels_before(graph, bound["input"], levels) is not None else None


def requantized(graph: Graph, levels: Mapping[int, Levels]) -> set[int]:
    """Finds the nodes whose results go on levels again, perhaps through a ReLU, and nowhere else.

    Args:
        graph: any graph.
        levels: of `levels_in`.
    """
    users, _ = users_of(graph)
    sources = {chain.source.index for chain in levels.values() if isinstance(chain.source, NodeRef)}
    found = set()
    for index in range(len(graph.nodes)):
        place = index
        while len(set(users[place])) == 1 and users[place][0] < len(graph.nodes):
            if place in sources:
                found.add(index)
                break
            following = users[place][0]
            if graph.nodes[following].operator not in _THROUGH:
                break
            place = following
    return found


def without_levels(graph: Graph) -> Graph:
    """Returns a graph in which activations aren't put on levels: the uncompressed network's.

    Args:
        graph: any graph.
    """
    levels = levels_in(graph)

    def moved(ref: Ref) -> Ref:
        while isinstance(ref, NodeRef) and ref.index in levels:
            ref = levels[ref.index].source
        return ref

    nodes = tuple(map_node(node, moved) for node in graph.nodes)
    return Graph(**{**vars(graph), "nodes": nodes, "output": map_refs(graph.output, moved)})
