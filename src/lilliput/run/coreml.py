"""Packages for Apple's Core ML, weights still compressed in them; never run here."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from torch import nn

from lilliput.core.errors import ModelError
from lilliput.export.network import network_of
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_folder


@dataclass(frozen=True)
class Coreml:
    """Writes .mlpackage for iPhones and Macs, iOS 18 and later; never run here. `pip install 'lilliput[coreml]'`.

    For one example. Weights are what is smallest and gives the same numbers: integers of 4 or 8 bits with a scale for
    each row or block, indices of 1 to 8 bits into a table, zeros left out. Activations on 8-bit levels are `quantize`
    and `dequantize`. Core ML runs on Apple's systems alone; the tests check the package's structure, and compute its
    operators as Apple's documents define them.

    Attributes:
        half: floats have 16 bits, as Apple's neural engine wants them; else 32.
    """

    half: bool = False
    suffix: ClassVar[str] = ".mlpackage"
    timed: ClassVar[bool] = False

    def load(self, artifact: Artifact) -> nn.Module:
        """Refuses: Core ML runs on Apple's systems alone.

        Raises:
            ModelError: always.
        """
        raise ModelError("coreml only writes files, and was never run here: export one, and open it by Xcode")

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes the package, a folder.

        Args:
            artifact: one with a graph.
            path: where to, ending in .mlpackage; appears whole or not at all.

        Raises:
            ModelError: no graph, an operator without a counterpart, or the path ends otherwise.
            NotInstalled: coremltools is missing.
        """
        if Path(path).suffix != self.suffix:
            raise ModelError(f"{path}: Core ML's packages end in {self.suffix}")
        graph, tensors = network_of(artifact, "Core ML")
        from lilliput.export.coreml import to_coreml

        model = to_coreml(graph, tensors, artifact.weights, self.half)
        with TemporaryDirectory() as folder:
            made = Path(folder) / "net.mlpackage"
            model.save(str(made))
            write_folder(path, made)
