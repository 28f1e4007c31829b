"""The plain engine: weights are unpacked once and the graph runs as ordinary PyTorch operators.

Factorized layers stay factorized where that needs fewer multiplications.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lilliput.core.errors import ModelError
from lilliput.file.artifact import Artifact
from lilliput.graph.factors import factored
from lilliput.graph.run import GraphModule


@dataclass(frozen=True)
class Dense:
    """Runs everywhere that PyTorch does; the yardstick of all other engines."""

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that computes what the compressed model does, in eval mode.

        In its `state_dict` the factors of a layer stand in the place of the weight: `"0.weight.0"`, `"0.weight.1"`.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: if the artifact has no graph.
        """
        if artifact.graph is None:
            why = dict(artifact.facts.get("notes", {})).get("graph", "none")
            raise ModelError(f"the file holds no graph ({why}): use load(path, into=YourModel())")
        found = factored(artifact.graph, artifact.weights)
        state = {name: artifact.weight(name) for name in artifact.weights if name not in found.replaced}
        state |= {alias: state[name] for alias, name in artifact.aliases.items() if name in state}
        return GraphModule(found.graph, {**state, **found.tensors, **artifact.constants}).eval()
