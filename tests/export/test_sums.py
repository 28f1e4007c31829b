"""8-bit networks reach ONNX Runtime's integer operators: sums of residuals, and linear layers of rows."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import lilliput
from lilliput.export.quantized import levels_in
from lilliput.export.sums import ADD, sums_of_levels
from lilliput.run.onnxruntime import OnnxRuntime
from lilliput.testing.engine import INT8, compressed

OUTPUTS = INT8 + '\noutputs = {method = "quantize/activations/uniform", bits = 8}'


def optimized(artifact, folder, engine="onnxruntime"):
    """The operators that ONNX Runtime makes of a file."""
    artifact.export(folder / "net.onnx", engine=engine)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(folder / "net.onnx"), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def test_residual_sums_are_of_integers(tmp_path):
    artifact, x, whole = compressed("resnet18", OUTPUTS)
    kinds = optimized(artifact, tmp_path)
    # Eight sums; behind the last is a mean of floats.
    assert kinds.count("QLinearAdd") == 7
    assert kinds.count("Add") == 1
    assert "QGemm" in kinds
    with torch.no_grad():
        found, exact, dense = (
            lilliput.load(artifact, engine=engine)(x)
            for engine in ("onnxruntime", OnnxRuntime(products="floats"), "dense")
        )
    assert (exact - dense).norm() < 0.02 * dense.norm()
    # No further from the uncompressed network than the dense engine, within a half.
    assert (found - whole).norm() < 1.5 * (dense - whole).norm() + 0.02 * whole.norm()


def test_a_value_is_on_the_same_levels_for_sum_and_layer():
    graph = compressed("resnet18", OUTPUTS)[0].graph
    changed, levels = sums_of_levels(graph), levels_in(graph)
    sums = [place for place, node in enumerate(graph.nodes) if node.operator == ADD and len(list(node.refs())) == 2]
    assert len(sums) == 8
    for place in sums:
        assert all(ref.index in levels for ref in changed.nodes[place].refs())
    # A residual that goes to a layer, or through one, was taken as it is before.
    assert sum(all(ref.index in levels for ref in graph.nodes[place].refs()) for place in sums) == 3
    rest = [place for place in range(len(graph.nodes)) if place not in sums]
    assert all(graph.nodes[place] == changed.nodes[place] for place in rest)


@pytest.mark.parametrize("text", ["", INT8], ids=["floats", "no levels behind layers"])
def test_other_sums_stay(text):
    graph = compressed("vit", text)[0].graph
    assert sums_of_levels(graph) == graph


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_of_rows_multiply_integers(bias, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 64)
    artifact = lilliput.compress(nn.Linear(64, 8, bias).eval(), lilliput.Recipe.loads(INT8), [x])
    kinds = optimized(artifact, tmp_path)
    assert "QGemm" in kinds
    assert not {"Gemm", "MatMul"} & set(kinds)
    with torch.no_grad():
        found, wanted = (lilliput.load(artifact, engine=engine)(x) for engine in ("onnxruntime", "dense"))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
