"""Removing channels gives what zeroing them gives, on every pattern; what stays whole says why."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import lilliput
from lilliput.core.errors import FileError, MethodError, ModelError
from lilliput.core.recipe import Recipe
from lilliput.graph.cut import Cuts, apply_cuts
from lilliput.graph.groups import groups
from lilliput.graph.macs import macs
from lilliput.graph.run import GraphModule
from lilliput.graph.trace import trace


def zeroed(model: nn.Module, cuts: Cuts) -> nn.Module:
    """The same channels set to zero: written anew here, as the oracle."""
    model = copy.deepcopy(model)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for cut in cuts.cuts:
        gone = [index for index in range(cut.size) if index not in set(cut.kept)]
        state[cut.parameter].data.index_fill_(cut.axis, torch.tensor(gone, dtype=torch.long), 0.0)
    return model


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    """In eval mode, with every parameter and statistic somewhere else than where it began."""
    torch.manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) * 0.3)
        if name.endswith("running_var"):
            tensor.add_(0.5)
    return model.eval()


def check(model: nn.Module, x: Tensor | tuple[Tensor, ...], share: float = 0.5) -> tuple[nn.Module, Cuts]:
    """Cuts model and graph, and compares both with the zeroed model."""
    model = shaken(model)
    before = copy.deepcopy(model.state_dict())
    args = x if isinstance(x, tuple) else (x,)
    smaller, cuts = lilliput.cut(model, share, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    expected = zeroed(model, cuts)(*args)
    torch.testing.assert_close(smaller(*args), expected, rtol=1e-4, atol=1e-4)
    assert count(smaller) == count(model) - removed(model, cuts)
    smaller(*args).sum().backward()
    graph, constants = trace(model, x)
    net = GraphModule(graph, model.state_dict() | constants)
    small_net, net_cuts = lilliput.cut(net, share, x)
    torch.testing.assert_close(small_net(*args), zeroed(model, net_cuts)(*args), rtol=1e-4, atol=1e-4)
    assert count(small_net) <= count(smaller)
    return smaller, cuts


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def removed(model: nn.Module, cuts: Cuts) -> int:
    shapes: dict[str, list[int]] = {name: list(p.shape) for name, p in model.named_parameters()}
    full = sum(torch.Size(s).numel() for s in shapes.values())
    for cut in cuts.cuts:
        if cut.parameter in shapes:
            shapes[cut.parameter][cut.axis] = len(cut.kept)
    return full - sum(torch.Size(s).numel() for s in shapes.values())


def lost(cuts: Cuts, name: str) -> bool:
    return any(line.startswith(f"{name}: removed") for line in cuts.lines)


def test_chain_and_the_reason_of_the_last_layer() -> None:
    smaller, cuts = check(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.rand(2, 4))
    assert (smaller[0].out_features, smaller[2].in_features, smaller[2].out_features) == (3, 3, 3)
    assert cuts.lines == (
        "0.weight: removed 3 of 6 channels",
        "2.weight: kept whole because they are the network's outputs",
    )


def test_the_weakest_go_and_any_member_names_the_group() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(4, 4))
        model[1].weight.copy_(torch.tensor([[1.0, 0.1, 2.0, 0.2]] * 2))
    _, cuts = lilliput.cut(model, {"1.weight": 0.5}, torch.rand(1, 4))
    assert cuts.cuts[0].kept == (0, 2)
    assert lilliput.cut(model, {"nothing": 0.5}, torch.rand(1, 4))[1].cuts == ()
    _, cuts = lilliput.cut(model, 0.5, torch.rand(1, 4), criterion="magnitude")
    assert cuts.cuts[0].kept == (0, 2)


def test_widths_are_rounded_up_to_a_multiple() -> None:
    model = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 2))
    smaller, _ = lilliput.cut(model, 0.5, torch.rand(1, 4), multiple=8)
    assert (smaller[0].out_features, smaller[2].out_features) == (16, 6)


def test_bad_arguments() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    with pytest.raises(MethodError, match="between 0 and 1"):
        lilliput.cut(model, 1.5, torch.rand(1, 4))
    with pytest.raises(MethodError, match="multiple"):
        lilliput.cut(model, 0.5, torch.rand(1, 4), multiple=0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.b = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.b(self.a(x)))
        return self.head(F.max_pool2d(x, 2).flatten(1))


def test_residual_and_flatten() -> None:
    smaller, _ = check(Residual(), torch.rand(2, 3, 8, 8))
    assert smaller.stem[0].out_channels == smaller.b.out_channels == smaller.stem[1].num_features == 4
    assert smaller.head.in_features == 36
    found = {group.name: group for group in groups(Residual().eval(), torch.rand(2, 3, 8, 8))}
    members = {(member.parameter, member.axis) for member in found["stem.0.weight"].members}
    names = ("stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias", "b.weight", "b.bias")
    assert {(name, 0) for name in names} | {("a.0.weight", 1), ("head.weight", 1)} <= members
    head = next(member for member in found["stem.0.weight"].members if member.parameter == "head.weight")
    assert head.places[2] == tuple(range(18, 27))


class Dense(nn.Module):
    """Concatenation that grows, and one with the image, which has no channels to lose."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(7, 4, 3, padding=1)
        self.c = nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, F.relu(self.a(x))], 1)
        return self.c(torch.cat([y, F.relu(self.b(y))], 1))


