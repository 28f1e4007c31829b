"""Files for Paddle Lite: ONNX of the operators that its converter lists; never run here."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import ClassVar

from torch import nn

from lilliput.core.errors import ModelError
from lilliput.export.network import write_listed
from lilliput.file.artifact import Artifact

# X2Paddle's list of ONNX operators, docs/inference_model_convertor/op_list.md; it reads versions 9 to 11.
OPERATORS = frozenset((
    "Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat",
    "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "Div", "Elu",
    "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid", "Identity",
    "InstanceNormalization", "LRN", "LSTM", "LeakyRelu", "Less", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool",
    "MaxRoiPool", "Min", "Mul", "Neg", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "PRelu", "Pad",
    "Pow", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "Relu", "Reshape", "Resize", "RoiAlign", "ScatterND", "Shape", "Shrink", "Sigmoid", "Sign",
    "Sin", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub",
    "Sum", "Tanh", "Tile", "TopK", "Transpose", "Unsqueeze", "Upsample", "Where", "Xor",
))  # fmt: skip
OPSET = 11


@dataclass(frozen=True)
class Paddlelite:
    """Writes ONNX for Paddle Lite's converter, X2Paddle; never run here. `pip install 'lilliput[onnx]'`.

    For one example, weights as floats and activations not on levels: Paddle Lite quantizes by tools of its own. The
    converter doesn't install beside this PyTorch; the tests check the operators and, in ONNX Runtime, the numbers.
    """

    suffix: ClassVar[str] = ".onnx"
    timed: ClassVar[bool] = False

    def load(self, artifact: Artifact) -> nn.Module:
        """Refuses: its converter doesn't install here.

        Raises:
            ModelError: always.
        """
        raise ModelError("paddlelite only writes files, and was never run here: export one, and convert it by x2paddle")

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes the file, for `x2paddle --framework=onnx --model=... --to_lite=True`.

        Args:
            artifact: one with a graph.
            path: where to; appears whole or not at all.

        Raises:
            ModelError: no graph, or an operator that the converter doesn't list; names it.
            NotInstalled: onnx is missing.
        """
        write_listed(artifact, path, (OPERATORS, OPSET, "Paddle Lite's converter"))
