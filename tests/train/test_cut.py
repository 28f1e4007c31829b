"""Cuts of a recipe: what is removed by which rule, in `compress`, `attach` and `fit`, and what the file makes of it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput
from lilliput import CutRule, Recipe, Rule
from lilliput.core.errors import DataError, MethodError, RecipeError
from lilliput.file.read import read
from lilliput.graph.cut import noted_cuts
from lilliput.prune.apoz import APoZ
from lilliput.prune.filter_norm import FilterNorm
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.next_layer import NextLayer
from lilliput.prune.taylor import Taylor
from lilliput.quantize.uniform import Uniform
from lilliput.train.cut import cut_by
from lilliput.train.fit import fit


class Net(nn.Module):
    """Two convolutions with a norm each, two linear layers, a class of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12)
        self.fc1, self.fc2 = nn.Linear(12 * 16, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def shaken(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net().eval()
    with torch.no_grad():
        for norm in (model.norm1, model.norm2):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.3, 0.3)
    return model


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 1, 8, 8), torch.arange(8) % 4) for _ in range(count)]


def widths(model: Any) -> tuple[int, ...]:
    return tuple(getattr(model, name).weight.shape[0] for name in ("conv1", "conv2", "fc1"))


HALF = Recipe.loads("[[cut]]\nshare = 0.5")


def test_the_file_is_smaller_runs_without_the_class_and_fills_a_fresh_model(tmp_path: Path) -> None:
    model = shaken()
    before = copy.deepcopy(model.state_dict())
    artifact = lilliput.compress(model, HALF, batches())
    assert widths(model) == (8, 12, 10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    artifact.save(tmp_path / "net.safetensors")
    x = torch.randn(5, 1, 8, 8)
    expected = lilliput.cut(model, 0.5, x)[0](x)
    net = lilliput.load(tmp_path / "net.safetensors")
    fresh = lilliput.load(tmp_path / "net.safetensors", into=Net())
    assert widths(fresh) == widths(net) == (4, 6, 5)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fresh(x), expected, rtol=1e-4, atol=1e-5)
    report = read(tmp_path / "net.safetensors").report.to_dict()
    assert "conv1.weight: removed 4 of 8 channels" in report["kept"].values()
    assert "fc2.weight: kept whole because they are the network's outputs" in report["kept"].values()
    assert "[[cut]]\nshare = 0.5" in report["recipe"]
    assert report["summary"]["original"] == sum(v.numel() * v.element_size() for v in before.values())


def test_rules_go_in_order_by_name_and_by_pattern() -> None:
    cuts = (
        CutRule("conv1.*", share=0.25),
        CutRule(pattern="filter", share=0.5),
        CutRule(pattern="neuron", share=0.3, multiple=4),
    )
    smaller, steps = cut_by(shaken(), Recipe(cuts=cuts), torch.randn(1, 1, 8, 8))
    assert widths(smaller) == (6, 6, 8)
    assert len(steps) == 2  # two multiples
    assert len(noted_cuts(smaller).cuts) == len({(cut.parameter, cut.axis) for cut in noted_cuts(smaller).cuts})


def test_a_weight_is_named_for_its_outputs_not_its_inputs() -> None:
    smaller, _ = cut_by(shaken(), Recipe(cuts=(CutRule("conv2.weight"),)), torch.randn(1, 1, 8, 8))
    assert widths(smaller) == (8, 6, 10)


