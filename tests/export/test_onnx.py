"""Each operator gives in ONNX Runtime what it gives in torch, at other sizes too where they are open."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

import lilliput
from lilliput import Recipe, Rule
from lilliput.core.errors import ModelError
from lilliput.export.few_bits import few_of
from lilliput.export.onnx import to_onnx
from lilliput.graph.structure import tensors_in
from lilliput.graph.trace import trace
from lilliput.quantize.uniform import Uniform
from lilliput.run.native import Native


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def results(model, example):
    """What ONNX Runtime gives for a model."""
    inputs = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    graph, constants = trace(model.eval(), inputs)
    made = to_onnx(graph, model.state_dict() | constants)
    onnx.checker.check_model(made, full_check=True)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(*given):
        names = [entry.name for entry in session.get_inputs()]
        fed = {spec.name: tensor.numpy() for spec, tensor in zip(graph.inputs, given)}
        return [torch.from_numpy(array) for array in session.run(None, {name: fed[name] for name in names})]

    return run, inputs


def check(model, example, other=None):
    """Both give the same, at the traced sizes and at others."""
    torch.manual_seed(0)
    run, inputs = results(model, example)
    others = () if other is None else (other,) if isinstance(other, torch.Tensor) else other
    for given in filter(len, (inputs, others)):
        with torch.no_grad():
            wanted = tensors_in(model(*given))
        for one, two in zip(run(*given), wanted, strict=True):
            assert one.dtype == two.dtype
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
POSITIVE = X.abs() + 0.1
UNIT = X.clamp(-0.9, 0.9)
WHOLE = torch.arange(-6, 6).reshape(3, 4)

ELEMENTWISE = [
    (torch.abs, X), (torch.neg, X), (torch.exp, X), (torch.expm1, X), (torch.log, POSITIVE), (torch.log1p, POSITIVE),
    (torch.log2, POSITIVE), (torch.log10, POSITIVE), (torch.sqrt, POSITIVE), (torch.rsqrt, POSITIVE),
    (torch.reciprocal, POSITIVE), (torch.square, X), (torch.sign, X), (torch.sin, X), (torch.cos, X), (torch.tan, UNIT),
    (torch.asin, UNIT), (torch.acos, UNIT), (torch.atan, X), (torch.sinh, X), (torch.cosh, X), (torch.tanh, X),
    (torch.asinh, X), (torch.acosh, POSITIVE + 1), (torch.atanh, UNIT), (torch.erf, X), (torch.floor, X * 3),
    (torch.ceil, X * 3), (torch.round, X * 3), (torch.trunc, X * 3), (torch.frac, X * 3), (torch.sigmoid, X),
    (torch.relu, X), (functional.relu6, X * 5), (functional.hardswish, X * 3), (functional.hardsigmoid, X * 3), (functional.hardtanh, X), (functional.silu, X),
    (functional.gelu, X), (lambda x: functional.gelu(x, approximate="tanh"), X), (functional.mish, X), (functional.elu, X), (functional.selu, X), (functional.celu, X),
    (functional.leaky_relu, X), (functional.softplus, X), (lambda x: functional.softplus(x, beta=2.0), X), (functional.logsigmoid, X), (functional.hardshrink, X),
    (functional.softshrink, X), (lambda x: functional.threshold(x, 0.1, 2.0), X), (functional.glu, X), (torch.isnan, X), (torch.isinf, X),
    (lambda x: torch.logit(x, eps=1e-3), UNIT.abs()),
    (lambda x: x.clamp(-0.5, 0.5), X), (lambda x: x.clamp(min=0.2), X), (lambda x: x.clamp(max=0.2), X),
    (lambda x: x + 1, X), (lambda x: 2 - x, X), (lambda x: torch.sub(x, x * 2, alpha=3), X), (lambda x: x / 3, X),
    (lambda x: x**2.5, POSITIVE), (lambda x: 2.0**x, X), (lambda x: x // 0.7, X), (lambda x: x % 0.7, X),
    (lambda x: torch.fmod(x, 0.7), X), (lambda x: x // 4, WHOLE), (lambda x: x % 4, WHOLE), (lambda x: x / 4, WHOLE),
    (lambda x: torch.div(x, 4, rounding_mode="trunc"), WHOLE), (lambda x: x * 0.5, WHOLE), (torch.exp, WHOLE),
    (lambda x: torch.maximum(x, -x), X), (lambda x: torch.minimum(x, -x), X),
    (lambda x: x > 0.1, X), (lambda x: x >= 0, X), (lambda x: x < 0, X), (lambda x: x <= 0, X), (lambda x: x == 2, WHOLE),
    (lambda x: x != 2, WHOLE), (lambda x: (x > 0) & (x < 3), WHOLE), (lambda x: (x > 0) | ~(x < 3), WHOLE),
    (lambda x: torch.where(x > 0, x, 0.0), X), (lambda x: x.masked_fill(x > 0, float("-inf")), X),
    (lambda x: torch.addcmul(x, x, x, value=0.5), X), (lambda x: torch.lerp(x, x + 1, 0.3), X),
    (lambda x: x.to(torch.int64), X * 3), (lambda x: (x > 0).float(), X), (lambda x: x.half(), X),
]  # fmt: skip
SHAPING = [
    (lambda x: x.view(x.shape[0], -1), X), (lambda x: x.reshape(-1, 2), X), (lambda x: x.flatten(1), X), (lambda x: x.flatten(), X),
    (lambda x: x.flatten(0, 1), X), (lambda x: x.unflatten(2, (2, 3)), X), (lambda x: x.unsqueeze(-1).squeeze(-1), X),
    (lambda x: x[:1].squeeze(), X), (lambda x: x.permute(2, 0, 1), X), (lambda x: x.transpose(0, 2), X), (lambda x: x.mT, X),
    (lambda x: x[0].t(), X), (lambda x: x.movedim(0, 2), X), (lambda x: x[:, :1].expand(-1, 5, -1), X),
    (lambda x: x.expand(2, 3, 4, 6), X), (lambda x: x.repeat(2, 1, 2), X), (lambda x: x.repeat(2, 1, 1, 1), X),
    (lambda x: torch.cat([x, x * 2], 1), X), (lambda x: torch.stack([x, x], -1), X), (lambda x: x.split(4, 2), X),
    (lambda x: x.split([1, 3], 1), X), (lambda x: x[..., :6].reshape(-1, 6).chunk(4, 1), X), (lambda x: x.unbind(1), X),
    (lambda x: x.narrow(2, 1, 3), X), (lambda x: x[:, 1:4:2], X), (lambda x: x[..., -2:], X), (lambda x: x[:, -1], X),
    (lambda x: x.flip(1, 2), X), (lambda x: x.roll((1, -2), (1, 2)), X), (torch.tril, X),
    (lambda x: torch.triu(x, 1), X), (lambda x: functional.pad(x, (1, 2, 0, 1), value=3.0), X), (lambda x: functional.pad(x, (1, -1)), X),
    (lambda x: functional.pad(x, (2, 1), mode="reflect"), X), (lambda x: functional.pad(x, (2, 1), mode="replicate"), X),
    (lambda x: x.flatten(0, 1).unsqueeze(1), X), (lambda x: x.unflatten(1, (2, -1)), X),
    (lambda x: functional.channel_shuffle(x.unsqueeze(-1), 2), X), (lambda x: x.index_select(1, torch.tensor([2, 0])), X),
    (lambda x: x.gather(2, torch.zeros(3, 4, 2, dtype=torch.long)), X), (lambda x: x[:, torch.tensor([3, 1])], X),
    (lambda x: x[torch.tensor([0, 2]), torch.tensor([1, 3])], X), (lambda x: x + torch.zeros(x.shape), X),
    (lambda x: torch.full_like(x, 2.0), X), (lambda x: x.new_ones(x.shape[0], 2) + x[:, :2, 0], X),
    (lambda x: x[:, :, 0] + torch.arange(4), X), (lambda x: x * x.shape[0], X),
]  # fmt: skip
REDUCING = [
    (lambda x: x.sum(), X), (lambda x: x.sum(1), X), (lambda x: x.mean((1, 2), keepdim=True), X), (lambda x: x.amax(2), X),
    (lambda x: x.amin((0, 1)), X), (lambda x: x.max(1), X), (lambda x: x.min(2, keepdim=True), X), (lambda x: x.argmax(1), X),
    (lambda x: x.argmax(), X), (lambda x: x.argmin(2, keepdim=True), X), (lambda x: x.prod(2), X), (lambda x: x.max(), X),
    (lambda x: (x > 0).any(1), X), (lambda x: (x > 0).all(2), X), (lambda x: x.var(2), X), (lambda x: x.std(1), X),
    (lambda x: x.var(2, correction=0, keepdim=True), X), (lambda x: torch.var_mean(x, 1), X), (lambda x: x.norm(dim=1), X),
    (lambda x: torch.linalg.vector_norm(x, 1, dim=2), X), (lambda x: x.logsumexp(1), X), (lambda x: x.cumsum(1), X),
    (lambda x: x.topk(2, 1), X), (lambda x: x.sort(2, descending=True), X), (lambda x: x.softmax(-1), X),
    (lambda x: x.log_softmax(1), X), (lambda x: x.sum(1), WHOLE), (lambda x: (x > 0).sum(1), X), (lambda x: x.argsort(1), X),
    (lambda x: functional.normalize(x, dim=1), X),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(ELEMENTWISE)))
def test_elementwise(place):
    function, x = ELEMENTWISE[place]
    check(Of(function), x, x.repeat(2, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize("place", range(len(SHAPING)))
def test_shaping(place):
    check(Of(SHAPING[place][0]), SHAPING[place][1])


@pytest.mark.parametrize("place", range(len(REDUCING)))
def test_reducing(place):
    check(Of(REDUCING[place][0]), REDUCING[place][1])


IMAGE = torch.randn(2, 8, 12, 10, generator=torch.Generator().manual_seed(1))
LAYERS = [
    nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 8, (3, 2), stride=2, padding=(1, 0), dilation=2, groups=4, bias=False),
    nn.Conv2d(8, 6, 3, padding="same"), nn.ConvTranspose2d(8, 5, 3, stride=2, padding=1, output_padding=1),
    nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.LayerNorm((12, 10)), nn.LayerNorm(10, elementwise_affine=False),
    nn.GroupNorm(4, 8), nn.InstanceNorm2d(8, affine=True), nn.RMSNorm(10), nn.PReLU(8), nn.PReLU(), nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, count_include_pad=False),
    nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((6, 5)), nn.AdaptiveAvgPool2d(7), nn.Linear(10, 4),
    nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(size=(7, 9), mode="bilinear"),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Upsample(size=(15, 20), mode="bicubic"),
    nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.Softmax2d(), nn.Flatten(), nn.ZeroPad2d(2), nn.ReflectionPad2d(2),
    nn.Unflatten(1, (2, 4)),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(LAYERS)), ids=lambda place: type(LAYERS[place]).__name__)
def test_layers(place):
    layer = LAYERS[place]
    for name, buffer in layer.named_buffers():
        if name == "running_var":
            buffer.uniform_(0.5, 2)
    check(layer, IMAGE, IMAGE[:1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "setting", [{}, {"bidirectional": True, "num_layers": 2, "batch_first": True}, {"bias": False}]
)
def test_recurrent(kind, setting):
    torch.manual_seed(0)
    check(kind(6, 5, **setting), X)


def test_products():
    check(Of(lambda a, b: a @ b), (X, X.mT), (X[:2], X[:2].mT))
    check(Of(lambda a, b: torch.einsum("bij,bkj->bik", a, b)), (X, X))
    check(Of(lambda a, b: torch.baddbmm(a @ b, a, b, beta=0.5, alpha=2)), (X, X.mT))


@pytest.mark.parametrize("setting", [{}, {"is_causal": True}, {"scale": 0.3}])
def test_attention(setting):
    q, k, v = (torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(s)) for s in range(3))
    check(Of(lambda *a: functional.scaled_dot_product_attention(*a, **setting)), (q, k, v))
    mask = torch.rand(2, 1, 5, 5) > 0.3
    mask[..., 0] = True
    check(Of(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)), (q, k, v))


def test_a_transformer_at_other_lengths():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    check(layer, torch.randn(2, 7, 16), torch.randn(5, 7, 16))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.out = nn.Linear(8, 20)

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        mask = torch.arange(tokens.shape[1]) < 3
        return {"logits": self.out(hidden * mask[None, :, None]), "hidden": [hidden, hidden.mean(1)]}


def test_the_engine_keeps_structure_and_takes_any_batch(tmp_path):
    torch.manual_seed(0)
    model, tokens = Tokens().eval(), torch.randint(20, (2, 5))
    artifact = lilliput.compress(model, Recipe.preset("int8"), example=tokens)
    artifact.save(tmp_path / "net.safetensors")
    fast = lilliput.load(tmp_path / "net.safetensors", engine="onnxruntime")
    plain = lilliput.load(tmp_path / "net.safetensors")
    for given in (tokens, torch.randint(20, (4, 5))):
        one, two = fast(given), plain(given)
        assert one.keys() == two.keys()
        torch.testing.assert_close(one["logits"], two["logits"])
        torch.testing.assert_close(one["hidden"][1], two["hidden"][1])


def test_export_writes_a_file_that_onnx_runtime_runs(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    x = torch.randn(2, 3, 8, 8)
    artifact = lilliput.compress(model.eval(), Recipe((Rule(),)), example=x)
    artifact.export(tmp_path / "net.onnx", engine="onnxruntime")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), lilliput.load(artifact)(x), rtol=1e-4, atol=1e-5)


def test_what_has_no_counterpart_is_named(tmp_path):
    model = nn.Sequential(nn.Linear(6, 2), Of(torch.lgamma)).eval()
    artifact = lilliput.compress(model, Recipe((Rule(),)), example=POSITIVE)
    with pytest.raises(ModelError, match=r"aten\.lgamma\.default"):
        artifact.export(tmp_path / "net.onnx", engine="onnxruntime")
    assert not (tmp_path / "net.onnx").exists()


class Residual(nn.Module):
    """A block whose second convolution isn't quantized again before the sum, a depth-wise one, and a product in 3-D."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.third = nn.Conv2d(8, 8, 3, groups=8)
        self.out = nn.Linear(36, 5)
        with torch.no_grad():  # a channel that is next to nothing beside its bias
            self.third.weight[0] *= 1e-10
            self.third.bias[0] = 1

    def forward(self, x):
        x = self.first(x).relu()
        x = (x + self.second(x)).relu()
        return self.out(self.third(x).flatten(2))


