"""Files of LiteRT give Lilliput's numbers, layer by layer, in LiteRT's interpreter."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import lilliput
from lilliput.core.errors import ModelError
from lilliput.export.litert import to_litert
from lilliput.export.network import network_of
from lilliput.graph.ir import NodeRef
from lilliput.graph.program import Program
from lilliput.graph.trace import trace

interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert isn't installed")

LAYERS = """[[rule]]
steps = [{method = "quantize/uniform", bits = 8}]
activations = "uniform:8"
"""
WHOLE = LAYERS + 'outputs = "uniform:8"'
SYMMETRIC = LAYERS.replace('"uniform:8"', '{method = "quantize/activations/uniform", bits = 8, form = "symmetric"}')
FEW = LAYERS.replace('"uniform:8"', '"uniform:4"')
WEIGHTS = LAYERS.replace('activations = "uniform:8"', "")


class Blocks(nn.Module):
    """What MobileNet and ResNet are made of: depthwise and grouped layers, strides, margins, sums, pools."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.deep = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(8, 12, 3, 2, 1, groups=2)
        self.twice = nn.Conv2d(12, 24, (3, 2), padding=(2, 0), dilation=(2, 1), groups=12)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = functional.relu6(self.stem(functional.pad(x, (0, 1, 0, 1))))
        x = torch.relu(x + self.point(functional.relu6(self.deep(x))))
        x = functional.max_pool2d(x, 3, 2, 1)
        return self.head(torch.relu(self.twice(torch.relu(self.wide(x)))).mean((2, 3)))


class Attention(nn.Module):
    """What a transformer for pictures is made of."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.norm = nn.LayerNorm(16)
        self.joint = nn.Linear(16, 48)
        self.last = nn.Linear(16, 16)
        self.inner = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([x[:, :1] * 0 + self.first, x], 1)
        q, k, v = self.joint(self.norm(x)).reshape(x.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.last(mixed)
        return (x + self.inner(x))[:, 0]


def pictures():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def compressed(net, text):
    torch.manual_seed(0)
    return lilliput.compress(net().eval(), lilliput.Recipe.loads(text), [pictures()])


def results(artifact, x):
    """What each node gives, in torch; and each tensor of the file that is named after one, in LiteRT."""
    graph, tensors = network_of(artifact, "a test")
    program = Program(graph)
    values = program.values([x], [tensors[name] for name in program.tensors])
    ours = {}
    with torch.no_grad():
        for step in program.steps(torch.float32, torch.device("cpu")):
            values[step.place] = step.run(values)
            ours[step.place] = values[step.place]
    net = interpreter.Interpreter(
        model_content=to_litert(graph, tensors, artifact.weights),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    net.allocate_tensors()
    net.set_tensor(net.get_input_details()[0]["index"], x.numpy())
    net.invoke()
    found = []
    for entry in net.get_tensor_details():
        if not entry["name"].startswith("node_"):
            continue
        array = net.get_tensor(entry["index"]).astype(np.float32)
        scale, zero = entry["quantization"]
        wanted = ours[program.place(NodeRef(int(entry["name"].split("_")[1])))]
        if isinstance(wanted, torch.Tensor):
            found.append((torch.from_numpy((array - zero) * scale if scale else array), wanted, entry["dtype"]))
    return found


@pytest.mark.parametrize("net", [Blocks, Attention])
@pytest.mark.parametrize(
    ("text", "most"),
    [("", 1e-5), (WEIGHTS, 1e-5), (LAYERS, 0.01), (WHOLE, 0.02), (SYMMETRIC, 0.01), (FEW, 1e-5)],
    ids=["floats", "weights", "layers", "whole", "symmetric", "4 bits"],
)
def test_layer_by_layer(net, text, most):
    artifact = compressed(net, text)
    compared = results(artifact, pictures()[:1])
    seen = 0
    for found, two, _ in compared:
        one = found.permute(0, 3, 1, 2) if found.ndim == 4 and found.shape != two.shape else found
        if one.shape == two.shape and len(set(two.shape)) > 1:
            # Square pictures with as many channels would fit both ways; none is here.
            seen += 1
            assert (one - two).norm() <= most * two.norm() + 1e-6
    assert seen >= 9


@pytest.mark.parametrize("net", [Blocks, Attention])
@pytest.mark.parametrize("text", ["", WHOLE], ids=["floats", "whole"])
def test_a_loaded_network_takes_batches(net, text):
    artifact = compressed(net, text)
    found, dense = (lilliput.load(artifact, engine=name)(pictures()) for name in ("litert", "dense"))
    assert (found - dense).norm() <= (0.03 if text else 1e-5) * dense.norm()


def test_layers_between_levels_have_integers():
    kinds = [dtype for _, _, dtype in results(compressed(Blocks, WHOLE), pictures()[:1])]
    assert kinds.count(np.int8) >= 9
    floats = results(compressed(Blocks, WEIGHTS), pictures()[:1])
    assert {dtype for _, _, dtype in floats} == {np.float32}


def test_weights_of_8_bits_take_a_quarter(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 128), nn.ReLU(), nn.Linear(128, 10))
    sizes = []
    for text in ("", LAYERS):
        artifact = lilliput.compress(net, lilliput.Recipe.loads(text), [pictures()])
        artifact.export(tmp_path / "net.tflite", engine="litert")
        sizes.append((tmp_path / "net.tflite").stat().st_size)
    assert (tmp_path / "net.tflite").read_bytes()[4:8] == b"TFL3"
    assert sizes[1] < 0.27 * sizes[0]


POOLS = [
    nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(2),
    nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 6, 3, padding="same"),
    nn.Conv2d(4, 4, 5, 2, 2, groups=4), nn.BatchNorm2d(4), nn.Hardswish(), nn.SiLU(), nn.Hardsigmoid(),
    nn.LeakyReLU(0.2), nn.Hardtanh(-0.5, 0.5), nn.Tanh(), nn.Flatten(), nn.ConstantPad2d((1, 0, 2, 1), 0.0),
    nn.GELU("tanh"),
]  # fmt: skip


@pytest.mark.parametrize("layer", POOLS, ids=[f"{place}-{type(layer).__name__}" for place, layer in enumerate(POOLS)])
@pytest.mark.parametrize("size", [8, 10])
def test_each_layer_at_even_sizes(layer, size):
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), layer).eval(), torch.randn(1, 3, size, size)
    graph, constants = trace(net, x)
    data = to_litert(graph, net.state_dict() | constants, {})
    run = interpreter.Interpreter(model_content=data)
    run.allocate_tensors()
    run.set_tensor(run.get_input_details()[0]["index"], x.numpy())
    run.invoke()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(run.get_tensor(run.get_output_details()[0]["index"])), net(x), rtol=1e-4, atol=1e-5
        )


def test_what_it_has_not_is_named(tmp_path):
    artifact = lilliput.compress(nn.ConvTranspose2d(3, 4, 2), lilliput.Recipe(), example=pictures())
    with pytest.raises(ModelError, match="conv_transpose2d"):
        artifact.export(tmp_path / "net.tflite", engine="litert")
    assert not list(tmp_path.iterdir())