class Attention(nn.Module):
    """Self-attention of four heads, its outputs summed up."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for layer in (self.query, self.key)]
        value = self.value(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(*parts, value)
        return self.out(y.transpose(1, 2).flatten(2))


def test_heads_are_a_pattern(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(2, 5, 16)
    recipe = Recipe(cuts=(CutRule(pattern="head", share=0.5),))
    smaller, _ = cut_by(model, recipe, x)
    assert (smaller.num_heads, smaller.query.out_features, smaller.out.in_features) == (2, 8, 8)
    lilliput.compress(model, recipe, example=x).save(tmp_path / "net.safetensors")
    fresh = lilliput.load(tmp_path / "net.safetensors", into=Attention())
    torch.testing.assert_close(fresh(x), smaller(x), rtol=1e-4, atol=1e-5)


def weakest(scores: Tensor, count: int) -> set[int]:
    return set(scores.argsort()[:count].tolist())


def removed(model: nn.Module, name: str) -> set[int]:
    cut = next(cut for cut in noted_cuts(model).cuts if (cut.parameter, cut.axis) == (name, 0))
    return set(range(cut.size)) - set(cut.kept)


def test_a_criterion_is_calibrated_on_the_data() -> None:
    """APoZ removes the maps that are silent most often, which the weights alone don't tell."""
    model, data = shaken(), batches()
    with torch.no_grad():
        model.norm1.bias[[1, 5]] = -100.0
    rule = CutRule("conv1.weight", share=0.25, criterion=APoZ())
    smaller, _ = cut_by(model, Recipe(cuts=(rule,)), data[0][0], data)
    assert removed(smaller, "conv1.weight") == {1, 5}


@pytest.mark.parametrize("criterion", [Taylor(), NextLayer(), Magnitude(), FilterNorm()])
def test_any_criterion_scores_channels(criterion: Any) -> None:
    data = batches()
    smaller, _ = cut_by(shaken(), Recipe(cuts=(CutRule(criterion=criterion),)), data[0][0], data)
    assert widths(smaller) == (4, 6, 5)


def test_scores_of_a_criterion_are_summed_over_what_goes_with_a_channel() -> None:
    model = shaken()
    smaller, _ = cut_by(model, Recipe(cuts=(CutRule("conv1.weight", criterion=Magnitude()),)), torch.randn(1, 1, 8, 8))
    scores = model.conv1.weight.abs().sum((1, 2, 3)) + model.conv2.weight.abs().sum((0, 2, 3))
    scores += model.norm1.weight.abs() + model.norm1.bias.abs()
    assert removed(smaller, "conv1.weight") == weakest(scores.detach(), 4)


def test_rules_that_follow_see_the_smaller_weights() -> None:
    recipe = Recipe((Rule("conv2.weight", (Uniform(bits=4),)),), cuts=(CutRule(),))
    artifact = lilliput.compress(shaken(), recipe, batches())
    assert artifact.weights["conv2.weight"].shape == (6, 4, 3, 3)
    assert artifact.weights["conv2.weight"].method == "quantize/uniform"


def test_criterion_and_steps_both_take_the_data_though_it_is_an_iterator() -> None:
    recipe = Recipe.loads("""
        [[cut]]
        share = 0.5
        criterion = "prune/taylor"

        [[rule]]
        layers = "conv2d"
        steps = [{method = "prune/obc", sparsity = 0.5}]
    """)
    artifact = lilliput.compress(shaken(), recipe, iter(batches()))
    assert artifact.weights["conv2.weight"].shape == (6, 4, 3, 3)
    assert int((artifact.weight("conv2.weight") == 0).sum()) == 6 * 4 * 9 // 2


def test_cutting_what_was_cut_composes() -> None:
    model, x = shaken(), torch.randn(3, 1, 8, 8)
    once, _ = lilliput.cut(model, 0.5, x)
    artifact = lilliput.compress(once, Recipe(cuts=(CutRule("conv2.weight"),)), example=x)
    fresh = lilliput.load(artifact, into=Net())
    assert widths(fresh) == (4, 3, 5)
    torch.testing.assert_close(fresh(x), lilliput.load(artifact)(x), rtol=1e-4, atol=1e-5)


