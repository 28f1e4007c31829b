"""Files for TensorRT have the structure that it asks for; their numbers are those of Lilliput, in ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import ModelError

SYMMETRIC = """[[rule]]
steps = [{method = "quantize/uniform", bits = 8}]
activations = {method = "quantize/activations/uniform", bits = 8, form = "symmetric"}
"""
AFFINE = '[[rule]]\nsteps = [{method = "quantize/uniform", bits = 8}]\nactivations = "uniform:8"'
UNSIGNED = SYMMETRIC.replace("symmetric", "unsigned")
FEW = SYMMETRIC.replace("bits = 8, form", "bits = 4, form")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.places = nn.Linear(4, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.inner(x))
        return self.head(x.mean((2, 3))), self.places(x)


def data():
    return torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def written(text, folder):
    torch.manual_seed(0)
    artifact = lilliput.compress(Residual().eval(), lilliput.Recipe.loads(text), [(data(), None)])
    artifact.export(folder / "net.onnx", engine="tensorrt")
    return artifact, onnx.load(folder / "net.onnx")


@pytest.mark.parametrize("text", [SYMMETRIC, AFFINE, UNSIGNED, FEW], ids=["symmetric", "affine", "unsigned", "4 bits"])
def test_structure(text, tmp_path):
    _, model = written(text, tmp_path)
    onnx.checker.check_model(model, full_check=True)
    held = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    quantized = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) == 4
    for node in quantized:
        assert held[node.input[2]].dtype == np.int8
        assert held[node.input[2]] == 0
        assert held[node.input[1]].size == 1
    weights = 0
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held:
            codes, scale = held[node.input[0]], held[node.input[1]]
            assert codes.dtype == np.int8
            assert codes.min() >= -127
            assert scale.shape == codes.shape[:1]
            assert {a.name: a.i for a in node.attribute} == {"axis": 0}
            weights += 1
        if node.op_type in {"Conv", "Gemm"}:
            # Both operands come from codes, the bias is floats.
            assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert held[node.input[2]].dtype == np.float32
    assert weights == 4
    assert not any(array.dtype == np.int32 for array in held.values())


@pytest.mark.parametrize(
    ("text", "most"), [(SYMMETRIC, 1e-5), (FEW, 1e-5), (UNSIGNED, 0.02), (AFFINE, 0.02)],
    ids=["symmetric", "4 bits", "unsigned", "affine"],
)  # fmt: skip
def test_numbers(text, most, tmp_path):
    """Symmetric levels are Lilliput's own, others coarser by less than one bit."""
    artifact, model = written(text, tmp_path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = lilliput.load(artifact, engine="dense")(data())
    for one, two in zip(session.run(None, {model.graph.input[0].name: data().numpy()}), wanted):
        assert (torch.from_numpy(one) - two).norm() <= most * two.norm()


def test_it_is_only_written(tmp_path):
    artifact, _ = written(SYMMETRIC, tmp_path)
    with pytest.raises(ModelError, match="never run here"):
        lilliput.load(artifact, engine="tensorrt")
