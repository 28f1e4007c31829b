"""Files for converters that don't install here: operators that they list, and the right numbers in ONNX Runtime."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import ModelError
from lilliput.core.method import find
from lilliput.run import mace, paddlelite
from lilliput.testing.engine import INT8, compressed

ENGINES = {"paddlelite": paddlelite, "mace": mace}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "vgg", "efficientnet_lite"])
def test_only_listed_operators_and_the_same_numbers(engine, name, tmp_path):
    artifact, x, _ = compressed(name)
    artifact.export(tmp_path / "net.onnx", engine=engine)
    model = onnx.load(tmp_path / "net.onnx")
    assert {node.op_type for node in model.graph.node} <= ENGINES[engine].OPERATORS
    assert [entry.version for entry in model.opset_import] == [ENGINES[engine].OPSET]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {model.graph.input[0].name: x[:1].numpy()})[0])
    with torch.no_grad():
        wanted = lilliput.load(artifact, engine="dense")(x[:1])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_levels_of_activations_are_left_to_the_engine(engine, tmp_path):
    artifact, _, _ = compressed("vgg", INT8)
    artifact.export(tmp_path / "net.onnx", engine=engine)
    kinds = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear", "Round"}


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_not_listed_is_named(engine, tmp_path):
    artifact = lilliput.compress(nn.Mish(), lilliput.Recipe(), example=torch.rand(1, 3))
    with pytest.raises(ModelError, match="lists no Mish"):
        artifact.export(tmp_path / "net.onnx", engine=engine)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="never run here"):
        lilliput.load(artifact, engine=engine)


@pytest.mark.parametrize("engine", ["coreml", "tensorrt", *ENGINES])
def test_that_they_were_never_run_is_said_everywhere(engine):
    assert "never run here" in find("run", engine).__doc__
    assert "never run here" in __import__(f"lilliput.run.{engine}", fromlist=["x"]).__doc__
