"""`Artifact`: everything that one file holds, as plain data."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lilliput.core.activations import Quantized
from lilliput.core.cut import Cut, Resize, Skip
from lilliput.core.errors import FileError, ModelError
from lilliput.core.method import find
from lilliput.core.packed import Packed, unpack
from lilliput.core.recipe import Recipe
from lilliput.file.message import one_line

if TYPE_CHECKING:
    from lilliput.graph.ir import Graph


@dataclass(frozen=True, eq=False)
class Artifact:
    """A compressed network: recipe, cuts, packed weights, graph and measurements.

    Attributes:
        weights: every parameter and buffer by its name in the state dict: packed, or a tensor that stays as it is.
        recipe: what was done.
        graph: the network as operators, which runs without the model's class; None where it couldn't be exported.
        constants: tensors of the graph that are in no state dict.
        cuts: which channels were removed, for loading into a fresh model of the user's class.
        sizes: attributes of the user's modules, as numbers of heads, that follow the cuts.
        aliases: names of tied weights -> the name under which they are stored.
        facts: measurements and notes, JSON-able: sizes before, error and reason by layer, what was kept and why.
        quantizers: how what goes into layers is quantized, by the layer's path: for loading into a model of the
            user's class. The graph does it by operators of its own.
        blocks: residual blocks that were removed whole, for loading into a fresh model.
    """

    weights: Mapping[str, Packed | Tensor]
    recipe: Recipe = field(default_factory=Recipe)
    graph: Graph | None = None
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    cuts: tuple[Cut, ...] = ()
    sizes: tuple[Resize, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    quantizers: Mapping[str, Quantized] = field(default_factory=dict)
    blocks: tuple[Skip, ...] = ()

    def weight(self, name: str) -> Tensor:
        """Unpacks one parameter or buffer.

        Args:
            name: one of `weights`.

        Raises:
            FileError: its parts don't fit one another, as in a damaged file.
        """
        try:
            return unpack(self.weights[name])
        except Exception as error:  # whatever a method meets in a stranger's parts
            raise FileError(f"weight '{name}' can't be unpacked: {one_line(error)}") from error

    def state_dict(self) -> dict[str, Tensor]:
        """Unpacks every parameter and buffer, tied ones under each of their names."""
        state = {name: self.weight(name) for name in self.weights}
        return state | {alias: state[name] for alias, name in self.aliases.items()}

    @property
    def report(self) -> Any:
        """A report of it, with `save("report.html")`; see `lilliput.report.collect.Report`."""
        # Imports run one way; the report's room lies further on.
        return importlib.import_module("lilliput.report.collect").Report(self)

    def save(self, path: str | PathLike[str]) -> int:
        """Writes the file atomically and returns its size in bytes; see `lilliput.file.write`."""
        from lilliput.file.write import write

        return write(self, path)

    def export(self, path: str | PathLike[str], engine: str = "onnxruntime") -> None:
        """Writes the network in the format of another engine, such as ONNX.

        Args:
            path: where to; appears whole or not at all.
            engine: one of `lilliput list run` that exports.

        Raises:
            ModelError: the engine can't take it, or has no format of its own.
        """
        made = find("run", engine)()
        if not callable(getattr(made, "export", None)):
            raise ModelError(f"the engine {engine} has no file format of its own to export to")
        made.export(self, path)
