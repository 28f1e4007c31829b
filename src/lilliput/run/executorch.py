"""ExecuTorch: programs of PyTorch's engine for phones, lowered to XNNPACK; `load` runs them in its runtime."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

from torch import Tensor, nn

from lilliput.core.errors import ModelError, NotInstalled
from lilliput.export.network import network_of
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces
from lilliput.graph.ir import Graph
from lilliput.run.single import one_by_one


@dataclass(frozen=True)
class Executorch:
    """Writes .pte programs for XNNPACK, without the model's class. `pip install 'lilliput[executorch]'`.

    For one example at a time. Levels of 8 bits are spelled as PyTorch's quantizers spell them, with Lilliput's own
    scales: layers whose weights (`quantize/uniform`, symmetric), inputs and results have 8 bits are computed with
    integers; others have floats for weights. Converting takes some seconds; the package is large (0.6 GB with all that
    it needs).
    """

    suffix: ClassVar[str] = ".pte"
    timed: ClassVar[bool] = False

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that computes what the compressed model does.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: no graph, or ExecuTorch can't take it.
            NotInstalled: executorch is missing.
        """
        data = _translated(artifact)
        assert artifact.graph is not None
        return ExecutorchModule(artifact.graph, data)

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes the program.

        Args:
            artifact: one with a graph.
            path: where to; appears whole or not at all.

        Raises:
            Errors: as `load`.
        """
        write_pieces(path, (_translated(artifact),))


class ExecutorchModule(nn.Module):
    """Runs a program one example at a time; it holds no parameters.

    Args:
        graph: whose calls it takes.
        data: the program.
    """

    def __init__(self, graph: Graph, data: bytes) -> None:
        super().__init__()
        self.__dict__["graph"], self.__dict__["held"] = graph, opened(data)
        self.__dict__["lock"] = threading.Lock()
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the original model did in eval mode; see `GraphModule.forward`.

        Raises:
            ModelError: the runtime fails.
        """
        graph, method = self.__dict__["graph"], self.__dict__["held"][-1]

        def call(given: list[Tensor]) -> list[Tensor]:
            inputs = [x.detach().to(s.dtype).contiguous() for x, s in zip(given, graph.inputs)]
            try:
                return [one.clone() for one in method.execute(inputs)]
            except RuntimeError as error:
                raise ModelError(f"ExecuTorch fails at this network: {' '.join(str(error).split())[:200]}") from None

        # One method runs one input at a time.
        with self.__dict__["lock"]:
            return one_by_one(graph, args, kwargs, call)


def opened(data: bytes) -> tuple[Any, ...]:
    """Opens a program: its bytes, from which it reads, itself, and its method.

    Args:
        data: of a .pte file.

    Raises:
        ModelError: a backend refuses what the compiler made.
        NotInstalled: executorch is missing.
    """
    try:
        # Levels outside of what XNNPACK takes have kernels of their own.
        import executorch.kernels.quantized  # noqa: F401
        from executorch.runtime import Runtime
    except ImportError:
        from lilliput.export.executorch import INSTALL

        raise NotInstalled(INSTALL) from None
    try:
        program = Runtime.get().load_program(data)
        return data, program, program.load_method("forward")
    except RuntimeError as error:
        raise ModelError(f"ExecuTorch's runtime refuses the program: {' '.join(str(error).split())[:200]}") from None


def _translated(artifact: Artifact) -> bytes:
    from lilliput.export.executorch import to_executorch

    graph, tensors = network_of(artifact, "ExecuTorch")
    data = to_executorch(graph, tensors, artifact.weights)
    # A program that its own runtime refuses is none.
    opened(data)
    return data