def test_concatenation() -> None:
    smaller, _ = check(Dense(), torch.rand(2, 3, 6, 6))
    assert (smaller.a.out_channels, smaller.b.in_channels, smaller.c.in_channels) == (2, 5, 7)


class CReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(F.relu(torch.cat([y, -y], 1)))


def test_a_channel_used_twice() -> None:
    smaller, cuts = check(CReLU(), torch.rand(2, 3, 4, 4))
    assert (smaller.a.out_channels, smaller.b.in_channels) == (2, 4)
    kept = {cut.parameter: cut.kept for cut in cuts.cuts}
    assert kept["b.weight"] == (*kept["a.weight"], *(index + 4 for index in kept["a.weight"]))


class Split(nn.Module):
    """Pieces by chunk, by listed sizes kept as an attribute, and by slices with a stored width."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.split_sizes = [4, 8]
        self.width = 4
        self.a = nn.Conv2d(3, 12, 1)
        first = 6 if kind == "chunk" else 4
        self.b = nn.Conv2d(first, 5, 3, padding=1)
        self.c = nn.Conv2d(12 - first, 7, 1)
        self.d = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.kind == "chunk":
            one, two = x.chunk(2, 1)
        elif self.kind == "sizes":
            one, two = x.split(self.split_sizes, 1)
        else:
            one, two = x[:, : self.width], x[:, self.width :]
        return self.d(torch.cat([self.b(one), self.c(two)], 1))


@pytest.mark.parametrize("kind", ["chunk", "sizes", "slices"])
def test_splits_with_stored_sizes(kind: str) -> None:
    smaller, cuts = check(Split(kind), torch.rand(2, 3, 4, 4))
    assert smaller.a.out_channels == 6
    assert smaller.b.in_channels + smaller.c.in_channels == 6
    changed = {size.attribute for size in cuts.sizes}
    assert changed == {"chunk": set(), "sizes": {"split_sizes"}, "slices": {"width"}}[kind]


def test_depthwise_with_multiplier_and_grouped() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.ReLU(),
        nn.Conv2d(16, 12, 1),
        nn.Conv2d(12, 24, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(24, 2, 1),
    )
    smaller, _ = check(model, torch.rand(2, 3, 8, 8))
    assert (smaller[1].groups, smaller[1].in_channels, smaller[1].out_channels) == (4, 4, 8)
    assert (smaller[4].groups, smaller[4].in_channels, smaller[4].out_channels) == (2, 6, 12)


def test_one_output_is_not_taken_for_depthwise() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 1, 1), nn.Sigmoid())
    smaller, _ = check(model, torch.rand(2, 3, 4, 4))
    assert (smaller[0].out_channels, smaller[2].out_channels, smaller[2].groups) == (3, 1, 1)


def test_transposed_and_upsampled() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.ConvTranspose2d(6, 8, 2, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 3, groups=8),
        nn.Upsample(scale_factor=2),
        nn.PReLU(8),
        nn.Conv2d(8, 2, 1),
    )
    smaller, _ = check(model, torch.rand(2, 3, 4, 4))
    assert (smaller[1].in_channels, smaller[1].out_channels, smaller[3].groups) == (3, 4, 4)
    assert smaller[5].num_parameters == 4


class Shuffle(nn.Module):
    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.b = nn.Conv2d(16, 16, 1, groups=2 if grouped else 1)
        self.c = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.c(F.relu(self.b(x)))


@pytest.mark.parametrize("grouped", [False, True])
def test_channel_shuffle(grouped: bool) -> None:
    smaller, _ = check(Shuffle(grouped), torch.rand(2, 3, 4, 4))
    assert smaller.a.out_channels == smaller.b.in_channels == 8


def test_pixel_shuffle_and_padded_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    smaller, _ = check(model, torch.rand(2, 3, 4, 4))
    assert (smaller[0].out_channels, smaller[3].in_channels) == (8, 2)


def test_group_norm_loses_whole_groups_and_one_group_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.Conv2d(12, 6, 1), nn.GroupNorm(1, 6))
    smaller, cuts = check(nn.Sequential(*model, nn.Conv2d(6, 2, 1)), torch.rand(2, 3, 4, 4))
    assert (smaller[1].num_groups, smaller[1].num_channels) == (2, 6)
    assert "2.weight: kept whole because group_norm is taken over them" in " ".join(cuts.lines).replace(
        "takes its statistics", "is taken"
    )


def test_layer_norm_keeps_its_channels_but_not_the_hidden_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2))
    smaller, cuts = check(model, torch.rand(2, 4))
    assert (smaller[0].out_features, smaller[2].out_features) == (6, 4)
    assert "0.weight: kept whole because layer_norm is taken over them" in cuts.lines


class Excited(nn.Module):
    """Squeeze and excitation, a scale a channel, and a map that is summed over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.gamma = nn.Parameter(torch.rand(8))
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.b = nn.Conv2d(8, 6, 1)
        self.c = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * self.gamma[:, None, None]
        gate = self.up(F.relu(self.down(x.mean((2, 3))))).sigmoid()
        x = self.b(x * gate[:, :, None, None])
        return self.c(x * x.mean(1, keepdim=True).sigmoid())


