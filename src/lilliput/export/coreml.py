"""A network as a program of Core ML's language MIL, with its own scales, for one example.

Weights stay compressed in the file by MIL's constant expressions: scaled integers, tables of values, zeros left out.
Levels of 8 bits are its operators `quantize` and `dequantize`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.errors import ModelError, NotInstalled
from lilliput.export.coreml_weights import Scaled, Table, weight_of
from lilliput.export.quantized import Levels, levels_in, needed
from lilliput.export.rules import Unsupported, rules
from lilliput.export.sizes import closed, infos_of
from lilliput.graph.bounds import first_line
from lilliput.graph.ir import Graph, InputRef, NodeRef, TensorRef, refs_of
from lilliput.graph.layers import arguments_of
from lilliput.graph.operators import operators

INSTALL = "this engine needs coremltools: pip install 'lilliput[coreml]'"
Arguments = Mapping[str, Any]
Rule = Callable[["Writer", Arguments], Any]
RULES: dict[str, Rule] = {}
rule = rules(RULES)


def to_coreml(graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Any], half: bool = False) -> Any:
    """Returns coremltools' model of a network; its `save` writes the package.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        packed: its weights as an artifact holds them, by name.
        half: compute with float16.

    Raises:
        ModelError: an operator, or a setting of one, has no counterpart; says which.
        NotInstalled: coremltools is missing.
    """
    tools = package()
    importlib.import_module("lilliput.export.coreml_rules")
    fixed = closed(graph, tensors)
    levels = levels_in(fixed)
    missing = sorted({fixed.nodes[i].operator for i in needed(fixed, levels) if i not in levels} - RULES.keys())
    if missing:
        raise Unsupported(f"no counterpart in Core ML for {', '.join(missing[:5])}")
    try:
        with _quiet():
            program = Writer(fixed, tensors, packed).program()
            precision = tools.precision.FLOAT16 if half else tools.precision.FLOAT32
            return tools.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=tools.target.iOS18,
                compute_precision=precision,
                skip_model_load=True,
            )
    except ModelError:
        raise
    except Exception as error:  # whatever a converter of this size meets
        raise ModelError(f"Core ML's converter can't take the network: {first_line(error)}") from None


def package() -> Any:
    """Returns coremltools; NotInstalled without it."""
    try:
        with _quiet():
            import coremltools
    except ImportError:
        raise NotInstalled(INSTALL) from None
    return coremltools


class Writer:
    """The program so far.

    Args:
        graph: of fixed sizes.
        tensors: what it uses, by name.
        packed: its weights as an artifact holds them, by name.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Any]) -> None:
        from coremltools.converters.mil.mil import Builder

        self.graph, self.tensors, self.packed = graph, tensors, packed
        self.make: Any = Builder
        self.infos, self.levels = infos_of(graph, tensors), levels_in(graph)
        self.values: dict[Any, Any] = {}
        self.weights: dict[str, Any] = {}
        self.index = -1

    def program(self) -> Any:
        """Translates all nodes; returns MIL's program."""
        import coremltools
        from coremltools.converters.mil.mil import Function, Program

        program = Program()
        inputs = {
            spec.name: self.make.placeholder([int(size) for size in spec.shape], _type(spec.dtype))
            for spec in self.graph.inputs
        }
        with Function(inputs, opset_version=coremltools.target.iOS18) as function:
            for place, spec in enumerate(self.graph.inputs):
                self.values[InputRef(place)] = function.inputs[spec.name]
            for index in needed(self.graph, self.levels):
                self.index = index
                self.values[NodeRef(index)] = self._node(index)
            names = [f"output_{place}" for place in range(len(list(refs_of(self.graph.output))))]
            results = [self.value(ref) for ref in refs_of(self.graph.output)]
            function.set_outputs([self.make.identity(x=x, name=name) for x, name in zip(results, names)])
        program.add_function("main", function)
        return program

    def _node(self, index: int) -> Any:
        if index in self.levels:
            return self.on_levels(self.levels[index])
        node = self.graph.nodes[index]
        bound = arguments_of(node)
        names = [parameter.name for parameter in operators()[node.operator].parameters]
        try:
            return RULES[node.operator](self, {name: bound[name] for name in names if name in bound})
        except Unsupported as error:
            raise Unsupported(f"{node.operator} at node {index} can't become Core ML's: {error}") from None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the present node's result."""
        return tuple(int(size) for size in self.infos[self.index].shape)

    def value(self, ref: Any) -> Any:
        """Returns what stands for a tensor, or for a number."""
        if isinstance(ref, TensorRef):
            if ref not in self.values:
                array = self.tensors[ref.name].detach().numpy()
                self.values[ref] = array.astype(np.int32) if array.dtype == np.int64 else array
            return self.values[ref]
        if isinstance(ref, NodeRef | InputRef):
            return self.values[ref]
        return np.float32(ref)

    def array(self, ref: Any) -> Any:
        """Returns a parameter as an array; None for none."""
        if ref is None:
            return None
        if not isinstance(ref, TensorRef):
            raise Unsupported("a parameter that is computed")
        return self.value(ref)

    def weight(self, ref: Any) -> Any:
        """Returns the weight of a layer, compressed where that is smaller."""
        if not isinstance(ref, TensorRef):
            raise Unsupported("a weight that is computed")
        if ref.name not in self.weights:
            held = weight_of(self.packed.get(ref.name), self.tensors[ref.name])
            if held is None:
                self.weights[ref.name] = self.array(ref)
            else:
                self.weights[ref.name] = self._scaled(held) if isinstance(held, Scaled) else self._table(held)
        return self.weights[ref.name]

    def _scaled(self, held: Scaled) -> Any:
        kind = _few(held.bits, held.codes.dtype == np.uint8)
        parts = {"data": held.codes.astype(kind), "scale": held.scale}
        if held.zero is not None:
            parts["offset"] = held.zero.astype(kind)
        return self.make.constexpr_blockwise_shift_scale(**parts)

    def _table(self, held: Table) -> Any:
        values, ones = held.values, (1,) * len(held.shape)
        if held.bits:
            filled = np.zeros((*values.shape[:-1], 1 << held.bits), np.float32)
            filled[..., : values.shape[-1]] = values
            table = filled.reshape(*values.shape[:-1], *ones[values.ndim - 1 :], -1, 1)
            indices = held.indices.astype(_few(held.bits, True))
        if held.kept is None:
            return self.make.constexpr_lut_to_dense(indices=indices.reshape(held.shape), lut=table)
        mask, rest = held.kept.astype(_few(1, True)), values
        if held.bits:
            found = {"indices_mask": mask, "indices_nonzero_data": indices, "lut": table}
            mask, rest = self.make.constexpr_lut_to_sparse(**found)
        return self.make.constexpr_sparse_to_dense(nonzero_data=rest, mask=mask)

    def on_levels(self, levels: Levels) -> Any:
        """Puts a tensor on levels."""
        x, wide = self.value(levels.source), levels.high > 127
        ends = (levels.low, levels.high)
        if ends not in ((0, 255), (-128, 127), (-127, 127)):
            low, high = (np.float32((end - levels.zero) * levels.scale) for end in ends)
            x = self.make.clip(x=x, alpha=low, beta=high)
        told = {
            "scale": np.float32(levels.scale),
            "zero_point": (np.uint8 if wide else np.int8)(levels.zero),
        }
        codes = self.make.quantize(input=x, output_dtype="uint8" if wide else "int8", **told)
        return self.make.dequantize(input=codes, **told)


def _few(bits: int, positive: bool) -> Any:
    """NumPy's type for MIL's integers of few bits."""
    from coremltools.converters.mil.mil import types

    if bits == 8:
        return np.uint8 if positive else np.int8
    return getattr(types, f"np_{'uint' if positive else 'int'}{bits}_dtype")


def _type(dtype: torch.dtype) -> Any:
    from coremltools.converters.mil.mil import types

    found = {torch.float32: types.fp32, torch.int64: types.int32, torch.int32: types.int32, torch.bool: types.bool}
    if dtype not in found:
        raise Unsupported(f"inputs of {dtype}")
    return found[dtype]


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps what the converter says of its own build from the user."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