def test_constants_are_absorbed_where_that_is_exact() -> None:
    """Without padding the bias of a removed channel moves on; the outputs are nearer to the whole model's."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[0].weight[:3] *= 1e-3
        model[0].weight[3:] *= 5
        model[0].bias[:3] = 0.5
    x = torch.randn(16, 6)
    errors = []
    for absorb in (False, True):
        smaller, _ = cut_by(model, Recipe(cuts=(CutRule(share=0.375, absorb=absorb),)), x)
        errors.append(float((smaller(x) - model(x)).square().mean().detach()))
    assert errors[1] < 0.01 * errors[0]


def test_attach_cuts_in_place_trains_and_packs(tmp_path: Path) -> None:
    model, data = shaken(), batches()
    rules = (Rule(layers="conv2d", steps=(Uniform(bits=6),)), Rule(layers="linear", steps=(Magnitude(sparsity=0.5),)))
    bytes_before = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    lilliput.attach(model, Recipe(rules, cuts=(CutRule(share=0.5, criterion=Taylor()),)), data)
    assert (model.conv1.out_channels, model.conv2.in_channels, model.fc1.in_features) == (4, 4, 96)
    fit(model, data, epochs=2)
    artifact = lilliput.pack(model.eval())
    artifact.save(tmp_path / "net.safetensors")
    x = torch.randn(5, 1, 8, 8)
    fresh = lilliput.load(tmp_path / "net.safetensors", into=Net())
    torch.testing.assert_close(fresh(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lilliput.load(tmp_path / "net.safetensors")(x), model(x), rtol=1e-4, atol=1e-5)
    assert artifact.facts["original"] == bytes_before
    assert widths(lilliput.detach(model)) == (4, 6, 5)


def test_the_same_cuts_attached_again_are_there_already() -> None:
    model, data = shaken(), batches()
    lilliput.attach(model, HALF, data)
    lilliput.attach(model, Recipe((Rule(steps=(Uniform(bits=4),)),), cuts=HALF.cuts), data)
    assert widths(model) == (4, 6, 5)
    with pytest.raises(RecipeError, match="detach"):
        lilliput.attach(model, Recipe(cuts=(CutRule(share=0.2),)), data)


def test_a_failing_attach_leaves_the_model_as_it_was() -> None:
    model = shaken()
    parameters = list(model.parameters())
    bad = Recipe((Rule("conv1.weight", (Magnitude(sparsity=0.5, pattern="head:5"),)),), cuts=(CutRule(),))
    with pytest.raises(MethodError, match=r"conv1\.weight"):
        lilliput.attach(model, bad, batches())
    assert all(one is two for one, two in zip(parameters, model.parameters()))
    assert widths(model) == (8, 12, 10)


@pytest.mark.parametrize(
    ("rule", "data", "error", "message"),
    [
        (CutRule("conv9.*"), True, RecipeError, r"cut\[0\] \(match = 'conv9.\*', .* fits no channels; there is conv2"),
        (CutRule(pattern="head"), True, RecipeError, "fits no channels"),
        (CutRule(criterion=Taylor()), False, MethodError, r"cut\[0\]: prune/taylor: needs data"),
        (CutRule(), None, RecipeError, "takes an input of the model: give example= or data"),
    ],
)
def test_refusals_are_one_line(rule: CutRule, data: Any, error: type[Exception], message: str) -> None:
    model = shaken()
    given = {True: {"data": batches()}, False: {"example": torch.randn(1, 1, 8, 8)}, None: {}}[data]
    for use in (lilliput.compress, lilliput.attach):
        with pytest.raises(error, match=message) as raised:
            use(model, Recipe(cuts=(rule,)), **given)
        assert "\n" not in str(raised.value)
    assert widths(model) == (8, 12, 10)


def test_activations_that_are_nan_and_a_single_sample() -> None:
    x = torch.randn(1, 1, 8, 8)
    recipe = Recipe(cuts=(CutRule(criterion=APoZ()),))
    assert widths(cut_by(shaken(), recipe, x, [x])[0]) == (4, 6, 5)
    with pytest.raises(DataError, match="NaN"):
        lilliput.compress(shaken(), recipe, [x.fill_(float("nan"))])


def test_a_dead_layer_keeps_a_channel_and_scores_that_are_nan_are_named() -> None:
    model, x = shaken(), torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert widths(cut_by(model, Recipe(cuts=(CutRule(share=0.99),)), x)[0]) == (1, 1, 1)

    class Odd:
        def score(self, weight: Tensor, stats: Any = None) -> Tensor:
            return weight * torch.nan

    with pytest.raises(MethodError, match=r"cut\[0\]: the criterion gives NaN for conv1\.weight"):
        cut_by(model, Recipe(cuts=(CutRule(criterion=Odd()),)), x)
