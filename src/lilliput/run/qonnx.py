"""QONNX files, for FPGA flows such as FINN and hls4ml; `load` runs them in qonnx's own executor, slowly."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lilliput.core.errors import NotInstalled
from lilliput.export.network import network_of
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces
from lilliput.graph.ir import Graph
from lilliput.run.single import one_by_one

INSTALL = "this engine needs qonnx: pip install 'lilliput[qonnx]'"


@dataclass(frozen=True)
class Qonnx:
    """Writes ONNX with nodes `Quant` and `BipolarQuant`, weights and activations still on their levels.

    For one example at a time. Weights of 1 to 16 bits, signs and powers of two keep their levels; what has none with
    one scale, or one a row, stays floats. Writing needs `pip install 'lilliput[onnx]'`, running `'lilliput[qonnx]'`.
    """

    suffix: ClassVar[str] = ".onnx"
    timed: ClassVar[bool] = False

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that runs the file in qonnx's executor, an operator and an example after another.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: no graph, or an operator that has no counterpart.
            NotInstalled: qonnx or onnx is missing.
        """
        try:
            import qonnx  # noqa: F401
        except ImportError:
            raise NotInstalled(INSTALL) from None
        model = _translated(artifact)
        assert artifact.graph is not None
        return Executed(artifact.graph, model)

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes the file.

        Args:
            artifact: one with a graph.
            path: where to; appears whole or not at all.

        Raises:
            ModelError: as `load`.
            NotInstalled: onnx is missing.
        """
        write_pieces(path, (_translated(artifact).SerializeToString(),))


class Executed(nn.Module):
    """Runs a model of QONNX one example at a time.

    Args:
        graph: whose calls it takes.
        model: of one example.
    """

    def __init__(self, graph: Graph, model: Any) -> None:
        super().__init__()
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.infer_shapes import InferShapes

        self.__dict__["graph"] = graph
        self.__dict__["model"] = ModelWrapper(model).transform(InferShapes())
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the original model did in eval mode; see `GraphModule.forward`."""
        from qonnx.core.onnx_exec import execute_onnx

        graph, model = self.__dict__["graph"], self.__dict__["model"]
        names = [entry.name for entry in model.graph.input]

        def call(given: list[Tensor]) -> list[Tensor]:
            found = execute_onnx(model, {name: x.detach().numpy() for name, x in zip(names, given)})
            return [torch.from_numpy(found[entry.name]) for entry in model.graph.output]

        return one_by_one(graph, args, kwargs, call)


def _translated(artifact: Artifact) -> Any:
    graph, tensors = network_of(artifact, "QONNX")
    try:
        from lilliput.export.qonnx import to_qonnx
    except ImportError as error:
        raise NotInstalled(f"this engine needs onnx: pip install 'lilliput[onnx]' ({error})") from None
    return to_qonnx(graph, tensors, artifact.weights)
