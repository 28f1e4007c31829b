"""LiteRT (TensorFlow Lite): files for phones, with Lilliput's own scales; `load` runs them in LiteRT's interpreter."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lilliput.core.errors import ModelError, NotInstalled
from lilliput.export.network import network_of
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces
from lilliput.graph.ir import Graph
from lilliput.run.single import one_by_one

INSTALL = "this engine needs ai-edge-litert: pip install 'lilliput[litert]'"


@dataclass(frozen=True)
class Litert:
    """Google's engine for phones; networks for pictures of one size. `pip install 'lilliput[litert]'`.

    Weights of 8 bits (`quantize/uniform`, symmetric) stay so. A layer whose input and result are on 8-bit levels is
    computed with integers; `outputs` in a recipe puts results on levels where residual sums take them. Files hold one
    example; `load` runs a batch one after another. Writing needs the small package `flatbuffers` alone.
    """

    suffix: ClassVar[str] = ".tflite"

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that computes what the compressed model does.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: no graph, or an operator without a counterpart.
            NotInstalled: ai-edge-litert or flatbuffers is missing.
        """
        package()
        data = _translated(artifact)
        assert artifact.graph is not None
        return LitertModule(artifact.graph, data)

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes the .tflite file.

        Args:
            artifact: one with a graph.
            path: where to; appears whole or not at all.

        Raises:
            ModelError: no graph, or an operator without a counterpart.
            NotInstalled: flatbuffers is missing.
        """
        write_pieces(path, (_translated(artifact),))


class LitertModule(nn.Module):
    """Runs a file one example at a time; it holds no parameters.

    Args:
        graph: whose calls it takes.
        data: the file.
    """

    def __init__(self, graph: Graph, data: bytes) -> None:
        super().__init__()
        try:
            interpreter = package()(model_content=data, num_threads=torch.get_num_threads())
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"LiteRT can't run the network: {' '.join(str(error).split())[:300]}") from None
        self.__dict__["graph"], self.__dict__["interpreter"] = graph, interpreter
        self.__dict__["lock"] = threading.Lock()
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the original model did in eval mode; see `GraphModule.forward`."""
        graph, interpreter = self.__dict__["graph"], self.__dict__["interpreter"]
        places, wanted = interpreter.get_input_details(), interpreter.get_output_details()

        def call(given: list[Tensor]) -> list[Tensor]:
            for entry, spec, x in zip(places, graph.inputs, given):
                interpreter.set_tensor(entry["index"], x.to(spec.dtype).detach().cpu().contiguous().numpy())
            interpreter.invoke()
            return [torch.from_numpy(interpreter.get_tensor(entry["index"])) for entry in wanted]

        # One interpreter runs one input at a time.
        with self.__dict__["lock"]:
            return one_by_one(graph, args, kwargs, call)


def package() -> Any:
    """Returns LiteRT's interpreter; NotInstalled without it."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise NotInstalled(INSTALL) from None
    return Interpreter


def _translated(artifact: Artifact) -> bytes:
    graph, tensors = network_of(artifact, "LiteRT")
    from lilliput.export.litert import to_litert

    return to_litert(graph, tensors, artifact.weights)
