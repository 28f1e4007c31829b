"""Files for TensorRT: ONNX with the codes and scales that it asks for; never run here."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import ClassVar

from torch import nn

from lilliput.core.errors import ModelError, NotInstalled
from lilliput.export.network import network_of
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces


@dataclass(frozen=True)
class Tensorrt:
    """Writes ONNX for TensorRT; never run here: TensorRT needs a GPU. `pip install 'lilliput[onnx]'`.

    Codes are int8 around zero, weights of 8 bits have a scale a row, biases are floats. Activations on affine levels,
    or on 0 to 255, get up to twice as coarse ones: quantize them with `form = "symmetric"` for Lilliput's own numbers.
    The tests check the file's structure, and compare its numbers with Lilliput's in ONNX Runtime.
    """

    suffix: ClassVar[str] = ".onnx"
    timed: ClassVar[bool] = False

    def load(self, artifact: Artifact) -> nn.Module:
        """Refuses: there is no TensorRT for CPUs.

        Raises:
            ModelError: always.
        """
        raise ModelError("tensorrt only writes files, and was never run here: export one, and build it by trtexec")

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes the ONNX file, for `trtexec --onnx=... --stronglyTyped`.

        Args:
            artifact: one with a graph.
            path: where to; appears whole or not at all.

        Raises:
            ModelError: no graph, or an operator that has no counterpart in ONNX.
            NotInstalled: onnx is missing.
        """
        graph, tensors = network_of(artifact, "TensorRT")
        try:
            from lilliput.export.tensorrt import to_tensorrt
        except ImportError as error:
            raise NotInstalled(f"this engine needs onnx: pip install 'lilliput[onnx]' ({error})") from None
        write_pieces(path, (to_tensorrt(graph, tensors, artifact.weights).SerializeToString(),))
