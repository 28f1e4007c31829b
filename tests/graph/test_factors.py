"""Factorized layers run as chains: the same outputs, fewer numbers and multiplications, or they stay as they are."""

import pytest
import torch
from torch import nn

import lilliput
from lilliput import CutRule, Recipe, Rule
from lilliput.core.packed import Packed, unpack
from lilliput.factorize.block_term import BlockTerm
from lilliput.factorize.cp import Cp
from lilliput.factorize.spatial import Spatial
from lilliput.factorize.spatial_own import SpatialOwn
from lilliput.factorize.svd import Svd
from lilliput.factorize.tucker import Tucker
from lilliput.graph.factors import factored, multiplications
from lilliput.quantize.uniform import Uniform


def size(module):
    return sum(tensor.numel() for tensor in module.state_dict().values())


def check(model, steps, example, replaced, match="*"):
    """The classless net computes what the user's module does with the unpacked weights; these were replaced."""
    recipe = Recipe((Rule(match=match, steps=steps), Rule()))
    artifact = lilliput.compress(model, recipe, example=example)
    net, filled = lilliput.load(artifact, engine="dense"), lilliput.load(artifact, into=model)
    with torch.no_grad():
        torch.testing.assert_close(net(example), filled(example), rtol=1e-4, atol=1e-5)
    gone = set(model.state_dict()) - set(net.state_dict())
    assert gone == set(replaced)
    assert not replaced or size(net) < size(model)
    return net


@pytest.mark.parametrize(
    "method",
    [
        Svd(rank=3),
        Svd(rank=3, view="in"),
        Svd(rank=3, view="space"),
        Spatial(rank=3),
        SpatialOwn(rank=1),
        Tucker(rule="ratio", ratio=0.3),
        BlockTerm(blocks=2, ratio=0.3),
        Cp(rank=4),
        Cp(rank=4, form="three"),
    ],
    ids=str,
)
@pytest.mark.parametrize("setting", [{"padding": 1}, {"stride": 2, "padding": (2, 1), "dilation": 2, "bias": False}])
def test_convolutions(method, setting):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(12, 16, 3, **setting), nn.ReLU(), nn.Conv2d(16, 4, 3, groups=4)).eval()
    check(model, (method,), torch.randn(2, 12, 13, 12), ["0.weight"], match="0.weight")


def test_groups():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(24, 24, 3, groups=2, padding=1), nn.Conv2d(24, 24, 3, groups=24)).eval()
    net = check(model, (Svd(rank=2),), torch.randn(2, 24, 7, 7), ["0.weight"])
    assert [tuple(net.state_dict()[f"0.weight.{i}"].shape) for i in (0, 1)] == [(4, 12, 3, 3), (24, 2, 1, 1)]


def test_one_axis_and_padding_in_words():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(8, 16, 5, padding="same"), nn.Conv1d(16, 16, 4, padding="same")).eval()
    check(model, (Svd(rank=2),), torch.randn(2, 8, 20), ["0.weight"])


PLAIN = [Tucker(rule="ratio", ratio=0.3), BlockTerm(blocks=2, ratio=0.3), Cp(rank=4)]


@pytest.mark.parametrize("method", [*PLAIN, Svd(rank=3), Svd(rank=3, view="in"), Cp(rank=4, form="three")], ids=str)
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_one_and_three_axes_with_stride_and_dilation(method, kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(12, 16, 3, stride=2, padding=2, dilation=2)).eval()
    check(model, (method,), torch.randn(2, 12, *[9] * (1 if kind is nn.Conv1d else 3)), ["0.weight"])


@pytest.mark.parametrize("method", [*PLAIN, Spatial(rank=3), SpatialOwn(rank=1)], ids=str)
def test_groups_without_a_chain_run_by_the_composed_weight(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(24, 24, 3, groups=2, padding=1)).eval()
    check(model, (method,), torch.randn(2, 24, 7, 7), [])


