"""What an exporter translates: an artifact's graph, factors in the places of factorized layers, and its tensors."""

from __future__ import annotations

from os import PathLike

from torch import Tensor

from lilliput.core.errors import ModelError, NotInstalled
from lilliput.export.quantized import without_levels
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces
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


def write_listed(artifact: Artifact, path: str | PathLike[str], how: tuple[frozenset[str], int, str]) -> None:
    """Writes ONNX of listed operators, see `export.listed`.

    Args:
        artifact: one with a graph.
        path: where to.
        how: the list, the version of ONNX, and whose list it is.

    Raises:
        ModelError: no graph, or an operator that isn't on the list; names it.
        NotInstalled: onnx is missing.
    """
    graph, tensors = network_of(artifact, how[2])
    try:
        from lilliput.export.listed import to_listed
    except ImportError as error:
        raise NotInstalled(f"this engine needs onnx: pip install 'lilliput[onnx]' ({error})") from None
    write_pieces(path, (to_listed(without_levels(graph), tensors, *how).SerializeToString(),))