@pytest.mark.parametrize("activations", ["uniform:8", "uniform:5", '{method = "uniform", form = "symmetric"}'])
def test_quantized_layers_are_computed_with_integers(activations, tmp_path):
    torch.manual_seed(0)
    words = activations if activations[0] == "{" else f'"{activations}"'
    recipe = Recipe.loads(f"""
    [[rule]]
    steps = [{{method = "quantize/uniform", bits = 8}}]
    activations = {words.replace("uniform", "quantize/activations/uniform", 1) if words[0] == "{" else words}
    """)
    model, data = Residual().eval(), [torch.randn(4, 4, 8, 8) for _ in range(3)]
    artifact = lilliput.compress(model, recipe, data)
    artifact.export(tmp_path / "net.onnx")
    made = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(made, full_check=True)
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("QuantizeLinear") == 4
    assert "Div" not in kinds
    codes = {tuple(held.dims) for held in made.graph.initializer if held.data_type == onnx.TensorProto.INT8}
    # Results that the sum needs are floats: those of both convolutions before it.
    assert {(8, 1, 3, 3), (36, 5)} <= codes
    assert not {(8, 4, 3, 3), (8, 8, 3, 3)} & codes
    fast, plain = lilliput.load(artifact, engine="onnxruntime"), lilliput.load(artifact)
    # A value on the border between two levels may fall to the other side, which moves what follows by a step or so.
    one, two = fast(data[0]), plain(data[0])
    one, two = one.detach(), two.detach()
    assert float((one - two).abs().mean()) < 0.01 * float(two.abs().mean())
    assert float(functional.cosine_similarity(one.flatten(), two.flatten(), dim=0)) > 0.9995


