"""A graph as an ONNX model, without the network's Python class."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor

from lilliput.core.packed import Packed
from lilliput.export.few_bits import few_layers
from lilliput.export.quantized import coded_layers, levels_in
from lilliput.export.rules import Unsupported
from lilliput.export.sizes import Info, infos_of
from lilliput.export.writer import OPSET, RULES, Writer, input_name, kind_of
from lilliput.graph.ir import Graph, InputRef, NodeRef, refs_of
from lilliput.graph.layers import arguments_of
from lilliput.graph.operators import operators

LARGEST = 2**31 - 2**20
"""Bytes of weights that one file of protocol buffers holds."""

for _module in ("elementwise", "shaping", "reducing", "layers", "recurrent"):
    importlib.import_module(f"lilliput.export.{_module}")


def to_onnx(
    graph: Graph,
    tensors: Mapping[str, Tensor],
    packed: Mapping[str, Packed | Tensor] | None = None,
    infos: Sequence[Any] | None = None,
    sums: bool = False,
    few: int = 0,
) -> onnx.ModelProto:
    """Translates a graph, open sizes included.

    Where activations are on at most 256 levels and `quantize/uniform` packed the weight symmetrically, the levels
    become QuantizeLinear and DequantizeLinear and the weight stays in 8 bits, so that engines multiply integers: in
    linear layers, and in convolutions whose results go on levels again. ONNX Runtime has no fast convolution of
    integers with floats for results, as a residual sum needs.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        packed: its weights as an artifact holds them, by name.
        infos: of its nodes, where they are known.
        sums: the engine has fast convolutions of integers with floats for results: 8 bits there, too.
        few: weights of linear layers in 2, 4 or 8 bits stay so, by ONNX Runtime's own operator MatMulNBits, which
            computes as this says (`few_bits.FLOATS`, `few_bits.INTEGERS`); 0: they become floats.

    Returns:
        A model of opset 20. Inputs have the graph's names; outputs are `output_0`, `output_1`, ... in the order of the
        references in `graph.output`, those that are numbers of open sizes as int64 of shape (1,).

    Raises:
        ModelError: an operator has no counterpart, says which; or the weights are larger than a file may be.
        NotInstalled: the package onnx is missing.

    Example:
        >>> import torch
        >>> from lilliput.graph.trace import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU())
        >>> graph, constants = trace(model, torch.rand(1, 4))
        >>> [node.op_type for node in to_onnx(graph, model.state_dict() | constants).graph.node]
        ['Gemm', 'Relu', 'Identity']
    """
    coded, levels = coded_layers(graph, packed or {}, levels_in(graph), sums)
    writer = Writer(graph, tensors, infos_of(graph, tensors) if infos is None else infos, coded)
    if few:
        writer.few, writer.products = few_layers(graph, packed or {}, coded, few), few
    return finished(writer, levels, "com.microsoft" if writer.few else "")


def finished(writer: Writer, levels: Mapping[int, Any], domain: str = "") -> onnx.ModelProto:
    """Translates all nodes of a writer's graph.

    Args:
        writer: to which nothing was written yet.
        levels: what it puts in the place of some nodes, see `Writer.put`.
        domain: of operators besides ONNX's own, version 1.

    Raises:
        ModelError: as `to_onnx`.
    """
    graph, tensors = writer.graph, writer.tensors
    if sum(tensors[name].numel() * tensors[name].element_size() for name in graph.tensors) > LARGEST:
        raise Unsupported("the weights take more than 2 GB, which one ONNX file can't hold")
    missing = sorted({node.operator for node in graph.nodes if node.operator not in RULES})
    if missing:
        raise Unsupported(f"no counterpart in ONNX for {', '.join(missing[:5])}")
    _write(writer, levels)
    inputs = [
        onnx.helper.make_tensor_value_info(input_name(graph, index), kind_of(spec.dtype), list(spec.shape))
        for index, spec in enumerate(graph.inputs)
    ]
    outputs = [_output(writer, place, ref) for place, ref in enumerate(refs_of(graph.output))]
    nodes = _needed(writer.nodes, [info.name for info in outputs])
    used = {name for node in nodes for name in node.input}
    weights = [onnx.numpy_helper.from_array(a, name) for name, a in writer.constants.items() if name in used]
    made = onnx.helper.make_graph(nodes, "lilliput", inputs, outputs, weights)
    opsets = [onnx.helper.make_opsetid("", OPSET)] + [onnx.helper.make_opsetid(domain, 1)] * bool(domain)
    return onnx.helper.make_model(made, opset_imports=opsets, ir_version=10)


def _write(writer: Writer, levels: Mapping[int, Any]) -> None:
    """Translates the nodes."""
    for index, (node, info) in enumerate(zip(writer.graph.nodes, writer.infos)):
        if index in levels and info.dtype == torch.float32:
            writer.put(levels[index])
            continue
        bound = arguments_of(node)
        ordered = {p.name: bound[p.name] for p in operators()[node.operator].parameters if p.name in bound}
        writer.add(node, info, RULES[node.operator], ordered)


def _output(writer: Writer, place: int, ref: Any) -> Any:
    """Gives an output its name."""
    name = f"output_{place}"
    found = writer.infos[ref.index] if isinstance(ref, NodeRef) else writer.info(ref)
    if isinstance(found, Info):
        writer.nodes.append(onnx.helper.make_node("Identity", [writer.x(ref)], [name]))
        rank = [f"{name}_{axis}" if size is None else size for axis, size in enumerate(found.shape)]
        return onnx.helper.make_tensor_value_info(name, kind_of(found.dtype), rank)
    if found is not int or isinstance(ref, InputRef):
        raise Unsupported("an output that is neither a tensor nor an integer")
    writer.nodes.append(onnx.helper.make_node("Identity", [writer.values[ref.index]], [name]))
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1])


def _needed(nodes: list[Any], outputs: list[str]) -> list[Any]:
    """The nodes that the outputs need."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
