"""ONNX Runtime: the graph as an ONNX model, on the CPU."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lilliput.core.errors import NotInstalled
from lilliput.export.few_bits import FLOATS, INTEGERS
from lilliput.export.network import network_of
from lilliput.export.sums import sums_of_levels
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces
from lilliput.graph.ir import Graph, NodeRef, refs_of
from lilliput.graph.run import bind_inputs, check_inputs
from lilliput.graph.structure import join


@dataclass(frozen=True)
class OnnxRuntime:
    """Two to four times as fast as plain PyTorch on most networks. `pip install 'lilliput[onnx]'`.

    Where a layer's input is on at most 256 levels and its weight in 8 bits, symmetric (`quantize/uniform`), it is
    computed with integers. Linear layers whose weights alone have 2, 4 or 8 bits keep these (one scale, or one a row
    or group of 16 k weights), by ONNX Runtime's own operator. Other weights are unpacked. As many threads as
    `torch.get_num_threads()` says when the network is loaded.

    Attributes:
        products: by what such layers multiply: `"integers"`, for which their inputs are put on 8-bit levels while they
            run, with an error of some 0.7 % of the result, and residual sums take the levels of the layers beside them;
            or `"floats"`, exact, where only 4 bits stay 4 bits and sums are of floats.
    """

    products: Literal["integers", "floats"] = "integers"
    suffix: ClassVar[str] = ".onnx"

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that computes what the compressed model does.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: no graph, or an operator that has no counterpart in ONNX.
            NotInstalled: onnxruntime or onnx is missing.
        """
        graph, data = _translated(artifact, self.products)
        return OnnxModule(graph, data)

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes the network as an ONNX file.

        Args:
            artifact: one with a graph.
            path: where to; appears whole or not at all.

        Raises:
            Errors: as `load`.
        """
        _, data = _translated(artifact, self.products)
        write_pieces(path, (data,))


class OnnxModule(nn.Module):
    """Runs a session of ONNX Runtime behind the calls of the original model; it holds no parameters.

    Args:
        graph: whose calls it takes.
        data: the serialized model.
    """

    def __init__(self, graph: Graph, data: bytes) -> None:
        super().__init__()
        runtime = _package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.__dict__["_graph"] = graph
        self.__dict__["_session"] = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the original model did in eval mode; see `GraphModule.forward`."""
        graph, session = self.__dict__["_graph"], self.__dict__["_session"]
        inputs = bind_inputs(graph, args, kwargs)
        check_inputs(graph.inputs, graph.symbols, inputs)
        names = [entry.name for entry in session.get_inputs()]
        given = dict(zip(_input_names(graph), zip(graph.inputs, inputs)))
        feed = {name: _array(given[name][1].to(given[name][0].dtype)) for name in names}
        results = iter([torch.from_numpy(array) for array in session.run(None, feed)])
        found = {id(ref): next(results) for ref in refs_of(graph.output)}
        return join(graph.output, lambda ref: _value(graph, ref, found[id(ref)]))


def _input_names(graph: Graph) -> list[str]:
    from lilliput.export.writer import input_name

    return [input_name(graph, index) for index in range(len(graph.inputs))]


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().numpy()


def _value(graph: Graph, ref: Any, result: Tensor) -> Any:
    """A number of open sizes comes back as a number."""
    if isinstance(ref, NodeRef) and graph.nodes[ref.index].operator.startswith(("sym.", "aten.sym_")):
        return int(result)
    return result


def _translated(artifact: Artifact, products: str) -> tuple[Graph, bytes]:
    graph, tensors = network_of(artifact, "ONNX")
    _package("onnx")
    from lilliput.export.onnx import to_onnx

    few = INTEGERS if products == "integers" else FLOATS
    if few == INTEGERS:
        graph = sums_of_levels(graph)
    assert artifact.graph is not None
    return artifact.graph, to_onnx(graph, tensors, artifact.weights, few=few).SerializeToString()


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotInstalled(f"this engine needs {name}: pip install 'lilliput[onnx]'") from None