def test_squeeze_and_excitation() -> None:
    smaller, cuts = check(Excited(), torch.rand(2, 3, 6, 6))
    assert smaller.gamma.shape == (4,)
    assert (smaller.down.in_features, smaller.down.out_features, smaller.up.out_features) == (4, 2, 4)
    assert "b.weight: kept whole because mean is taken over them" in cuts.lines


class Attention(nn.Module):
    """Query, key and value in one projection, heads and their size stored, one bias a head by relative position."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = 4, 6, fused
        self.norm = nn.LayerNorm(24)
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.table = nn.Parameter(torch.rand(9, 4))
        self.register_buffer("places", torch.arange(5)[:, None] - torch.arange(5) + 4)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places.view(-1)].view(length, length, -1).permute(2, 0, 1)[None]
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            y = (q @ k.transpose(-2, -1) * self.head_dim**-0.5 + bias).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(n, length, self.num_heads * self.head_dim)
        return self.head(x + self.proj(y))


@pytest.mark.parametrize("fused", [False, True])
def test_heads_go_with_their_projections_and_table(fused: bool) -> None:
    smaller, cuts = check(Attention(fused), torch.rand(2, 5, 24))
    assert (smaller.num_heads, smaller.head_dim) == (2, 6)
    assert smaller.qkv.weight.shape == (36, 24)
    assert smaller.proj.weight.shape == (24, 12)
    assert smaller.table.shape == (9, 2)
    assert [(size.attribute, size.old, size.new) for size in cuts.sizes] == [("num_heads", (4,), (2,))]


def test_torchs_own_attention_runs_or_is_kept() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(16, 3))
    smaller, cuts = check(model, torch.rand(2, 5, 16))
    assert smaller[0].linear1.out_features == 16
    assert any("in_proj_weight: kept whole because the model can't run without" in line for line in cuts.lines)


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 10, 2, 2)
        self.tokens = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Linear(16, 9))
        self.gate, self.up, self.down = nn.Linear(10, 12), nn.Linear(10, 12), nn.Linear(12, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return self.head(x.mean(1))


def test_token_mixing_and_gated_mlp() -> None:
    smaller, _ = check(Mixer(), torch.rand(2, 3, 6, 6))
    assert (smaller.patches.out_channels, smaller.tokens[0].in_features, smaller.tokens[0].out_features) == (5, 9, 8)
    assert smaller.gate.out_features == smaller.up.out_features == smaller.down.in_features == 6


class Standardized(nn.Module):
    """A convolution whose weight is standardized on the way, and a fixed blur by channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 2, 1)
        self.register_buffer("blur", torch.rand(1, 1, 3, 3).repeat(8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.a.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        weight = (weight - mean) / (weight.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        x = F.conv2d(x, weight, self.a.bias)
        return self.b(F.relu(F.conv2d(x, self.blur, groups=x.shape[1])))


def test_computed_weights() -> None:
    smaller, _ = check(Standardized(), torch.rand(2, 3, 8, 8))
    assert smaller.a.out_channels == smaller.b.in_channels == 4
    assert smaller.blur.shape == (4, 1, 3, 3)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], both: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.rnn = kind(6, 8, num_layers=2, bidirectional=both, batch_first=True)
        self.head = nn.Linear(16 if both else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.table(x))[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_embedding_and_recurrent_layers(kind: type[nn.RNNBase], both: bool) -> None:
    smaller, _ = check(Recurrent(kind, both), torch.randint(0, 11, (2, 5)))
    assert (smaller.table.embedding_dim, smaller.rnn.input_size, smaller.rnn.hidden_size) == (3, 3, 4)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.shared(F.relu(self.shared(self.table(x))))))


def test_tied_weights_and_a_shared_module() -> None:
    smaller, _ = check(Tied(), torch.randint(0, 11, (2, 5)))
    assert smaller.head.weight is smaller.table.weight
    assert smaller.shared.weight.shape == (3, 3)
    assert (smaller.head.in_features, smaller.table.embedding_dim) == (3, 3)


class Stubborn(nn.Module):
    """One group that its own code refuses to lose, beside one that goes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.shape[-1] != 6:
            raise RuntimeError("this model is six wide")
        return self.c(F.relu(self.b(x)))


def test_a_bad_group_is_rolled_back_alone() -> None:
    model = Stubborn().eval()
    x = torch.rand(2, 4)
    smaller, cuts = lilliput.cut(model, 0.5, x)
    assert (smaller.a.out_features, smaller.b.out_features) == (6, 4)
    assert "a.weight: kept whole because the model can't run without some of them (RuntimeError: this model" in str(
        cuts
    )
    torch.testing.assert_close(smaller(x), zeroed(model, cuts)(x))


def test_no_time_keeps_what_is_not_verified_and_says_so() -> None:
    smaller, cuts = lilliput.cut(Stubborn().eval(), 0.5, torch.rand(1, 4), seconds=0.0)
    assert not cuts.cuts
    assert smaller.b.out_features == 8
    assert "time given for verification ran out" in cuts.lines[1]
    smaller, cuts = lilliput.cut(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), 0.5, torch.rand(1, 4), seconds=0.0)
    assert smaller[0].out_features == 3


class Wrong(nn.Module):
    """Its result depends on how wide it is: removing is not zeroing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(F.relu(self.b(x / x.shape[-1])))


def test_a_group_that_computes_something_else_is_rolled_back() -> None:
    smaller, cuts = check(Wrong(), torch.rand(2, 4))
    assert (smaller.a.out_features, smaller.b.out_features) == (6, 4)
    assert "a.weight: kept whole because removing some of them doesn't give what zeroing them gives" in cuts.lines


def test_a_mistake_is_not_hidden_by_a_branch_that_is_nearly_zero() -> None:
    class Scaled(Wrong):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(x) + self.scale * super().forward(x)

    model = Scaled()
    model.last, model.scale = nn.Linear(4, 2), nn.Parameter(torch.full((2,), 1e-6))
    smaller, _ = lilliput.cut(model.eval(), 0.5, torch.rand(2, 4))
    assert smaller.a.out_features == 6


@pytest.mark.parametrize("name", ["residual", "attention", "recurrent", "picked"])
def test_file_loads_without_the_class_and_into_a_fresh_model(name: str, tmp_path: object) -> None:
    make, x = {
        "residual": (Residual, torch.rand(2, 3, 8, 8)),
        "attention": (lambda: Attention(True), torch.rand(2, 5, 24)),
        "recurrent": (lambda: Recurrent(nn.LSTM, True), torch.randint(0, 11, (2, 5))),
        "picked": (lambda: Picked(True), torch.rand(2, 3, 4, 4)),
    }[name]
    model = shaken(make())
    once, _ = lilliput.cut(model, 0.3, x)
    smaller, _ = lilliput.cut(once, 0.3, x)
    artifact = lilliput.compress(smaller, Recipe(), example=x)
    artifact.save(f"{tmp_path}/net.safetensors")
    expected = smaller(x)
    net = lilliput.load(f"{tmp_path}/net.safetensors")
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    fresh = lilliput.load(f"{tmp_path}/net.safetensors", into=make())
    torch.testing.assert_close(fresh(x), expected, rtol=1e-4, atol=1e-4)
    assert count(fresh) == count(smaller) < count(model)
    again, cuts = lilliput.cut(net, 0.5, x)
    assert cuts.cuts
    assert again(x).shape == expected.shape


def test_training_flags_and_gradients_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 2)).train()
    model[0].weight.requires_grad_(False)
    smaller, _ = lilliput.cut(model, 0.5, torch.rand(1, 4))
    assert smaller.training
    assert smaller[1].training
    assert not smaller[0].weight.requires_grad
    assert smaller[2].weight.requires_grad


