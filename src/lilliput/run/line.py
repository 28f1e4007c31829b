"""A network as a line of parts, each run in its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import NotInstalled
from lilliput.export.sizes import Info
from lilliput.graph.execute import run
from lilliput.graph.ir import Graph, InputRef, NodeRef, Ref, TensorRef, refs_of
from lilliput.graph.layers import arguments_of
from lilliput.graph.program import Program
from lilliput.graph.structure import join
from lilliput.run.pieces import Piece

Call = Callable[[list[Any]], list[Any]]
"""From what a piece takes to what it gives."""


@dataclass(frozen=True)
class Part:
    """A piece and what runs it.

    Attributes:
        piece: of the graph.
        call: runs it.
        words: what that is, for listings.
    """

    piece: Piece
    call: Call
    words: str


class Line:
    """Parts one after another.

    Args:
        graph: whose inputs and output they have.
        parts: in order.
        tensors: for an output that is a parameter.
    """

    def __init__(self, graph: Graph, parts: Sequence[Part], tensors: Mapping[str, Tensor]) -> None:
        self.graph, self.parts, self.tensors = graph, tuple(parts), tensors
        kept = set(refs_of(graph.output))
        last = {ref: place for place, part in enumerate(self.parts) for ref in part.piece.takes}
        self.gone: list[list[Ref]] = [[] for _ in self.parts]
        for ref, place in last.items():
            if isinstance(ref, NodeRef) and ref not in kept:
                self.gone[place].append(ref)
        # One part that takes the inputs and gives the output, as they are.
        piece = self.parts[0].piece if len(self.parts) == 1 else None
        plain = piece is not None and piece.takes == tuple(InputRef(place) for place in range(len(graph.inputs)))
        self.alone = self.parts[0].call if plain and piece is not None and piece.gives == (graph.output,) else None

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """Runs the parts; returns what the graph returns."""
        if self.alone is not None:
            return self.alone(list(inputs))[0]
        values: dict[Any, Any] = {}
        for part, gone in zip(self.parts, self.gone):
            given = [values[r] if isinstance(r, NodeRef) else inputs[r.index] for r in part.piece.takes]  # type: ignore[union-attr]
            values.update(zip(part.piece.gives, part.call(given)))
            for ref in gone:
                del values[ref]
        return join(self.graph.output, lambda ref: self._value(ref, values, inputs))

    def _value(self, ref: Ref, values: Mapping[Any, Any], inputs: Sequence[Tensor]) -> Any:
        if isinstance(ref, TensorRef):
            return self.tensors[ref.name]
        return values[ref] if isinstance(ref, NodeRef) else inputs[ref.index]


def in_torch(piece: Piece, tensors: Mapping[str, Tensor]) -> Call:
    """Runs a piece with torch's own operators."""
    program = Program(piece.graph)
    held = [tensors[name] for name in program.tensors]
    places = [program.place(ref) for ref in refs_of(piece.graph.output)]

    def call(given: list[Any]) -> list[Any]:
        values = run(program, given, held)
        return [values[place] for place in places]

    return call


def in_onnx(piece: Piece, tensors: Mapping[str, Tensor], packed: Mapping[str, Any], few: int = 0) -> Call:
    """Runs a piece in ONNX Runtime.

    Args:
        piece: of a graph.
        tensors: what it uses, by name.
        packed: weights as an artifact holds them.
        few: how linear layers with weights of 2, 4 or 8 bits are computed, see `to_onnx`.

    Raises:
        ModelError: it has no counterpart in ONNX.
        NotInstalled: a package is missing.
    """
    from lilliput.export.onnx import to_onnx

    session = session_of(to_onnx(piece.graph, tensors, packed, piece.infos, few=few).SerializeToString())
    names = {spec.name: place for place, spec in enumerate(piece.graph.inputs)}
    fed = [(entry.name, names[entry.name]) for entry in session.get_inputs()]
    dtypes = [spec.dtype for spec in piece.graph.inputs]
    numbers = [not isinstance(piece.infos[ref.index], Info) for ref in refs_of(piece.graph.output)]  # type: ignore[union-attr]

    wanted = [entry.name for entry in session.get_outputs()]
    if len(fed) == len(wanted) == 1 and not numbers[0]:
        (name, place), dtype = fed[0], dtypes[fed[0][1]]

        def alone(given: list[Any]) -> list[Any]:
            return [torch.from_numpy(session.run(wanted, {name: _array(given[place], dtype)})[0])]

        return alone

    def call(given: list[Any]) -> list[Any]:
        feed = {name: _array(given[place], dtypes[place]) for name, place in fed}
        found = session.run(wanted, feed)
        return [int(a) if whole else torch.from_numpy(a) for a, whole in zip(found, numbers)]

    return call


def _array(tensor: Tensor, dtype: torch.dtype) -> Any:
    """The tensor's memory as an array; copied only where it isn't in order."""
    if tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    return (tensor if tensor.is_contiguous() else tensor.contiguous()).detach().numpy()


def session_of(data: bytes) -> Any:
    """Opens a model in ONNX Runtime, with as many threads as torch has.

    Args:
        data: the serialized model.

    Raises:
        NotInstalled: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError:
        raise NotInstalled("this engine needs onnxruntime: pip install 'lilliput[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def in_kernel(
    piece: Piece, module: nn.Module, graph: Graph, tensors: Mapping[str, Tensor], rectify: bool = False
) -> Call:
    """Runs a layer by a kernel, see `kernels.found`.

    Args:
        piece: the layer alone.
        module: the kernel.
        graph: the whole graph.
        tensors: of the graph, for the bias.
        rectify: whether the kernel also does the ReLU behind the layer.
    """
    bias = arguments_of(graph.nodes[piece.nodes[0]]).get("bias")
    held = tensors[bias.name] if isinstance(bias, TensorRef) else None

    def call(given: list[Any]) -> list[Any]:
        return [module(given[0], held, True) if rectify else module(given[0], held)]

    return call