def test_depthwise_layers_are_kept_and_it_is_said_why():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 40, 1)).eval()
    recipe = Recipe((Rule(steps=(Svd(energy=0.99),)),))
    artifact = lilliput.compress(model, recipe, example=torch.randn(1, 8, 5, 5))
    assert torch.equal(artifact.weights["0.weight"], model[0].weight)
    assert "of a 8 x 9 matrix holds" in str(artifact.facts)
    assert "numbers, the weight 72" in str(artifact.facts)


def test_projections_of_attention():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True).eval()
    x = torch.randn(2, 5, 24)
    artifact = lilliput.compress(model, Recipe((Rule(match="*weight", steps=(Svd(rank=4),)), Rule())), example=x)
    packed = {name for name, part in artifact.weights.items() if isinstance(part, Packed)}
    assert {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"} <= packed
    net, filled = lilliput.load(artifact), lilliput.load(artifact, into=model)
    with torch.no_grad():
        torch.testing.assert_close(net(x), filled(x), rtol=1e-4, atol=1e-5)


def test_channels_are_cut_and_what_is_left_is_factorized():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Conv2d(24, 8, 3)).eval()
    rule = Rule(layers="conv*", steps=(Tucker(rule="ratio", ratio=0.3),))
    recipe = Recipe((rule, Rule()), cuts=(CutRule("2.weight"),))
    x = torch.randn(2, 3, 12, 12)
    artifact = lilliput.compress(model, recipe, example=x)
    assert artifact.weights["2.weight"].shape[0] == 12
    net, filled = lilliput.load(artifact), lilliput.load(artifact, into=model)
    with torch.no_grad():
        torch.testing.assert_close(net(x), filled(x), rtol=1e-4, atol=1e-5)
    assert "2.weight.1" in net.state_dict()


def test_factors_may_be_quantized_and_trained_on(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 10)).eval()
    net = check(model, (Svd(rank=4), Uniform(bits=6)), torch.randn(5, 30), ["0.weight", "2.weight"])
    net(torch.randn(3, 30)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert sorted(net.state_dict())[:3] == ["0.bias", "0.weight.0", "0.weight.1"]


def test_a_chain_that_would_be_slower_is_left_alone():
    torch.manual_seed(0)
    # The first factor of a strided layer works before the stride, at four times as many places.
    model = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2)).eval()
    check(model, (Tucker(rank_out=6, rank_in=7),), torch.randn(1, 8, 9, 9), [])
    check(model, (Svd(rank=8, force=True),), torch.randn(1, 8, 9, 9), [])


def test_multiplications_are_those_of_the_places():
    like = nn.Conv2d(8, 8, 3, stride=2)
    chain = [nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 8, 1)]
    assert multiplications(chain, like) == 8 * 4 * 4 + 4 * 4 * 9 + 4 * 8
    assert multiplications([nn.Linear(5, 2), nn.Linear(2, 7)], nn.Linear(5, 7)) == 5 * 2 + 2 * 7


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.inner = nn.Linear(16, 16)
        self.out = nn.Linear(16, 50)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(self.inner(self.embedding(tokens)).relu())


def test_tied_embedding():
    torch.manual_seed(0)
    net = check(Tied().eval(), (Svd(rank=3),), torch.randint(50, (2, 7)), ["embedding.weight", "out.weight"], "emb*")
    assert {tuple(net.state_dict()[f"embedding.weight.{i}"].shape) for i in (0, 1)} == {(3, 16), (50, 3)}


def test_an_embedding_alone_stays():
    torch.manual_seed(0)
    check(nn.Sequential(nn.Embedding(50, 16)).eval(), (Svd(rank=3),), torch.randint(50, (2, 7)), [])


def test_a_strangers_factors_are_refused_by_the_one_who_unpacks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40)).eval()
    artifact = lilliput.compress(model, Recipe((Rule(steps=(Svd(rank=4),)),)), example=torch.randn(1, 30))
    good = artifact.weights["0.weight"]
    assert isinstance(good, Packed)
    bad = good.with_parts(u=torch.zeros(40, 5))
    assert factored(artifact.graph, {"0.weight": bad}).replaced == frozenset()
    with pytest.raises(lilliput.LilliputError, match="factors"):
        unpack(bad)