def test_levels_before_shared_weights_stay_operators():
    """ONNX Runtime would put float weights between 8-bit tensors in 8 bits, with one scale for all rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(),
                          nn.Linear(512, 3)).eval()  # fmt: skip
    with torch.no_grad():
        model[3].weight *= 10.0 ** -torch.arange(8)[:, None, None, None]
    recipe = Recipe.loads("""
    [[rule]]
    match = "3.*"
    steps = [{method = "share/kmeans", bits = 8}]
    activations = "uniform:8"
    [[rule]]
    steps = [{method = "quantize/uniform", bits = 8}]
    activations = "uniform:8"
    """)
    x = torch.randn(4, 4, 8, 8)
    artifact = lilliput.compress(model, recipe, [x])
    one, two = lilliput.load(artifact, engine="onnxruntime")(x), lilliput.load(artifact)(x)
    assert float(functional.cosine_similarity(one.flatten(), two.detach().flatten(), dim=0)) > 0.9995


FEW = {
    "8 bits, rows": (8, "row", 16, True),
    "4 bits, rows": (4, "row", 16, True),
    "4 bits, one scale": (4, "tensor", 16, True),
    "4 bits, groups": (4, "group", 32, True),
    "4 bits, zero points": (4, "group", 32, False),
    "3 bits": (3, "row", 16, True),
    "2 bits, groups": (2, "group", 96, True),
    "2 bits, zero points": (2, "row", 16, False),
}


@pytest.mark.parametrize("name", FEW)
def test_few_bits_stay_few_and_give_what_the_weights_give(name):
    bits, per, group, symmetric = FEW[name]
    torch.manual_seed(0)
    layer = nn.Linear(192, 40)
    packed = Uniform(bits=bits, per=per, group=group, symmetric=symmetric).pack(layer.weight)
    weight = Uniform.unpack(packed)
    graph, _ = trace(layer.eval(), (torch.randn(2, 5, 192),))
    x = torch.randn(3, 5, 192)
    wanted = functional.linear(x, weight, layer.bias).detach()
    made = {
        few: to_onnx(graph, {"weight": weight, "bias": layer.bias}, {"weight": packed}, few=few) for few in (0, 1, 4)
    }
    held = {few: [node for node in one.graph.node if node.op_type == "MatMulNBits"] for few, one in made.items()}
    wide = 4 if 2 < bits <= 4 else bits
    assert [len(held[few]) for few in (0, 1, 4)] == [0, wide == 4, 1]
    assert {a.name: a.i for a in held[4][0].attribute}["bits"] == wide
    assert made[4].ByteSize() < 192 * 40 * wide / 8 + 40 * 12 * 5 + 1500
    for few, near in ((1, 1e-5), (4, 0.02)):
        session = onnxruntime.InferenceSession(made[few].SerializeToString(), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        assert (found - wanted).norm() < near * wanted.norm()


@pytest.mark.parametrize("inputs", [10, 40, 100, 130])
def test_rows_that_no_block_divides_are_filled_up(inputs):
    torch.manual_seed(0)
    for symmetric in (True, False):
        packed = Uniform(bits=4, symmetric=symmetric).pack(torch.randn(7, inputs))
        few = few_of(packed)
        each = few.codes.reshape(7, -1, 1) >> np.array([0, 4], np.uint8) & 15
        values = each.reshape(7, -1, few.block).astype(float)
        zero = 8 if few.zero is None else (few.zero.reshape(7, -1, 1) >> np.array([0, 4], np.uint8) & 15).reshape(7, -1)
        zero = zero if few.zero is None else zero[:, : values.shape[1], None]
        whole = ((values - zero) * few.scale[..., None]).reshape(7, -1)
        assert np.allclose(whole[:, :inputs], Uniform.unpack(packed).numpy(), atol=1e-6)
        assert not whole[:, inputs:].any()


def test_native_hands_layers_of_few_bits_to_onnx_runtime(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)).eval()
    text = '[[rule]]\nsteps = [{method = "quantize/uniform", bits = 4, per = "group", group = 64}]'
    artifact = lilliput.compress(model, Recipe.loads(text), example=torch.randn(1, 1024))
    x = torch.randn(3, 1024)
    wanted = lilliput.load(artifact, engine="dense")(x).detach()
    for tolerance, near in ((0.02, 0.03), (0.01, 1e-5)):
        net = lilliput.load(artifact, engine=Native(timed=False, tolerance=tolerance))
        assert all("4 bits" in str(layer) for layer in net.chosen.layers)
        assert (net(x).detach() - wanted).norm() < near * wanted.norm()
    artifact.export(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").stat().st_size < 0.16 * 4 * 1024 * 1034
