"""Other engines give what the dense one gives; `bench` sets them beside the uncompressed network."""

import importlib.util

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import ModelError
from lilliput.run import weigh
from lilliput.run.openvino import Openvino
from lilliput.run.torch_sparse import TorchSparse

ENGINES = ["torch_sparse", "onnxruntime"] + ["openvino"] * (importlib.util.find_spec("openvino") is not None)
INT8 = '[[rule]]\nsteps = [{method = "quantize/uniform", bits = 8}]\nactivations = "uniform:8"'
SPARSE = '[[rule]]\nsteps = [{method = "prune/magnitude", sparsity = 0.8}]'
FACTORS = '[[rule]]\nlayers = "linear"\nsteps = [{method = "factorize/svd", rank = 3}]'


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=4),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.ReLU(),
        nn.Linear(16, 5, bias=False),
    ).eval()


def batches():
    torch.manual_seed(1)
    return [torch.randn(6, 3, 8, 8) for _ in range(2)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", [INT8, SPARSE, FACTORS, ""], ids=["int8", "sparse", "factors", "nothing"])
def test_gives_what_dense_gives(engine, text):
    artifact = lilliput.compress(network(), lilliput.Recipe.loads(text), batches())
    net, dense = (lilliput.load(artifact, engine=name) for name in (engine, "dense"))
    for x in (batches()[1], batches()[0][:1]):
        with torch.no_grad():
            apart = (net(x) - dense(x)).norm() / dense(x).norm()
        assert apart < (0.02 if text == INT8 else 1e-4)


def test_only_layers_with_many_zeros_are_sparse():
    artifact = lilliput.compress(network(), lilliput.Recipe.loads(SPARSE), batches())
    net = lilliput.load(artifact, engine="torch_sparse")
    # The grouped convolution isn't.
    assert ["CSR" in line for line in net.lines] == [True, True, False, True, True]
    assert not any("CSR" in line for line in lilliput.load(artifact, engine=TorchSparse(least=0.9)).lines)


@pytest.mark.skipif("openvino" not in ENGINES, reason="openvino isn't installed")
def test_openvino_files_are_read_by_openvino_and_hold_integers(tmp_path):
    import openvino

    artifact = lilliput.compress(network(), lilliput.Recipe.loads(INT8), batches())
    artifact.export(tmp_path / "net.xml", engine="openvino")
    x = batches()[0]
    found = openvino.Core().compile_model(str(tmp_path / "net.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
        [x.numpy()]
    )
    with torch.no_grad():
        wanted = lilliput.load(artifact, engine="dense")(x)
    assert (torch.from_numpy(found[0]) - wanted).norm() < 0.02 * wanted.norm()
    assert 'element_type="i8"' in (tmp_path / "net.xml").read_text()
    with pytest.raises(ModelError, match=r"end in \.xml"):
        artifact.export(tmp_path / "net.bin", engine="openvino")


def test_bench_sets_engines_side_by_side(tmp_path):
    artifact = lilliput.compress(network(), lilliput.Recipe.loads(SPARSE), batches())
    artifact.save(tmp_path / "net.safetensors")
    found = lilliput.bench(tmp_path / "net.safetensors", network(), engines=["native", "dense"], memory=False, rounds=3)
    assert {(row.network, row.engine) for row in found.rows} == {
        (network, engine) for network in ("compressed", "uncompressed") for engine in ("native", "dense")
    }
    assert (found.yardstick, found.threads, found.inputs) == ("dense", torch.get_num_threads(), ((1, 3, 8, 8),))
    unit = next(row for row in found.rows if (row.network, row.engine) == ("uncompressed", "dense"))
    assert all(row.speed == pytest.approx(unit.seconds / row.seconds) for row in found.rows)
    assert [row.seconds for row in found.rows] == sorted(row.seconds for row in found.rows)
    assert unit.size > 5 * next(row.size for row in found.rows if row.network == "compressed") / 4
    assert len(found.layers) == 5


def test_an_engine_that_cannot_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.erfinv(x.clamp(-0.5, 0.5))

    artifact = lilliput.compress(Odd(), lilliput.Recipe(), example=torch.rand(2, 3))
    found = lilliput.bench(artifact, engines=["onnxruntime", "native"], memory=False, rounds=3)
    assert {row.engine for row in found.rows} == {"native"}
    assert any("onnxruntime" in note and "erfinv" in note for note in found.notes)


def test_memory_is_that_of_the_network(tmp_path):
    big = lilliput.compress(nn.Linear(2048, 2048), lilliput.Recipe(), example=torch.rand(1, 2048))
    big.save(tmp_path / "net.safetensors")
    assert 10e6 < weigh.weigh(tmp_path / "net.safetensors", "dense", 1) < 60e6
    assert weigh.weigh(tmp_path / "no.safetensors", "dense", 1) is None


@pytest.mark.skipif("openvino" not in ENGINES, reason="openvino isn't installed")
@pytest.mark.parametrize(("bits", "kind"), [(4, "u4"), (2, "u2"), (8, "u8")])
def test_openvino_keeps_few_bits(tmp_path, bits, kind):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 5)).eval(), torch.randn(3, 256)
    text = f'[[rule]]\nsteps = [{{method = "quantize/uniform", bits = {bits}, per = "group", group = 32}}]'
    artifact = lilliput.compress(model, lilliput.Recipe.loads(text), example=x)
    artifact.export(tmp_path / "net.xml", engine="openvino")
    assert f'element_type="{kind}"' in (tmp_path / "net.xml").read_text()
    assert (tmp_path / "net.bin").stat().st_size < (256 + 5) * 96 * (bits / 8 + 4 / 32 + 1 / 32) + 2000
    wanted = lilliput.load(artifact, engine="dense")(x).detach()
    for products, near in (("integers", 0.03), ("floats", 1e-5)):
        found = lilliput.load(artifact, engine=Openvino(products=products))(x)
        assert (found - wanted).norm() < near * wanted.norm()


@pytest.mark.skipif("openvino" not in ENGINES, reason="openvino isn't installed")
def test_an_input_with_two_names_is_found_by_its_own():
    """OpenVINO drops a cast to float64 and calls the input by both names; the set of names has no order."""
    from lilliput.quantize.activations.log import Log

    torch.manual_seed(0)
    model, x = network().eval(), torch.randn(2, 3, 8, 8)
    recipe = lilliput.Recipe((lilliput.Rule(activations=Log(calibrated=True)),))
    artifact = lilliput.compress(model, recipe, [x])
    net, dense = (lilliput.load(artifact, engine=name) for name in ("native", "dense"))
    assert torch.allclose(net(x), dense(x), atol=1e-5)
