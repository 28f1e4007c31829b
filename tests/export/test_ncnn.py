"""What is written for ncnn: operators give there what they give in torch; whole numbers stay whole numbers."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import lilliput
from lilliput.core.errors import FileError, ModelError, NotInstalled
from lilliput.export.ncnn import form, to_ncnn
from lilliput.export.ncnn_table import Scales, read_table, write_table
from lilliput.export.quantized import codes_of
from lilliput.graph.layers import layer_of
from lilliput.run.ncnn import Ncnn
from lilliput.testing.engine import SYMMETRIC, compressed

needs_ncnn = pytest.mark.skipif(importlib.util.find_spec("ncnn") is None, reason="ncnn isn't installed")


class Of(nn.Module):
    """A function, or several, as a module that may hold others."""

    def __init__(self, *functions, **modules):
        super().__init__()
        self.functions = functions
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return tuple(function(self, x) for function in self.functions)


def near(model, x, tolerance=2e-5):
    artifact = lilliput.compress(model.eval(), lilliput.Recipe(), example=x)
    with torch.no_grad():
        wanted = model(x)
    found = lilliput.load(artifact, engine="ncnn")(x)
    for place, (one, two) in enumerate(zip(found, wanted, strict=True)):
        assert one.shape == two.shape, place
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance, msg=lambda m, p=place: f"{p}: {m}")


@needs_ncnn
def test_functions_of_one_value():
    names = ["relu", "relu6", "hardtanh", "silu", "mish", "selu", "hardswish", "hardsigmoid", "gelu", "elu", "tanh"]
    functions = [lambda _, x, name=name: getattr(functional, name)(x) for name in names]
    functions += [
        lambda _, x: functional.gelu(x, approximate="tanh"),
        lambda _, x: functional.leaky_relu(x, 0.1),
        lambda _, x: x.sigmoid(),
        lambda _, x: x.clamp(max=0.5),
        lambda _, x: x.clamp_min(-0.25),
        lambda _, x: (x.abs() + 0.1).log() + x.exp() - x.square() + (x * 2).round() + x.floor() - x.ceil(),
        lambda _, x: (x.abs() + 0.1).sqrt() + (x.abs() + 1).rsqrt() + x.sin() * x.cos() - x.neg(),
        lambda m, x: m.prelu(x),
        lambda m, x: m.norm(x),
    ]
    model = Of(*functions, prelu=nn.PReLU(4), norm=nn.GroupNorm(2, 4))
    near(model, torch.randn(2, 4, 5, 6), 1e-4)


@needs_ncnn
def test_two_values_and_broadcasting():
    functions = [
        lambda m, x: x + m.row,
        lambda m, x: x * m.channel - 2.0,
        lambda m, x: x / (m.picture.abs() + 1),
        lambda m, x: x * x.mean((2, 3), keepdim=True).sigmoid(),
        lambda m, x: torch.maximum(x, m.channel) + torch.minimum(x, m.row),
        lambda m, x: (1 - x) * 0.5,
        lambda m, x: x.mean((2, 3)) + x.mean((2, 3)).softmax(-1),
        lambda m, x: x.sum(1, keepdim=True) + x.amax(3, keepdim=True) - x.mean((1, 2, 3), keepdim=True),
    ]
    model = Of(*functions)
    for name, shape in (("row", (6,)), ("channel", (4, 1, 1)), ("picture", (1, 1, 5, 6))):
        model.register_buffer(name, torch.randn(shape))
    near(model, torch.randn(3, 4, 5, 6))


@needs_ncnn
def test_shapes_and_orders():
    functions = [
        lambda m, x: x.flatten(1),
        lambda m, x: x.permute(0, 2, 3, 1),
        lambda m, x: x.permute(0, 3, 2, 1),
        lambda m, x: x.permute(0, 2, 1, 3),
        lambda m, x: x.permute(0, 3, 1, 2),
        lambda m, x: x.transpose(2, 3),
        lambda m, x: x.flatten(2).transpose(1, 2),
        lambda m, x: x.reshape(x.shape[0], 2, 2, 5, 6).transpose(1, 2).reshape(x.shape[0], 4, 5, 6),
        lambda m, x: torch.cat([x, x[:, 1:3] * 2, x[:, -1:]], 1),
        lambda m, x: torch.cat(x.chunk(2, 3)[::-1], 3),
        lambda m, x: x[:, :, 2] + x[:, :, -1],
        lambda m, x: sum(x.unbind(2)),
        lambda m, x: x.unsqueeze(2).squeeze(2).softmax(2),
        lambda m, x: functional.pad(x, (1, 2, 0, 3), value=0.5),
        lambda m, x: x,
    ]
    near(Of(*functions), torch.randn(2, 4, 5, 6))


@needs_ncnn
def test_layers():
    torch.manual_seed(0)
    modules = {
        "plain": nn.Conv2d(4, 6, 3, 2, 1),
        "wide": nn.Conv2d(4, 6, (3, 1), padding=(2, 0), dilation=(2, 1), bias=False),
        "same": nn.Conv2d(4, 4, 4, padding="same"),
        "groups": nn.Conv2d(4, 8, 3, groups=2),
        "deep": nn.Conv2d(4, 4, 3, groups=4),
        "line": nn.Conv1d(4, 5, 3, padding=1),
        "norm": nn.BatchNorm2d(4),
        "places": nn.LayerNorm(6),
        "heads": nn.MultiheadAttention(6, 2, batch_first=True),
        "linear": nn.Linear(6, 3),
    }
    functions = [lambda m, x, name=name: m.get_submodule(name)(x) for name in ("wide", "same", "groups", "deep")]
    functions += [
        lambda m, x: m.plain(functional.pad(x, (1, 0, 2, 1))).relu(),
        lambda m, x: functional.hardswish(m.plain(x)),
        lambda m, x: functional.leaky_relu(m.deep(x), 0.2),
        lambda m, x: m.line(x.flatten(2)),
        lambda m, x: m.norm(x),
        lambda m, x: m.places(x),
        lambda m, x: m.linear(x),
        lambda m, x: m.linear(x.mean((1, 2))),
        lambda m, x: m.heads(*[x.flatten(1, 2)] * 3, need_weights=False)[0],
        lambda m, x: functional.max_pool2d(x, 3, 2, 1),
        lambda m, x: functional.max_pool2d(x, 2, ceil_mode=True),
        lambda m, x: functional.avg_pool2d(x, 3, 2, 1),
        lambda m, x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        lambda m, x: functional.adaptive_avg_pool2d(x, 1),
        lambda m, x: functional.adaptive_avg_pool2d(x, (2, 3)),
        lambda m, x: functional.interpolate(x, scale_factor=2, mode="nearest"),
        lambda m, x: functional.interpolate(x, size=(9, 8), mode="bilinear"),
    ]
    near(Of(*functions, **modules), torch.randn(2, 4, 7, 6), 1e-4)


@needs_ncnn
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "vgg", "vit"])
def test_symmetric_integers_are_computed_as_they_are(name):
    artifact, x, _ = compressed(name, SYMMETRIC)
    found, wanted = (lilliput.load(artifact, engine=one)(x).detach() for one in ("ncnn", "dense"))
    assert (found - wanted).norm() < 0.02 * wanted.norm()


@needs_ncnn
def test_files_are_read_by_ncnn_and_hold_integers(tmp_path):
    import ncnn

    artifact, x, _ = compressed("mobilenet_v2", SYMMETRIC)
    artifact.export(tmp_path / "net.param", engine="ncnn")
    net = ncnn.Net()
    net.load_param(str(tmp_path / "net.param"))
    net.load_model(str(tmp_path / "net.bin"))
    run = net.create_extractor()
    run.input("in0", ncnn.Mat(x[0].numpy()).clone())
    found = torch.from_numpy(np.array(run.extract("out0")[1]))
    torch.testing.assert_close(found, lilliput.load(artifact, engine="ncnn")(x[:1])[0])
    with pytest.raises(ModelError, match=r"end in \.param"):
        artifact.export(tmp_path / "net.bin", engine="ncnn")


def named(artifact):
    return {layer.weight for node in artifact.graph.nodes if (layer := layer_of(node)) is not None}


def test_weights_and_scales_are_those_of_the_artifact(tmp_path):
    artifact, _, _ = compressed("mobilenet_v2", SYMMETRIC)
    artifact.export(tmp_path / "net.param", engine="ncnn")
    data = (tmp_path / "net.bin").read_bytes()
    table = read_table((tmp_path / "net.table").read_text())
    layers = [name for name in artifact.weights if name in named(artifact)]
    assert len(layers) == 9
    assert len(table) == len(layers)
    for name in layers:
        held = codes_of(artifact.weights[name])
        assert held.codes.tobytes() in data
        assert table[name.removesuffix(".weight")].weight == pytest.approx(1 / held.scale, rel=1e-6)
    # A fourth of floats, and what little else there is.
    artifact_of_floats, _, _ = compressed("mobilenet_v2")
    artifact_of_floats.export(tmp_path / "floats.param", engine="ncnn")
    assert not (tmp_path / "floats.table").exists()
    assert len(data) < 0.45 * (tmp_path / "floats.bin").stat().st_size


def test_a_table_is_read_as_it_was_written():
    scales = {"conv_1": Scales([0.0, 12.5], 0.75), "fc": Scales([3e-9], 4e9)}
    text = write_table(scales)
    assert read_table(text) == scales
    assert [line.split()[0] for line in text.splitlines()] == ["conv_1_param_0", "fc_param_0", "conv_1", "fc"]
    assert read_table("") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a_param_0 1.0\n", "none of its input"),
        ("a 1.0\n", "none of its weight"),
        ("a_param_0 1.0\na 1.0 2.0\n", "one scale above zero"),
        ("a_param_0 1.0\na 0\n", "one scale above zero"),
        ("a_param_0 1.0\na nan\n", "line 2: 'nan' is no scale"),
        ("a_param_0 -1\n", "line 1: '-1' is no scale"),
        ("a_param_0\n", "line 1: a_param_0 has no scales"),
        ("a 1\na 1\n", "line 2: a was there before"),
    ],
)
def test_tables_that_say_nothing_sound_are_refused(text, words):
    with pytest.raises(FileError, match=words):
        read_table(text)


def test_halves_take_half_the_bytes():
    artifact, _, _ = compressed("vgg")
    tensors = artifact.state_dict() | dict(artifact.constants)
    whole, half = (to_ncnn(artifact.graph, tensors, artifact.weights, half=one).weights for one in (False, True))
    assert len(half) < 0.52 * len(whole)


@needs_ncnn
def test_halves_are_read():
    artifact, x, _ = compressed("vgg")
    found, wanted = lilliput.load(artifact, engine=Ncnn(half=True))(x), lilliput.load(artifact, engine="dense")(x)
    assert 1e-5 < (found - wanted).norm() / wanted.norm() < 2e-3


@needs_ncnn
def test_coarse_levels_stay_levels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    text = '[[rule]]\nsteps = [{method = "quantize/uniform", bits = 4}]\nactivations = "uniform:3"'
    x = torch.randn(32, 6)
    artifact = lilliput.compress(model, lilliput.Recipe.loads(text), [x])
    found, wanted = (lilliput.load(artifact, engine=one)(x).detach() for one in ("ncnn", "dense"))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (Of(lambda _, x: torch.erfinv(x.clamp(-0.5, 0.5))), torch.rand(1, 3), "erfinv"),
        (Of(lambda _, x: x.sum(0)), torch.rand(4, 3), "isn't of each example"),
        (Of(lambda _, x: x - x.mean(0)), torch.rand(4, 3), "over the batch"),
        (Of(lambda _, x: x.softmax(0)), torch.rand(4, 3), "over the batch"),
        (nn.Embedding(4, 3), torch.ones(1, 2, dtype=torch.int64), "float32"),
    ],
)
def test_what_it_cannot_take_is_said_in_one_line(model, example, words, tmp_path):
    artifact = lilliput.compress(model, lilliput.Recipe(), example=example)
    with pytest.raises(ModelError, match=words) as caught:
        artifact.export(tmp_path / "net.param", engine="ncnn")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ncnn", None)
    artifact, _, _ = compressed("vgg")
    with pytest.raises(NotInstalled, match=r"pip install 'lilliput\[ncnn\]'"):
        lilliput.load(artifact, engine="ncnn")


def test_the_axis_of_the_batch_is_left_out():
    assert form((1, 3, 8, 8)) == (3, 8, 8)
    assert form((17, 1, 24)) == (17, 24)
    with pytest.raises(ModelError, match="5 axes"):
        form((1, 2, 3, 4, 5, 6))