def test_sizes_of_a_stranger_are_refused() -> None:
    from lilliput.core.cut import Resize
    from lilliput.file import entries

    model = Attention(True)
    for size in (Resize("", "num_heads", (5,), (2,)), Resize("", "forward", (4,), (2,)), Resize("x", "n", (4,), (2,))):
        with pytest.raises(ModelError, match="a cut changes"):
            apply_cuts(model, Cuts(sizes=(size,)))
    assert model.num_heads == 4
    for data in (
        3,
        [3],
        [["", "_x", [1], [1]]],
        [["", "x y", [1], [1]]],
        [["", "x", [1], [1, 2]]],
        [["", "x", [], []]],
    ):
        with pytest.raises(FileError, match="manifest"):
            entries.sizes(data)
    assert entries.sizes([["a", "heads", [4], [2]]]) == (Resize("a", "heads", (4,), (2,)),)


def silenced(model: nn.Module, cuts: Cuts, weights: set[str]) -> nn.Module:
    """The removed channels without incoming weights, but with all else that they have."""
    model = copy.deepcopy(model)
    for cut in cuts.cuts:
        if cut.parameter in weights and cut.axis == 0:
            gone = [index for index in range(cut.size) if index not in set(cut.kept)]
            model.get_parameter(cut.parameter).data[gone] = 0.0
    return model


