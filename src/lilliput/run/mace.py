"""Files for MACE: ONNX of the operators that its converter lists; never run here."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import ClassVar

from torch import nn

from lilliput.core.errors import ModelError
from lilliput.export.network import write_listed
from lilliput.file.artifact import Artifact

# The list of MACE's tools/python/transform/onnx_converter.py, without those of Kaldi.
OPERATORS = frozenset((
    "Abs", "Add", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant",
    "Conv", "ConvTranspose", "DepthToSpace", "Div", "Dropout", "Equal", "Flatten", "Gather", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Identity", "LSTM", "LeakyRelu", "LogSoftmax", "MatMul", "Max",
    "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "Relu", "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "SpaceToDepth", "Split", "Sqrt",
    "Squeeze", "Sub", "Sum", "Tanh", "Transpose", "Unsqueeze", "Upsample",
))  # fmt: skip
OPSET = 9


@dataclass(frozen=True)
class Mace:
    """Writes ONNX for Xiaomi's MACE; never run here. `pip install 'lilliput[onnx]'`.

    For one example, weights as floats and activations not on levels: MACE quantizes by tools of its own. Its converter
    isn't on PyPI; the tests check the operators and, in ONNX Runtime, the numbers.
    """

    suffix: ClassVar[str] = ".onnx"
    timed: ClassVar[bool] = False

    def load(self, artifact: Artifact) -> nn.Module:
        """Refuses: it doesn't install here.

        Raises:
            ModelError: always.
        """
        raise ModelError("mace only writes files, and was never run here: export one, and convert it by MACE's tools")

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes the file, for a model of `platform: onnx` in MACE's YAML.

        Args:
            artifact: one with a graph.
            path: where to; appears whole or not at all.

        Raises:
            ModelError: no graph, or an operator that the converter doesn't list; names it.
            NotInstalled: onnx is missing.
        """
        write_listed(artifact, path, (OPERATORS, OPSET, "MACE's converter"))
