"""What an exporter translates: an artifact's graph, factors in the places of factorized layers, and its tensors."""

from __future__ import annotations

from torch import Tensor

from lilliput.core.errors import ModelError
from lilliput.file.artifact import Artifact
from lilliput.graph.factors import factored
from lilliput.graph.ir import Graph


def network_of(artifact: Artifact, engine: str) -> tuple[Graph, dict[str, Tensor]]:
    """Returns the graph and all tensors that it uses, unpacked, by name.

    Args:
        artifact: one with a graph.
        engine: for whom, for the message.

    Raises:
        ModelError: it has none.
    """
    if artifact.graph is None:
        why = dict(artifact.facts.get("notes", {})).get("graph", "none")
        raise ModelError(f"the file holds no graph ({why}): {engine} needs one; compress with data or example=")
    found = factored(artifact.graph, artifact.weights)
    state = {name: artifact.weight(name) for name in artifact.weights if name not in found.replaced}
    return found.graph, {**state, **found.tensors, **artifact.constants}