def test_constants_of_removed_channels_go_into_the_next_bias_or_mean() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(96, 3),
    )
    model, x = shaken(model), torch.rand(2, 3, 8, 8)
    smaller, cuts = lilliput.cut(model, 0.5, x, absorb=True)
    expected = silenced(model, cuts, {"0.weight", "3.weight"})(x)
    torch.testing.assert_close(smaller(x), expected, rtol=1e-4, atol=1e-4)
    assert set(cuts.values) == {"4.running_mean", "7.bias"}
    plain, _ = lilliput.cut(model, 0.5, x)
    assert (model(x) - smaller(x)).norm() < (model(x) - plain(x)).norm()
    assert not torch.allclose(plain(x), expected, rtol=1e-2, atol=1e-2)


def test_zero_padding_takes_up_no_constant() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3, padding=1)))
    x = torch.rand(2, 3, 8, 8)
    smaller, cuts = lilliput.cut(model, 0.5, x, absorb=True)
    assert cuts.values == {}
    torch.testing.assert_close(smaller(x), zeroed(model, cuts)(x), rtol=1e-4, atol=1e-4)


def test_constants_in_a_residual_sum() -> None:
    model, x = shaken(Residual()), torch.rand(2, 3, 8, 8)
    smaller, cuts = lilliput.cut(model, 0.5, x, absorb=True)
    assert "head.bias" in cuts.values
    assert smaller(x).shape == (2, 5)
    assert not any("not absorbed" in line for line in cuts.lines)


