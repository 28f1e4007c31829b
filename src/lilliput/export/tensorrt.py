"""ONNX as TensorRT asks for it: codes of 8 bits around zero, a scale for each row of a weight, biases as floats."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from torch import Tensor

from lilliput.core.packed import Packed
from lilliput.export.onnx import finished
from lilliput.export.quantized import Codes, Levels, coded_layers, levels_in
from lilliput.export.sizes import infos_of
from lilliput.export.writer import Writer
from lilliput.graph.ir import Graph, NodeRef, Ref
from lilliput.graph.layers import arguments_of

HIGH = 127


def to_tensorrt(graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Packed | Tensor]) -> onnx.ModelProto:
    """Translates a graph, open sizes included; 8-bit layers are explicitly quantized.

    TensorRT takes int8 with a zero point of 0 only. Levels that are so already keep their scale; others (affine,
    or 0 to 255) get the scale with which -127 to 127 reach as far: up to twice as coarse. So quantize activations
    with `form = "symmetric"` for numbers like Lilliput's own.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        packed: its weights as an artifact holds them, by name.

    Raises:
        ModelError: an operator has no counterpart.
    """
    coded, levels = coded_layers(graph, packed, levels_in(graph), sums=True)
    return finished(SymmetricWriter(graph, tensors, infos_of(graph, tensors), coded), levels)


class SymmetricWriter(Writer):
    """Writes levels around zero, and no integer biases."""

    whole_bias = False

    def put(self, levels: Levels) -> None:
        """Puts a tensor on levels around zero: the result of the present node.

        Args:
            levels: which, and what goes on them.
        """
        source = self.x(levels.source)
        low, high = levels.low - levels.zero, levels.high - levels.zero
        reach = max(-low, high)
        scale = levels.scale * (reach / HIGH if reach > HIGH + 1 else 1)
        # A clip between a layer and its codes costs speed: only where saturation and a ReLU don't do the same.
        if reach < HIGH or (low == 0 and not self.positive(levels.source)):
            ends = [self.constant(end * levels.scale, torch.float32) for end in (low, high)]
            source = self("Clip", source, *ends)
        steps = self.constant(scale, torch.float32), self.constant(0, torch.int8)
        self.values.append(self("DequantizeLinear", self("QuantizeLinear", source, *steps), *steps))

    def positive(self, ref: Ref) -> bool:
        """Whether a tensor can't be negative, as behind a ReLU.

        Args:
            ref: the tensor.
        """
        if not isinstance(ref, NodeRef):
            return False
        node = self.graph.nodes[ref.index]
        word, bound = node.operator.split(".")[1], arguments_of(node)
        if word in {"max_pool2d", "flatten", "reshape", "view", "adaptive_avg_pool2d"}:
            return self.positive(bound["self"])
        if word in {"hardtanh", "clamp"}:
            low = bound["min_val" if word == "hardtanh" else "min"]
            return isinstance(low, int | float) and low >= 0
        return word in {"relu", "relu6", "sigmoid", "softmax"}

    def dequantized(self, held: Codes, turned: bool = False) -> str:
        """Returns a weight in 8 bits, as a node that makes floats of it: the rows are always axis 0.

        Args:
            held: the weight.
            turned: (inputs, outputs) instead of (outputs, inputs).
        """
        scale = held.scale if len(held.scale) > 1 else held.scale.reshape(())
        codes = self.constant(held.codes), self.constant(np.where(scale == 0, np.float32(1), scale))
        found = str(self("DequantizeLinear", *codes, axis=0 if scale.ndim else None))
        return str(self("Transpose", found, perm=[1, 0])) if turned else found
