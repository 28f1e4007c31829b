"""ONNX that holds only the operators which some converter lists, in an older version of ONNX."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from lilliput.export.onnx import to_onnx
from lilliput.export.rules import Unsupported
from lilliput.export.sizes import closed
from lilliput.graph.ir import Graph


def to_listed(
    graph: Graph, tensors: Mapping[str, Tensor], operators: Collection[str], opset: int, whose: str
) -> onnx.ModelProto:
    """Translates a graph for one example, weights as floats.

    Args:
        graph: any graph; activations that are on levels become plain operators.
        tensors: what it uses, by name.
        operators: names that there may be.
        opset: of ONNX, which the model is brought down to.
        whose: list it is, for the message.

    Raises:
        ModelError: an operator isn't on the list, or has no form in this version; names it.

    >>> import torch
    >>> from lilliput.graph.trace import trace
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU())
    >>> graph, _ = trace(net, torch.rand(1, 4))
    >>> made = to_listed(graph, net.state_dict(), {"Gemm", "Relu", "Identity"}, 11, "somebody")
    >>> [node.op_type for node in made.graph.node], made.opset_import[0].version
    (['Gemm', 'Relu', 'Identity'], 11)
    """
    model = to_onnx(closed(graph, tensors), tensors)
    missing = sorted({node.op_type for node in model.graph.node} - set(operators))
    if missing:
        raise Unsupported(f"{whose} lists no {', '.join(missing[:5])}")
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    shapes = {
        info.name: info.type.tensor_type.shape for info in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    ranks = {name: len(shape.dim) for name, shape in shapes.items()}
    for node in model.graph.node:
        _lower(node, constants, ranks, opset)
    used = {name for node in model.graph.node for name in node.input}
    kept = [entry for entry in model.graph.initializer if entry.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.opset_import[0].version, model.ir_version = opset, 6
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        text = " ".join(str(error).split())[:200]
        raise Unsupported(f"the network has no form in version {opset} of ONNX, as {whose} needs it: {text}") from None
    return model


def _lower(node: Any, constants: Mapping[str, Any], ranks: Mapping[str, int], opset: int) -> None:
    """Gives a node the form that it had in an older version; the checker finds what has none."""
    kind = node.op_type
    names = _INPUTS.get(kind, ()) if opset < _SINCE.get(kind, 0) else ()
    for name, given in list(zip(names, node.input[1:])):
        if given:
            value = constants[given]
            told = [int(item) for item in value.ravel()] if value.dtype == np.int64 else float(value)
            node.attribute.append(onnx.helper.make_attribute(name, told))
    if names:
        del node.input[1:]
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    if kind in {"Softmax", "LogSoftmax"} and attributes["axis"] != ranks[node.input[0]] - 1:
        raise Unsupported("a softmax that isn't over the last axis, in an old version of ONNX")
    # What old versions had no words for, where it says nothing.
    for name, default in (("ceil_mode", 0), ("dilations", None), ("steps", None), ("allowzero", 0)):
        plain = attributes.get(name) == default or (default is None and set(attributes.get(name, [0])) == {1})
        if plain and (name, kind) not in {("dilations", "Conv"), ("dilations", "ConvTranspose")}:
            kept = [entry for entry in node.attribute if entry.name != name]
            del node.attribute[:]
            node.attribute.extend(kept)


# Operators whose inputs were attributes before some version, in their order.
_INPUTS = {
    "Squeeze": ("axes",), "Unsqueeze": ("axes",), "ReduceSum": ("axes",), "ReduceMean": ("axes",),
    "ReduceMax": ("axes",), "ReduceMin": ("axes",), "ReduceProd": ("axes",), "Clip": ("min", "max"),
    "Pad": ("pads", "value"), "Slice": ("starts", "ends", "axes", "steps"), "Split": ("split",),
}  # fmt: skip
_SINCE = {
    "Squeeze": 13, "Unsqueeze": 13, "ReduceSum": 13, "ReduceMean": 18, "ReduceMax": 18, "ReduceMin": 18,
    "ReduceProd": 18, "Clip": 11, "Pad": 11, "Slice": 10, "Split": 13,
}  # fmt: skip