class SplitAttention(nn.Module):
    """Two branches in one grouped convolution, weighed by a softmax over the branches (ResNeSt, SKNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.down, self.up = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 16, 1)
        self.c = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        n, _, h, w = x.shape
        branches = x.view(n, 2, -1, h, w)
        gate = self.up(F.relu(self.down(branches.sum(1).mean((2, 3), keepdim=True))))
        gate = gate.view(n, 2, -1, 1, 1).softmax(1)
        return self.c((branches * gate).sum(1))


def test_split_attention() -> None:
    smaller, _ = check(SplitAttention(), torch.rand(2, 3, 4, 4))
    assert (smaller.down.out_channels, smaller.up.in_channels) == (3, 3)
    assert smaller.b.out_channels == smaller.up.out_channels == 2 * smaller.c.in_channels == 8


class ChannelConvolution(nn.Module):
    """A convolution that slides along the channels keeps them (ECA)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slide, self.b = nn.Conv2d(3, 8, 1), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.c = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = self.slide(x.mean((2, 3))[:, None])[:, 0].sigmoid()
        return self.c(F.relu(self.b(x * gate[:, :, None, None])))


def test_convolution_along_channels() -> None:
    smaller, cuts = check(ChannelConvolution(), torch.rand(2, 3, 4, 4))
    assert (smaller.a.out_channels, smaller.b.out_channels) == (8, 3)
    assert "a.weight: kept whole because convolution slides along them" in cuts.lines


