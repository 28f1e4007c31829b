"""C: one C99 file without dependencies, weights in it, for microcontrollers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from lilliput.core.errors import ModelError
from lilliput.export.c import to_c
from lilliput.export.lower import lowered
from lilliput.export.network import network_of
from lilliput.export.steps import Steps
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces
from lilliput.graph.ir import Graph
from lilliput.graph.run import bind_inputs, check_inputs
from lilliput.graph.structure import join


@dataclass(frozen=True)
class C:
    """Writes a network as C; `load` gives what the C file computes, bit for bit, in NumPy, for comparisons.

    Weights take 8 bits (`quantize/uniform` and others on few levels), 2 (ternary), 1 (binary), or a sign and an
    exponent (powers of two); other weights stay float32. Where a layer's input is on levels or is signs, products are
    summed in 32-bit integers.
    """

    suffix: ClassVar[str] = ".c"

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that computes what the C file does, slowly.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: no graph, or something that C has no counterpart of.
        """
        steps = _steps(artifact)
        assert artifact.graph is not None
        return Computed(artifact.graph, steps)

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes the C file; its function is named after it: `net.c` holds `net_run(input, output)`.

        Args:
            artifact: one with a graph.
            path: where to; appears whole or not at all.

        Raises:
            ModelError: as `load`; or the file's name can't be one of C.
        """
        name = Path(path).stem
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]{0,40}", name) or Path(path).suffix != ".c":
            raise ModelError(f"{path}: must be a name of C and end in .c, as its function is named after it")
        write_pieces(path, (to_c(_steps(artifact), name).encode(),))


class Computed(nn.Module):
    """Runs steps one example at a time.

    Args:
        graph: whose calls it takes.
        steps: of the network.
    """

    def __init__(self, graph: Graph, steps: Steps) -> None:
        super().__init__()
        self.__dict__["graph"], self.__dict__["steps"] = graph, steps
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the original model did in eval mode; see `GraphModule.forward`."""
        graph = self.__dict__["graph"]
        inputs = bind_inputs(graph, args, kwargs)
        check_inputs(graph.inputs, graph.symbols, inputs)
        rows = [torch.from_numpy(self.__dict__["steps"](row.detach().numpy())) for row in inputs[0]]
        found = torch.stack(rows)
        return join(graph.output, lambda _: found)


def _steps(artifact: Artifact) -> Steps:
    return lowered(*network_of(artifact, "C"), artifact.weights)
