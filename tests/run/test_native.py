"""The default engine gives what the dense one gives, whatever runs its layers, and says what that is."""

import copy
import warnings

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import LilliputWarning, MethodError
from lilliput.kernels import found
from lilliput.run import choice, native
from lilliput.run.native import Native, NativeModule

RECIPES = {
    "int8, static activations": '[[rule]]\nsteps = ["quantize/uniform:8"]\nactivations = "uniform:8"',
    "pruned and shared": (
        '[[rule]]\nsteps = [{method = "prune/magnitude", sparsity = 0.8}, {method = "share/kmeans", bits = 4}]'
    ),
    "factorized": '[[rule]]\nlayers = "linear"\nsteps = [{method = "factorize/svd", rank = 3}]',
    "two bits": '[[rule]]\nsteps = [{method = "quantize/uniform", bits = 2}]',
    "ternary": '[[rule]]\nsteps = ["quantize/ternary"]',
    "binary": '[[rule]]\nskip = "first and last"\nsteps = ["quantize/binary"]\nactivations = "binary"',
    "nothing": "",
}


class Branching(nn.Module):
    """A residual sum, a split, sizes that follow the input, and two outputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = self.first(x).relu()
        y = y + self.second(y)
        left, right = y.split(4, 1)
        rows = torch.cat([left, right], 1).reshape(x.shape[0], 8, -1)
        return {"scores": self.head(rows.mean(2)), "rows": rows}


def network():
    torch.manual_seed(0)
    return Branching().eval()


def batches():
    torch.manual_seed(1)
    return [torch.randn(6, 3, 8, 8) for _ in range(2)]


def compressed(name):
    text = RECIPES[name].replace('"quantize/uniform:8"', '{method = "quantize/uniform", bits = 8}')
    text = text.replace('["quantize/ternary"]', '[{method = "quantize/ternary"}]')
    text = text.replace('["quantize/binary"]', '[{method = "quantize/binary"}]')
    return lilliput.compress(network(), lilliput.Recipe.loads(text), batches())


def apart(one, two):
    """Relative distance of two outputs."""
    return max(float((one[k] - two[k]).norm() / two[k].norm()) for k in two)


@pytest.mark.parametrize("name", RECIPES)
def test_gives_what_dense_gives_at_every_batch(name, tmp_path):
    artifact = compressed(name)
    artifact.save(tmp_path / "net.safetensors")
    net, dense = lilliput.load(tmp_path / "net.safetensors"), lilliput.load(artifact, engine="dense")
    assert isinstance(net, NativeModule)
    assert net.chosen.line is not None, net.lines
    for batch in (1, 3, 6):
        x = batches()[1][:batch]
        for _ in range(2):
            # An activation near the border of two levels may fall to the other one.
            assert apart(net(x), dense(x)) < (0.02 if "activations" in RECIPES[name] else 1e-4)
    assert net.lines[0].startswith("first.weight")
    assert net.state_dict().keys() == dense.state_dict().keys()


def test_no_gain_is_said():
    net = lilliput.load(compressed("two bits"))
    assert net.gain is not None
    assert ("no gain" in net.lines[-1]) == (net.gain < choice.GAIN)


def test_gradients_changes_and_copies_run_as_dense_does():
    artifact = compressed("two bits")
    net, dense = lilliput.load(artifact), lilliput.load(artifact, engine="dense")
    x = batches()[0]
    before = net(x)["scores"]
    assert not before.requires_grad
    net.requires_grad_()
    net(x)["scores"].sum().backward()
    assert net.get_parameter("head.weight").grad is not None
    with torch.no_grad():
        for module in (net, dense):
            module.get_parameter("head.bias").add_(1.0)
        assert torch.equal(net(x)["scores"], dense(x)["scores"])
    assert apart(copy.deepcopy(net)(x), dense(x)) == 0
    assert net.double()(x.double())["scores"].dtype == torch.float64


def test_bad_inputs_are_refused_as_dense_does():
    net = lilliput.load(compressed("two bits"))
    with pytest.raises(lilliput.core.errors.DataError, match="must have shape"):
        net(torch.randn(2, 4, 8, 8))


def test_without_onnx_runtime_torch_runs_it_and_says_so(monkeypatch):
    artifact = compressed("int8, static activations")
    monkeypatch.setattr(choice, "installed", lambda package="onnxruntime": False)
    monkeypatch.setattr(choice, "programs", lambda *_: None)
    monkeypatch.setattr(native, "_told", [])
    with pytest.warns(LilliputWarning, match="lilliput\\[onnx\\]"):
        net = lilliput.load(artifact)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lilliput.load(artifact)
    assert all("torch" in line for line in net.lines[:3])
    assert torch.equal(net(batches()[0])["scores"], lilliput.load(artifact, engine="dense")(batches()[0])["scores"])


class Product(nn.Module):
    """A kernel that multiplies by what the weight unpacks to."""

    def __init__(self, packed, slip=0.0):
        super().__init__()
        self.register_buffer("weight", lilliput.unpack(packed) * (1 + slip))

    def forward(self, x, bias):
        y = nn.functional.linear(x, self.weight)
        return y if bias is None else y + bias


def kernel(monkeypatch, serves):
    monkeypatch.setattr(found, "_files", lambda: (("mine", serves, True),))


def linear(make):
    """Serves linear layers."""
    return lambda packed, node, inputs: make(packed) if node.operator == "aten.linear.default" else None


def test_a_kernel_takes_its_layer(monkeypatch):
    artifact = compressed("two bits")
    kernel(monkeypatch, linear(Product))
    net = lilliput.load(artifact, engine=Native(timed=False))
    assert net.chosen.way == "kernels"
    assert [str(layer) for layer in net.chosen.layers][-1] == "head.weight: mine"
    assert [part.words for part in net.chosen.line.parts] == ["ONNX Runtime", "mine"]
    for batch in (1, 6):
        x = batches()[0][:batch]
        assert apart(net(x), lilliput.load(artifact, engine="dense")(x)) < 1e-4


def test_timed_kernels_are_beside_floats(monkeypatch):
    monkeypatch.setattr(choice, "programs", lambda *_: None)
    kernel(monkeypatch, linear(Product))
    taken = {
        "": 2.0,
        "mine": 1.0,
        "kernels": 1.0,
        "ONNX Runtime": 3.0,
        "floats": 3.0,
        "torch": 4.0,
        "uncompressed": 3.0,
        "OpenVINO": 9.0,
    }
    monkeypatch.setattr(choice, "race", lambda calls, *_, **__: {name: taken.get(name, 1.0) for name in calls})
    net = lilliput.load(compressed("two bits"))
    assert (net.chosen.way, net.gain) == ("kernels", 3.0)
    assert "mine, 1000000 µs (floats: 2000000 µs)" in net.lines[-1]
    taken["mine"] = 2.5
    assert lilliput.load(compressed("two bits")).chosen.way == "ONNX Runtime"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda packed: Product(packed, 1e-3), "away from the dense layer's"),
        (lambda packed: nn.Bilinear(1, 1, 1), "is left out"),
    ],
    ids=["a wrong result", "a state of its own"],
)
def test_a_wrong_kernel_is_left_out(monkeypatch, make, words):
    def serve(packed):
        module = make(packed)
        if not isinstance(module, Product):
            module.forward = lambda x, bias: (_ for _ in ()).throw(MethodError("not this shape"))
        return module

    kernel(monkeypatch, linear(serve))
    net = lilliput.load(compressed("two bits"), engine=Native(timed=False))
    assert net.chosen.way == "ONNX Runtime"
    assert any(words in line for line in net.lines)


def test_a_loose_kernel_needs_leave(monkeypatch):
    def serve(packed):
        module = Product(packed, 0.02)
        module.tolerance = 0.05
        return module

    kernel(monkeypatch, linear(serve))
    artifact = compressed("two bits")
    assert lilliput.load(artifact, engine=Native(timed=False)).chosen.way == "ONNX Runtime"
    assert lilliput.load(artifact, engine=Native(timed=False, tolerance=0.1)).chosen.way == "kernels"


def test_what_breaks_later_runs_as_dense(monkeypatch):
    def serve(packed):
        module = Product(packed)
        plain = module.forward
        module.forward = lambda x, bias: plain(x, bias) if len(x) == 1 else 1 / 0
        return module

    kernel(monkeypatch, linear(serve))
    artifact = compressed("two bits")
    net, dense = (lilliput.load(artifact, engine=engine) for engine in (Native(timed=False), "dense"))
    x = batches()[0]
    with pytest.warns(LilliputWarning, match="division by zero"):
        assert torch.equal(net(x)["scores"], dense(x)["scores"])
    assert "division" in net.lines[-1]