class GroupedQueries(nn.Module):
    """More heads of queries than of keys and values, which are repeated; the number of either is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.pairs = 4, 2
        self.q, self.k, self.v, self.out = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q = self.q(x).view(n, length, self.heads, 4).transpose(1, 2)
        k, v = (f(x).view(n, length, self.pairs, 4).transpose(1, 2) for f in (self.k, self.v))
        k, v = (y[:, :, None].expand(n, self.pairs, 2, length, 4).reshape(n, -1, length, 4) for y in (k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1))


def test_grouped_queries() -> None:
    smaller, _cuts = check(GroupedQueries(), torch.rand(2, 5, 6))
    assert (smaller.heads, smaller.pairs) == (2, 1)
    assert (smaller.q.out_features, smaller.k.out_features, smaller.out.in_features) == (8, 4, 8)


class Growing(nn.Module):
    """A residual sum on the first channels only, the rest behind (dual path, ReXNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 10, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(F.relu(x))
        return self.c(torch.cat([y[:, : self.width] + x, y[:, self.width :]], 1))


def test_growing_slices() -> None:
    smaller, _cuts = check(Growing(), torch.rand(2, 3, 4, 4))
    assert (smaller.width, smaller.a.out_channels, smaller.b.out_channels) == (3, 3, 5)


def test_gated_linear_unit() -> None:
    model = nn.Sequential(nn.Linear(4, 12), nn.GLU(), nn.Linear(6, 2))
    smaller, _ = check(model, torch.rand(2, 4))
    assert (smaller[0].out_features, smaller[2].in_features) == (6, 3)


def test_closure_and_one_class_a_channel() -> None:
    """Groups don't share an index of an axis, and each member has a place for each channel."""
    for model, x in ((Residual(), torch.rand(1, 3, 8, 8)), (Attention(True), torch.rand(1, 5, 24))):
        seen: set[tuple[str, int, int]] = set()
        for group in groups(model.eval(), x):
            for member in group.members:
                assert len(member.places) == group.size
                indices = [(member.parameter, member.axis, index) for places in member.places for index in places]
                assert len(indices) == len(set(indices))
                assert not seen & set(indices)
                seen |= set(indices)


def test_residual_widths_of_a_resnet_halve_its_weights_as_published() -> None:
    """ResNet-18 with all widths halved but the classes: 11,689,512 -> 3,055,880 weights."""

    def block(n: int, m: int, stride: int) -> nn.Module:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv1, self.bn1 = nn.Conv2d(n, m, 3, stride, 1, bias=False), nn.BatchNorm2d(m)
                self.conv2, self.bn2 = nn.Conv2d(m, m, 3, 1, 1, bias=False), nn.BatchNorm2d(m)
                self.down: nn.Module = nn.Identity()
                if stride > 1:
                    self.down = nn.Sequential(nn.Conv2d(n, m, 1, stride, bias=False), nn.BatchNorm2d(m))

            def forward(self, x: Tensor) -> Tensor:
                y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
                return F.relu(y + self.down(x))

        return Block()

    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks = [block(*width) for width in [*widths, (512, 512, 1)]]
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()
    assert count(model) == 11_689_512
    first = next(group for group in groups(model, torch.rand(1, 3, 64, 64)) if group.name == "0.weight")
    weights = {(member.parameter, member.axis) for member in first.members if "bn" not in member.parameter}
    assert {(name, axis) for name, axis in weights if not name.startswith("1.")} == {
        *(("0.weight", 0), ("4.conv2.weight", 0), ("5.conv2.weight", 0)),
        *(("4.conv1.weight", 1), ("5.conv1.weight", 1), ("6.conv1.weight", 1), ("6.down.0.weight", 1)),
    }
    smaller, _ = lilliput.cut(model, 0.5, torch.rand(1, 3, 64, 64))
    assert count(smaller) == 3_055_880
    assert macs(smaller, torch.rand(1, 3, 224, 224)) == 483_149_824


class ClassAttention(nn.Module):
    """Only the class token asks, all tokens answer (CaiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.token = nn.Parameter(torch.rand(1, 1, 24))
        self.q, self.k, self.v, self.proj = (nn.Linear(24, 24) for _ in range(4))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        n, length, _ = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(n, 1, self.num_heads, 6).permute(0, 2, 1, 3)
        k, v = (f(x).reshape(n, length, self.num_heads, 6).permute(0, 2, 1, 3) for f in (self.k, self.v))
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(x[:, 0] + self.proj(y.transpose(1, 2).reshape(n, -1)))


def test_class_attention() -> None:
    smaller, _ = check(ClassAttention(), torch.rand(2, 5, 24))
    assert smaller.num_heads == 2
    assert smaller.q.out_features == smaller.k.out_features == smaller.v.out_features == smaller.proj.in_features == 12


class CrossCovariance(nn.Module):
    """Attention between channels, normalized over the tokens, with a temperature a head (XCiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.temperature = nn.Parameter(torch.rand(4, 1, 1))
        self.qkv, self.proj, self.head = nn.Linear(24, 72), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, 6).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v
        return self.head(x + self.proj(y.permute(0, 3, 1, 2).reshape(n, length, -1)))


def test_cross_covariance_attention() -> None:
    smaller, _ = check(CrossCovariance(), torch.rand(2, 5, 24))
    assert smaller.temperature.shape == (2, 1, 1)
    assert (smaller.num_heads, smaller.qkv.out_features, smaller.proj.in_features) == (2, 36, 12)


class Windows(nn.Module):
    """Shifted windows with a mask that is written slice by slice (Swin), a layer scale that is reshaped."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.qkv, self.proj, self.head = nn.Linear(12, 36), nn.Linear(12, 12), nn.Linear(12, 3)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.scale = nn.Parameter(torch.rand(12))

    def parted(self, x: Tensor) -> Tensor:
        n, height, width, c = x.shape
        return x.view(n, height // 2, 2, width // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, c = x.shape
        places = torch.zeros(1, height, width, 1)
        for count, rows in enumerate((slice(0, 2), slice(2, 3), slice(3, 4))):
            places[:, rows] = count
        places = self.parted(places).squeeze(2)
        mask = (places[:, None] != places[:, :, None]).float() * -100.0
        y = self.parted(torch.roll(x, (-1, -1), (1, 2)))
        q, k, v = self.qkv(y).reshape(-1, 4, 3, self.num_heads, 6).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).view(n, -1, self.num_heads, 4, 4) + mask[None, :, None]
        y = (weights.view(-1, self.num_heads, 4, 4).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 6 * self.num_heads)
        y = self.proj(y).view(n, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, c)
        x = x + torch.roll(y, (1, 1), (1, 2)) * self.scale.view(1, 1, 1, -1)
        return self.head(x + self.down(F.gelu(self.up(x))))


def test_shifted_windows() -> None:
    smaller, _ = check(Windows(), torch.rand(2, 4, 4, 12))
    assert (smaller.num_heads, smaller.qkv.out_features, smaller.proj.in_features) == (1, 18, 6)
    assert (smaller.up.out_features, smaller.down.in_features) == (10, 10)


class GatedConvolution(nn.Module):
    """A gate, what passes unchanged, and what is convolved by itself (MambaOut, InceptionNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (12, 8, 4)
        self.a, self.b = nn.Conv2d(3, 24, 1), nn.Conv2d(12, 2, 1)
        self.c = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        gate, same, rest = torch.split(self.a(x), self.sizes, 1)
        return self.b(F.gelu(gate) * torch.cat([same, self.c(rest)], 1))


def test_gated_convolution() -> None:
    smaller, _ = check(GatedConvolution(), torch.rand(2, 3, 6, 6))
    assert (smaller.a.out_channels, smaller.c.groups, smaller.b.in_channels) == (12, 2, 6)
    assert smaller.sizes == (6, 4, 2)


class Picked(nn.Module):
    """Channels by indices that the model holds, as CondenseNet does; some are picked twice."""

    def __init__(self, select: bool) -> None:
        super().__init__()
        self.select = select
        self.a, self.norm = nn.Conv2d(3, 10, 1), nn.BatchNorm2d(8)
        self.register_buffer("index", torch.tensor([4, 1, 9, 1, 0, 7, 3, 3]))
        self.b, self.c = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.index_select(x, 1, self.index) if self.select else x[:, self.index]
        return self.c(F.relu(self.b(F.relu(self.norm(x)))))


@pytest.mark.parametrize("select", [True, False])
def test_what_is_picked_by_held_indices_can_go(select: bool) -> None:
    smaller, cuts = check(Picked(select), torch.rand(2, 3, 4, 4))
    assert (smaller.a.out_channels, smaller.norm.num_features, smaller.b.in_channels) == (10, 4, 4)
    assert smaller.c.in_channels == 6
    kept = next(cut.kept for cut in cuts.cuts if cut.parameter == "index")
    assert smaller.index.tolist() == [[4, 1, 9, 1, 0, 7, 3, 3][place] for place in kept]
    assert any("a.weight: kept whole because" in line and "picks some of them" in line for line in cuts.lines)
