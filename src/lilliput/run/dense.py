"""The plain engine: weights are unpacked once and the graph runs as ordinary PyTorch operators."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lilliput.core.errors import ModelError
from lilliput.file.artifact import Artifact
from lilliput.graph.run import GraphModule


@dataclass(frozen=True)
class Dense:
    """Runs everywhere that PyTorch does; the yardstick of all other engines."""

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that computes what the compressed model does, in eval mode.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: if the artifact has no graph.
        """
        if artifact.graph is None:
            why = dict(artifact.facts.get("notes", {})).get("graph", "none")
            raise ModelError(f"the file holds no graph ({why}): use load(path, into=YourModel())")
        return GraphModule(artifact.graph, {**artifact.state_dict(), **artifact.constants}).eval()
