"""Native runs dense convolutions by what `choose` says, whatever it says, and gives what the dense engine gives."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import lilliput
from lilliput.convolution.fft import Fft
from lilliput.convolution.im2col import Im2col
from lilliput.convolution.mec import Mec
from lilliput.convolution.strassen import Strassen
from lilliput.convolution.winograd import Winograd
from lilliput.graph.ir import InputRef, Node, TensorRef
from lilliput.run import algorithm, choice
from lilliput.run.algorithm import Convolved, asked, module_for
from lilliput.run.native import Native

ALGORITHMS = [Winograd(2), Winograd(4), Winograd(6), Winograd(3), Mec("B"), Im2col(), Fft(), Fft(32), Strassen(1)]
WORDS = ["Winograd F(2, 3)", "Winograd F(4, 3)", "Winograd F(6, 3)", "Winograd F(3, 3)", "MEC", "im2col", "FFT",
         "FFT, tiles of 32", "Strassen"]  # fmt: skip


def node(**named):
    return Node("aten.conv2d.default", (InputRef(0), TensorRef("weight"), None), named)


@pytest.fixture
def told(monkeypatch):
    """Makes `choose` say something, and every race one that is won by what isn't floats; notes what was asked."""
    asked_for = []

    def say(chosen):
        monkeypatch.setattr(algorithm, "fastest", lambda layer, limit=None: asked_for.append((layer, limit)) or chosen)
        monkeypatch.setattr(algorithm, "LEAST", 0)
        slow = {"": 2.0, "torch": 3.0, "ONNX Runtime": 3.0, "OpenVINO": 3.0, "uncompressed": 3.0}
        monkeypatch.setattr(choice, "race", lambda calls, *_, **__: {name: slow.get(name, 1.0) for name in calls})
        return asked_for

    return say


def near(found, right, tolerance=1e-5):
    return float((found - right).detach().norm()) < tolerance * float(right.detach().norm())


@pytest.mark.parametrize(("chosen", "words"), list(zip(ALGORITHMS, WORDS)), ids=WORDS)
def test_what_is_chosen_runs(told, chosen, words):
    asked_for = told(chosen)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 5, 3), nn.Flatten(2)).eval()
    x = torch.randn(1, 3, 12, 13)
    net = lilliput.load(lilliput.compress(model, lilliput.Recipe(), example=x), engine=Native(workspace=1 << 20))
    assert [line.split(": ")[1].split(", 1")[0] for line in net.lines[:2]] == [words, words]
    assert [(layer.channels, layer.size, limit) for layer, limit in asked_for] == [
        (3, (12, 13), 1 << 20), (9, (12, 13), 1 << 20)
    ]  # fmt: skip
    assert near(net(x), model(x), 5e-5)
    many = torch.randn(3, 3, 12, 13)
    assert near(net(many), model(many), 5e-5)


def test_torchs_own_is_left_to_the_engines(told):
    told(None)
    model, x = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU()).eval(), torch.randn(1, 3, 12, 13)
    net = lilliput.load(lilliput.compress(model, lilliput.Recipe(), example=x), engine="native")
    assert not any(words in line for line in net.lines for words in WORDS)


@pytest.mark.parametrize("chosen", ALGORITHMS, ids=WORDS)
def test_other_sizes_than_it_was_chosen_for(told, chosen):
    told(chosen)
    weight, bias = torch.randn(6, 4, 3, 3), torch.randn(6)
    module = module_for(node(padding=(1, 1)), weight, torch.randn(1, 4, 12, 12))
    for size in ((1, 4, 12, 12), (2, 4, 30, 9), (1, 4, 5, 40)):
        x = torch.randn(size)
        right = functional.conv2d(x, weight, bias, padding=1)
        assert near(module(x, bias), right, module.tolerance)
        assert torch.equal(module(x, bias, True), module(x, bias).relu())


def test_paddings_in_words(told):
    asked_for = told(Im2col())
    weight, x = torch.randn(6, 4, 3, 3), torch.randn(1, 4, 9, 9)
    for word, size in (("same", 9), ("valid", 7)):
        made = module_for(Node("aten.conv2d.padding", node().args, {"padding": word}), weight, x)
        assert made(x).shape[-1] == size
    assert module_for(Node("aten.conv2d.padding", node().args, {"padding": "same"}), torch.randn(6, 4, 2, 2), x) is None
    assert len(asked_for) == 2


def test_what_isnt_asked_for(monkeypatch):
    monkeypatch.setattr(algorithm, "fastest", lambda *_: pytest.fail("asked"))
    assert asked(node(), torch.zeros(4, 4, 3, 3))
    assert not asked(node(groups=2), torch.zeros(4, 2, 3, 3))
    assert not asked(node(), torch.zeros(4, 4, 3, 3).double())
    assert not asked(Node("aten.linear.default", node().args[:2]), torch.zeros(4, 4))
    assert module_for(node(), torch.zeros(4, 4, 3, 3), torch.zeros(4, 9, 9)) is None, "no batch"
    assert module_for(node(), torch.zeros(4, 4, 3, 3), torch.zeros(1, 4, 9, 9)) is None, "too small to measure"


def test_an_input_smaller_than_the_kernel_is_refused():
    from lilliput.convolution.contract import layer_of
    from lilliput.core.errors import MethodError

    weight, x = torch.randn(6, 4, 3, 3), torch.randn(1, 4, 9, 9)
    with pytest.raises(MethodError, match=r"\(1, 4, 2, 9\)"):
        Convolved(weight, Im2col(), layer_of(x, weight))(torch.zeros(1, 4, 2, 9))
