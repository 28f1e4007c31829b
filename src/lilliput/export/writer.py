"""Writes an ONNX graph node by node; the rules of the operators are in the files beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.errors import NotInstalled
from lilliput.export.few_bits import FLOATS, Few
from lilliput.export.quantized import Codes, Levels
from lilliput.export.rules import Unsupported, rules
from lilliput.export.sizes import Info
from lilliput.graph.ir import Graph, InputRef, Node, NodeRef, TensorRef

try:
    import onnx
except ImportError:
    raise NotInstalled("ONNX needs the packages onnx and onnxruntime: pip install 'lilliput[onnx]'") from None

OPSET = 20
KINDS = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.int16: onnx.TensorProto.INT16,
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.bool: onnx.TensorProto.BOOL,
}
Arguments = Mapping[str, Any]
Rule = Callable[["Writer", Arguments], Any]
RULES: dict[str, Rule] = {}
rule = rules(RULES)


def kind_of(dtype: torch.dtype) -> int:
    """Returns ONNX's number for a dtype.

    Raises:
        Unsupported: it has none here.
    """
    if dtype not in KINDS:
        raise Unsupported(f"no counterpart of {dtype} in ONNX Runtime; store the model in float32 or float16")
    return int(KINDS[dtype])


class Writer:
    """The ONNX graph so far.

    Integers that follow open sizes are tensors of shape (1,), int64.

    Args:
        graph: what is translated.
        tensors: what it uses, by name.
        infos: of its nodes, see `sizes.infos_of`.
        coded: weights that stay in 8 bits, by name.

    Attributes:
        whole_bias: the bias of a convolution with a weight in 8 bits becomes int32, in steps of the products.
    """

    whole_bias = True

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        infos: Sequence[Any],
        coded: Mapping[str, Codes] | None = None,
    ) -> None:
        self.graph, self.tensors, self.infos = graph, tensors, infos
        self.coded = coded or {}
        self.few: dict[str, Few] = {}
        self.products = FLOATS
        self.levels: dict[int, Levels] = {}
        self.values: list[Any] = []
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self.result: Any = None

    def __call__(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or a list of several."""
        names = [f"{operator.lower()}_{len(self.nodes)}{f'_{i}' if outputs > 1 else ''}" for i in range(outputs)]
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), names, **given))
        return names[0] if outputs == 1 else names

    def add(self, node: Node, info: Any, rule_of: Rule, bound: Arguments) -> None:
        """Translates one node.

        Args:
            node: the node.
            info: of its result.
            rule_of: its operator's rule.
            bound: its arguments by name.
        """
        self.result = info
        try:
            self.values.append(rule_of(self, bound))
        except Unsupported as error:
            raise Unsupported(f"{node.operator} at node {len(self.values)} can't become ONNX: {error}") from None

    def put(self, levels: Any) -> None:
        """Puts a tensor on levels: the result of the present node.

        Args:
            levels: which, and what goes on them, `quantized.Levels`.
        """
        kind, full = (torch.uint8, (0, 255)) if levels.low >= 0 else (torch.int8, (-128, 127))
        source = self.x(levels.source)
        if (levels.low, levels.high) != full:
            ends = [
                self.constant((end - levels.zero) * levels.scale, torch.float32) for end in (levels.low, levels.high)
            ]
            source = self("Clip", source, *ends)
        steps = self.constant(levels.scale, torch.float32), self.constant(levels.zero, kind)
        codes = self("QuantizeLinear", source, *steps)
        self.levels[len(self.values)] = levels
        self.values.append(self("DequantizeLinear", codes, *steps))

    def dequantized(self, held: Codes, turned: bool = False) -> str:
        """Returns a weight in 8 bits, as a node that makes floats of it.

        Args:
            held: the weight.
            turned: (inputs, outputs) instead of (outputs, inputs).
        """
        codes = self.constant(np.ascontiguousarray(held.codes.T) if turned else held.codes)
        scale = held.scale if len(held.scale) > 1 else held.scale.reshape(())
        axis = (1 if turned else 0) if scale.ndim else None
        # Zeros in so many words: without them ONNX Runtime 1.32 computes a Gemm with floats, five times as long.
        zero = self.constant(np.zeros(scale.shape, np.int8))
        return str(self("DequantizeLinear", codes, self.constant(scale), zero, axis=axis))

    def few_bits(self, source: str, held: Few, bias: Sequence[str]) -> str:
        """Multiplies by a weight of few bits; see `few_bits`.

        Args:
            source: what goes in.
            held: the weight.
            bias: its name, or nothing.
        """
        zero = "" if held.zero is None else self.constant(held.zero)
        parts = [self.constant(held.codes), self.constant(held.scale), zero]
        given = {"K": held.inputs, "N": len(held.codes), "bits": held.bits, "block_size": held.block}
        level = self.products
        found = str(self("MatMulNBits", source, *parts, domain="com.microsoft", accuracy_level=level, **given))
        return str(self("Add", found, bias[0])) if bias else found

    def x(self, ref: Any) -> str:
        """Returns the name of the tensor that a reference stands for."""
        if isinstance(ref, InputRef):
            return input_name(self.graph, ref.index)
        if isinstance(ref, TensorRef) and ref.name in self.coded:
            return self.dequantized(self.coded[ref.name])
        if isinstance(ref, TensorRef):
            if ref.name not in self.constants:
                self.constants[ref.name] = array_of(self.tensors[ref.name])
            return ref.name
        value = self.values[ref.index]
        if not isinstance(value, str):
            raise Unsupported("a list of tensors where one is needed")
        return value

    def info(self, ref: Any) -> Info:
        """Returns what is known of a tensor."""
        if isinstance(ref, InputRef):
            spec = self.graph.inputs[ref.index]
            return Info(tuple(None if isinstance(size, str) else size for size in spec.shape), spec.dtype)
        if isinstance(ref, TensorRef):
            return Info(tuple(self.tensors[ref.name].shape), self.tensors[ref.name].dtype)
        found = self.infos[ref.index]
        if not isinstance(found, Info):
            raise Unsupported("a number, or a list of tensors, where one tensor is needed")
        return found

    def rank(self, ref: Any) -> int:
        """Returns the number of axes of a tensor."""
        return len(self.info(ref).shape)

    def axis(self, ref: Any, axis: int) -> int:
        """Returns an axis counted from 0."""
        rank = self.rank(ref)
        return axis + rank if axis < 0 else axis

    def size(self, ref: Any, axis: int) -> int:
        """Returns a fixed size.

        Raises:
            Unsupported: it is open.
        """
        size = self.info(ref).shape[axis]
        if size is None:
            raise Unsupported(f"axis {axis} must have a fixed size here")
        return size

    def constant(self, value: Any, dtype: torch.dtype = torch.int64) -> str:
        """Returns the name of a constant, the same for the same value.

        Args:
            value: number, list or array.
            dtype: of its elements.
        """
        array = value if isinstance(value, np.ndarray) else np.array(value, dtype=numpy_dtype(dtype))
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else (id(array), len(self.constants))
        if key not in self._known:
            self._known[key] = f"constant_{len(self._known)}"
            self.constants[self._known[key]] = array
        return self._known[key]

    def cast(self, name: str, present: torch.dtype, wanted: torch.dtype) -> str:
        """Returns a tensor as another dtype."""
        return name if present == wanted else str(self("Cast", name, to=kind_of(wanted)))

    def operand(self, argument: Any, dtype: torch.dtype) -> str:
        """Returns a tensor or a number as a tensor of a dtype.

        Args:
            argument: a reference or a number.
            dtype: which.
        """
        if isinstance(argument, InputRef | TensorRef):
            return self.cast(self.x(argument), self.info(argument).dtype, dtype)
        if isinstance(argument, NodeRef):
            found = self.infos[argument.index]
            if isinstance(found, Info):
                return self.cast(self.x(argument), found.dtype, dtype)
            present = torch.int64 if found in (int, bool) else torch.float32
            return self.cast(self.values[argument.index], present, dtype)
        return self.constant(argument, dtype)

    def ints(self, arguments: Any) -> str:
        """Returns integers, some perhaps following open sizes, as one tensor of one axis."""
        items = arguments if isinstance(arguments, tuple | list) else (arguments,)
        if all(isinstance(item, int) for item in items):
            return self.constant(np.array(items, np.int64))
        parts = [
            self.values[item.index] if isinstance(item, NodeRef) else self.constant(np.array([item], np.int64))
            for item in items
        ]
        return parts[0] if len(parts) == 1 else str(self("Concat", *parts, axis=0))

    def fixed(self, argument: Any) -> list[int]:
        """Returns integers that must not follow open sizes.

        Raises:
            Unsupported: one does.
        """
        items = argument if isinstance(argument, tuple | list) else (argument,)
        if not all(isinstance(item, int) for item in items):
            raise Unsupported("a size that must be fixed is open")
        return [int(item) for item in items]

    def reshape(self, name: str, sizes: Sequence[Any]) -> str:
        """Reshapes to sizes, integers or references; a single open one is left to the engine."""
        items = list(sizes)
        moving = [place for place, item in enumerate(items) if not isinstance(item, int)]
        if len(moving) == 1 and -1 not in items and 0 not in items:
            items[moving[0]] = -1
        return str(self("Reshape", name, self.ints(items), allowzero=1 if 0 in items else None))


def input_name(graph: Graph, index: int) -> str:
    """Returns the name of an input: its own, made unique."""
    name = graph.inputs[index].name
    names = [spec.name for spec in graph.inputs]
    return name if names.count(name) == 1 else f"{name}_{index}"


def numpy_dtype(dtype: torch.dtype) -> Any:
    """Returns NumPy's counterpart of a dtype."""
    kind_of(dtype)
    return np.dtype(str(dtype).removeprefix("torch."))


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Returns a tensor as an array."""
    kind_of(tensor.dtype)
    array: np.ndarray[Any, Any] = tensor.detach().cpu().contiguous().numpy()
    return array
