"""From a graph to steps of fixed sizes, see `steps`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.errors import ModelError
from lilliput.export.quantized import levels_in, signs_of
from lilliput.export.sizes import Info, infos_of
from lilliput.export.steps import Add, Affine, Clip, Levels, Pool, Product, Shape, Steps, affine_of, weight_of
from lilliput.graph.ir import Graph, InputRef, NodeRef, TensorRef, refs_of
from lilliput.graph.layers import CONVOLUTIONS, LINEAR, arguments_of, norm_of

INF = float("inf")
_CLIPS = {"relu": (0.0, INF), "relu6": (0.0, 6.0)}
_SHAPES = ("reshape", "view", "flatten", "squeeze", "unsqueeze", "contiguous", "clone", "dropout", "identity")


def lowered(graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Any]) -> Steps:
    """Turns a network of one float32 input and one output into steps, for one example at a time.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        packed: weights as an artifact holds them.

    Raises:
        ModelError: it has several inputs or outputs, other open sizes than the batch, or an operator that isn't there.
    """
    outputs = list(refs_of(graph.output))
    spec = graph.inputs[0] if len(graph.inputs) == 1 else None
    if spec is None or len(outputs) != 1 or spec.dtype != torch.float32:
        raise ModelError("C takes networks of one float32 input and one output")
    if any(isinstance(size, str) for size in spec.shape[1:]) or len(spec.shape) < 2:
        raise ModelError(f"C needs fixed sizes but for the batch, not {spec.shape}")
    return _Lowering(graph, tensors, packed).run(outputs[0])


class _Lowering:
    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Any]) -> None:
        self.graph, self.tensors, self.packed = graph, tensors, packed
        self.infos = infos_of(graph, tensors)
        self.levels = levels_in(graph)
        self.steps: list[Any] = []
        self.shapes: list[tuple[int, ...]] = [tuple(int(size) for size in graph.inputs[0].shape[1:])]
        self.place: dict[Any, int] = {InputRef(0): 0}

    def run(self, output: Any) -> Steps:
        last = self.value(output)
        return Steps(tuple(self.steps), tuple(self.shapes), last)

    def value(self, ref: Any) -> int:
        """The number of a value; what it needs comes first."""
        if ref in self.place:
            return self.place[ref]
        if not isinstance(ref, NodeRef):
            raise ModelError("C: a parameter where a value is needed")
        step = self.step(ref.index)
        info = self.infos[ref.index]
        shape = tuple(info.shape[1:]) if isinstance(info, Info) else (None,)
        if any(size is None for size in shape) or (isinstance(info, Info) and info.dtype != torch.float32):
            raise ModelError(
                f"C: node {ref.index} ({self.graph.nodes[ref.index].operator}) has no fixed size of floats"
            )
        self.steps.append(step)
        self.shapes.append(tuple(int(size) for size in shape if size is not None))
        self.place[ref] = len(self.steps)
        return self.place[ref]

    def step(self, index: int) -> Any:
        node = self.graph.nodes[index]
        if index in self.levels:
            held = self.levels[index]
            return Levels(self.value(held.source), held.scale, held.zero, held.low, held.high)
        signs = signs_of(self.graph, index)
        if signs is not None:
            return Levels(self.value(signs), 1.0, signs=True)
        bound, word = arguments_of(node), node.operator.split(".")[1]
        norm = norm_of(node)
        if node.operator == LINEAR or node.operator in CONVOLUTIONS:
            return self.product(bound, node.operator)
        if norm is not None:
            return Affine(self.value(bound["input"]), *affine_of(norm, self.tensors))
        return self.other(word, bound, index)

    def other(self, word: str, bound: Mapping[str, Any], index: int) -> Any:
        """A step without weights."""
        first = _first(bound)
        if word in _CLIPS:
            return Clip(self.value(first), *_CLIPS[word])
        if word in {"hardtanh", "clamp"}:
            low, high = (bound[key] for key in (("min_val", "max_val") if word == "hardtanh" else ("min", "max")))
            return Clip(self.value(first), -INF if low is None else float(low), INF if high is None else float(high))
        if word in _SHAPES:
            return Shape(self.value(first), tuple(self.infos[index].shape[1:]))
        if word == "add" and bound.get("alpha", 1) == 1 and isinstance(bound["other"], NodeRef | InputRef):
            return Add(self.value(first), self.value(bound["other"]))
        if word in {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"} or (word == "mean" and "dim" in bound):
            return self.pool(word, bound, index)
        raise ModelError(f"C has no counterpart of {self.graph.nodes[index].operator}")

    def product(self, bound: Mapping[str, Any], operator: str) -> Product:
        weight, bias = bound["weight"], bound["bias"]
        if not isinstance(weight, TensorRef) or not isinstance(bias, TensorRef | None):
            raise ModelError("C: a layer with a computed weight")
        source, tensor = self.value(bound["input"]), self.tensors[weight.name]
        rows = weight_of(self.packed.get(weight.name), tensor)
        shift = np.zeros(len(tensor), np.float32) if bias is None else self.tensors[bias.name].detach().numpy()
        if operator == LINEAR:
            if len(self.shapes[source]) != 1:
                raise ModelError("C: a linear layer over several places")
            return Product(source, rows, shift)
        if tensor.ndim != 4 or isinstance(bound["padding"], str):
            raise ModelError("C: only two-dimensional convolutions with paddings in numbers")
        stride, padding, dilation = (_pair(bound[name]) for name in ("stride", "padding", "dilation"))
        kernel = _pair(tensor.shape[2:])
        return Product(source, rows, shift, kernel, stride, padding, dilation, int(bound["groups"]), image=True)

    def pool(self, word: str, bound: Mapping[str, Any], index: int) -> Any:
        source = self.value(_first(bound))
        shape = self.shapes[source]
        if word in {"adaptive_avg_pool2d", "mean"}:
            over = {axis % 4 for axis in bound["dim"]} if word == "mean" else {2, 3}
            out = [size for size in self.infos[index].shape[2:] if size != 1]
            if len(shape) != 3 or over != {2, 3} or out:
                raise ModelError(f"C: only means over whole pictures, not {word} of {shape}")
            whole = Pool(source, True, (shape[1], shape[2]), (1, 1), (0, 0))
            if word == "adaptive_avg_pool2d" or bound["keepdim"]:
                return whole
            self.steps.append(whole)
            self.shapes.append((shape[0], 1, 1))
            return Shape(len(self.steps), (shape[0],))
        kernel, padding = _pair(bound["kernel_size"]), _pair(bound["padding"])
        stride = _pair(bound["stride"]) if bound["stride"] else kernel
        odd = bound.get("ceil_mode") or bound.get("divisor_override") or _pair(bound.get("dilation", 1)) != (1, 1)
        if odd or (word == "avg_pool2d" and bound["count_include_pad"] and padding != (0, 0)):
            raise ModelError(f"C: {word} with these settings")
        return Pool(source, word == "avg_pool2d", kernel, stride, padding)


def _first(bound: Mapping[str, Any]) -> Any:
    """What an operator works on."""
    return bound.get("self", bound.get("input"))


def _pair(value: Any) -> tuple[int, int]:
    items = tuple(value) if isinstance(value, tuple | list | torch.Size) else (value,)
    return int(items[0]), int(items[-1])
