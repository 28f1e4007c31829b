"""A network as an ExecuTorch program for XNNPACK, its levels as operators that the backend computes with integers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import ModelError, NotInstalled
from lilliput.export.quantized import (
    Codes,
    Levels,
    coded_layers,
    levels_before,
    levels_in,
    multiplies,
    needed,
    requantized,
)
from lilliput.export.sizes import closed
from lilliput.graph.bounds import first_line
from lilliput.graph.ir import Graph, InputRef, NodeRef, TensorRef, map_refs, refs_of
from lilliput.graph.layers import arguments_of
from lilliput.graph.operators import operators

INSTALL = "this engine needs executorch: pip install 'lilliput[executorch]'"
EIGHT = (-128, 127)
_SHAPES = frozenset(
    f"aten.{name}" for name in ("flatten.using_ints", "view.default", "reshape.default", "max_pool2d.default")
)


def to_executorch(graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a .pte file, for one example.

    Args:
        graph: any graph whose results are tensors.
        tensors: what it uses, by name.
        packed: its weights as an artifact holds them, by name.

    Raises:
        ModelError: ExecuTorch can't take it.
        NotInstalled: executorch is missing.
    """
    try:
        with _quiet():
            import executorch.kernels.quantized  # noqa: F401
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
            from torch.ao.quantization.fx import _decomposed  # noqa: F401
    except ImportError:
        raise NotInstalled(INSTALL) from None
    fixed = closed(graph, tensors)
    module = Spelled(fixed, tensors, packed)
    given = tuple(torch.zeros([int(size) for size in spec.shape], dtype=spec.dtype) for spec in fixed.inputs)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, given)
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
    except Exception as error:  # whatever a converter of this size meets
        raise ModelError(f"ExecuTorch can't take the network: {first_line(error)}") from None


class Spelled(nn.Module):
    """Runs a graph of fixed sizes, levels spelled as ExecuTorch's backends know them.

    Args:
        graph: of fixed sizes.
        tensors: what it uses, by name.
        packed: its weights as an artifact holds them, by name.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Any]) -> None:
        super().__init__()
        levels = levels_in(graph)
        coded, _ = coded_layers(graph, packed, levels, sums=True)
        again = requantized(graph, levels)
        # XNNPACK has no product of integers with floats for results: such layers keep floats for weights.
        floats = {i: name for i in range(len(graph.nodes)) if i not in again and (name := multiplies(graph, i, levels))}
        coded = {name: codes for name, codes in coded.items() if name not in floats.values()}
        mixed = {i for i in range(len(graph.nodes)) if (name := multiplies(graph, i, levels)) and name not in coded}
        self.__dict__["mixed"] = mixed
        self.__dict__["graph"], self.__dict__["levels"] = graph, levels
        self.__dict__["names"] = names = {name: f"held_{place}" for place, name in enumerate(graph.tensors)}
        self.__dict__["coded"] = set(coded)
        for name, own in names.items():
            if name in coded:
                self._hold(own, coded[name])
            else:
                self.register_buffer(own, tensors[name].detach().clone())
        self.eval()

    def _hold(self, own: str, codes: Codes) -> None:
        scale = torch.from_numpy(codes.scale).expand(len(codes.codes)).clone()
        self.register_buffer(f"{own}_codes", torch.from_numpy(codes.codes).clone())
        self.register_buffer(f"{own}_scale", torch.where(scale > 0, scale, torch.ones(())))
        self.register_buffer(f"{own}_zero", torch.zeros(len(scale), dtype=torch.int64))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Computes what the graph does; its tensors one after another."""
        graph = self.__dict__["graph"]
        values: dict[int, Any] = {}

        def value(ref: Any) -> Any:
            if isinstance(ref, TensorRef):
                return self._tensor(ref.name)
            return inputs[ref.index] if isinstance(ref, InputRef) else values[ref.index]

        for index in needed(graph, self.__dict__["levels"]):
            held = self.__dict__["levels"].get(index)
            if held is not None:
                values[index] = self._leveled(held.source, held, value)
                continue
            node = graph.nodes[index]
            call = operators()[node.operator].call
            kwargs = {name: _plain(map_refs(argument, value)) for name, argument in node.kwargs.items()}
            if node.operator == "aten.mean.dim" and not arguments_of(node)["keepdim"]:
                # The backend takes means that keep their axes.
                source, axes = (arguments_of(node)[name] for name in ("self", "dim"))
                values[index] = value(source).mean(list(axes), keepdim=True).squeeze(list(axes))
                continue
            given = [_plain(map_refs(argument, value)) for argument in node.args]
            if index in self.__dict__["mixed"]:
                # Changes nothing, but the backend would take levels right before a layer for integers.
                before = levels_before(graph, arguments_of(node)["input"], self.__dict__["levels"])
                held = self.__dict__["levels"][before]
                given[0] = given[0].clamp(*((end - held.zero) * held.scale for end in (held.low, held.high)))
            values[index] = call(*given, **kwargs)
        return tuple(value(ref) for ref in refs_of(graph.output))

    def _leveled(self, ref: Any, held: Levels, value: Callable[[Any], Any]) -> Any:
        """A tensor on levels, put there before it gets another shape, too: directly behind the layer."""
        node = self.__dict__["graph"].nodes[ref.index] if isinstance(ref, NodeRef) else None
        if node is None or node.operator not in _SHAPES or ref.index in self.__dict__["levels"]:
            return on_levels(value(ref), held)
        source, *rest = node.args
        inner = self._leveled(source, held, value)
        others = (_plain(map_refs(argument, value)) for argument in rest)
        return on_levels(operators()[node.operator].call(inner, *others, **node.kwargs), held)

    def _tensor(self, name: str) -> Any:
        own = self.__dict__["names"][name]
        if name not in self.__dict__["coded"]:
            return getattr(self, own)
        parts = [getattr(self, f"{own}_{part}") for part in ("codes", "scale", "zero")]
        return torch.ops.quantized_decomposed.dequantize_per_channel(*parts, 0, -127, 127, torch.int8)


def on_levels(x: Tensor, levels: Levels) -> Any:
    """Puts a tensor on levels, by int8; codes from 0 to 255 are moved down by 128.

    Args:
        x: any tensor.
        levels: which.
    """
    moved = 128 if levels.high > EIGHT[1] else 0
    if (levels.low - moved, levels.high - moved) not in (EIGHT, (-127, 127)):
        x = x.clamp(*((end - levels.zero) * levels.scale for end in (levels.low, levels.high)))
    told = levels.scale, levels.zero - moved, *EIGHT, torch.int8
    ops = torch.ops.quantized_decomposed
    return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *told), *told)


def _plain(argument: Any) -> Any:
    return list(argument) if isinstance(argument, tuple) else argument


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps what the converter says of its own build from the user."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
