"""Passes: what the network computes stays the same, closed forms, and the way through recipe, file and training."""

import copy

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import DataError, MethodError, RecipeError
from lilliput.core.layers import tensors_of
from lilliput.core.recipe import Recipe
from lilliput.file.read import loads
from lilliput.file.write import dumps
from lilliput.graph.fold import fold
from lilliput.graph.scaling import spaces_of
from lilliput.graph.trace import trace
from lilliput.nets.resnet import ResNet
from lilliput.quantize.passes.absorb import Absorb
from lilliput.quantize.passes.bias_correction import BiasCorrection
from lilliput.quantize.passes.equalize import Equalize
from lilliput.quantize.passes.smooth import Smooth, largest_inputs
from lilliput.train.attach import attachment


def chain():
    """Two makers whose channels differ by powers of ten, a depthwise layer among them, and one that takes them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3)),
    )
    with torch.no_grad():
        model[0].weight.mul_(10.0 ** torch.linspace(-1, 1, 6).reshape(-1, 1, 1, 1))
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.normal_()
    return model.eval()


class Attention(nn.Module):
    """A LayerNorm before two layers, as transformers have it, with an outlier among its channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.q, self.k = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        with torch.no_grad():
            self.norm.weight[3] = 50

    def forward(self, x):
        y = self.norm(x)
        return x + torch.softmax(self.q(y) @ self.k(y).transpose(1, 2), -1) @ x


def resnet():
    torch.manual_seed(0)
    model = ResNet(8, "cifar", 0.5, num_classes=10, channels=1, size=16).build()
    model.train()
    for _ in range(3):
        model(torch.randn(8, 1, 16, 16))
    return model.eval()


NETS = {
    "chain": (chain, torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))),
    "attention": (Attention, torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))),
    "resnet": (resnet, torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))),
}


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", [Equalize(), Smooth(), Smooth(alpha=1.0)], ids=["equalize", "smooth", "all"])
def test_what_the_network_computes_stays_the_same(method, net, folded):
    make, x = NETS[net]
    model = make()
    if folded:
        fold(model, x)
    graph, constants = trace(model, x)
    assert spaces_of(graph, tensors_of(model) | constants) or net == "attention"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(x)
        method.rewrite(model, graph, [x])
        assert float((model(x) - wanted).abs().max()) < 1e-5 * max(1.0, float(wanted.abs().max()))
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed, "weights are scaled"
    assert not any("running" in name for name in changed)


def test_equalized_weights_reach_equally_far():
    model = chain()
    fold(model, NETS["chain"][1])
    graph, _ = trace(model, NETS["chain"][1])
    Equalize().rewrite(model, graph)
    rows = model[0].weight.detach().flatten(1).abs().amax(1)
    middle = model[3].weight.detach().flatten(1).abs().amax(1)
    columns = model[7].weight.detach().abs().amax(0)
    torch.testing.assert_close(rows, middle, rtol=1e-3, atol=0)
    torch.testing.assert_close(middle, columns, rtol=1e-3, atol=0)


def test_smooth_is_its_formula():
    model, x = Attention(), NETS["attention"][1]
    graph, _ = trace(model, x)
    with torch.no_grad():
        inputs = model.norm(x).abs().amax((0, 1))
        weights = torch.maximum(model.q.weight.abs().amax(0), model.k.weight.abs().amax(0))
        scale, q = model.norm.weight.clone(), model.q.weight.clone()
    Smooth(alpha=0.7).rewrite(model, graph, x)
    factors = inputs**0.7 / weights**0.3
    torch.testing.assert_close(model.norm.weight.detach(), scale / factors)
    torch.testing.assert_close(model.q.weight.detach(), q * factors)
    Smooth(alpha=1.0).rewrite(model, graph, x)
    (space,) = spaces_of(graph, tensors_of(model))
    seen = largest_inputs(model, space.takers, x)
    torch.testing.assert_close(seen["q.weight"], torch.ones(8)), "all that differed is in the weights"


def test_bias_correction_takes_off_what_was_added_layer_by_layer():
    model, x = chain(), NETS["chain"][1]
    after = copy.deepcopy(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in after.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.1 * parameter.abs().mean() * torch.rand_like(parameter))
    graph, _ = trace(model, x)
    with torch.no_grad():
        far = float((after(x) - model(x)).abs().mean())
        told = BiasCorrection().rewrite(after, graph, [x], model)
        assert told == ["4 biases corrected"]
        # Behind the ReLU of those that have one, where it isn't shut nearly everywhere.
        for place, axes in ((2, (0, 2, 3)), (4, (0, 2, 3)), (7, (0,)), (9, (0,))):
            one, other = (net[: place + 1](x) for net in (model, after))
            open_channels = (one != 0).double().mean(axes) > 0.1
            assert bool(open_channels.any())
            kept = [value.mean(axes)[open_channels] for value in (other, one)]
            torch.testing.assert_close(*kept, rtol=1e-4, atol=1e-5)
        assert float((after(x) - model(x)).abs().mean()) < far


@pytest.mark.parametrize("clip", [nn.ReLU6(), nn.Hardtanh(-1.0, 6.0)])
def test_bias_correction_passes_over_what_is_cut_off(clip):
    """An error of results that end at 6 in both networks shifts nothing, where E[y~] - E[y] would shift all."""
    model = nn.Sequential(nn.Linear(1, 1), clip, nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    after = copy.deepcopy(model)
    x = torch.tensor([[0.5], [1.0], [2.0], [100.0]])
    with torch.no_grad():
        after[0].weight.fill_(1.01)  # 1 too much at 100
    BiasCorrection().rewrite(after, trace(model, x)[0], [x], model)
    assert float(after[0].bias) == pytest.approx(-0.035 / 3, rel=1e-4), "the mean of 0.005, 0.01 and 0.02"
    torch.testing.assert_close(after[:2](x).mean(), model[:2](x).mean())


def test_bias_correction_leaves_channels_that_are_never_open():
    """No shift makes a mean of a channel that is cut off everywhere; nothing explodes."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([-50.0, 0.0]))
    after = copy.deepcopy(model)
    with torch.no_grad():
        after[0].weight.mul_(1.1)
    x = torch.linspace(0.1, 2, 40)[:, None]
    BiasCorrection().rewrite(after, trace(model, x)[0], [x], model)
    assert float(after[0].bias[0]) == -50.0
    torch.testing.assert_close(after(x).mean(0), model(x).mean(0))


def test_bias_correction_of_weights_alone_is_their_error_times_the_mean_input():
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(20, 5)
    after = copy.deepcopy(layer)
    with torch.no_grad():
        after.weight.add_(torch.randn(3, 5))
        wanted = layer.bias - (after.weight - layer.weight) @ x.mean(0)
    BiasCorrection().rewrite(after, trace(layer, x)[0], list(x.split(5)), layer)
    torch.testing.assert_close(after.bias.detach(), wanted)


def test_bias_correction_behind_batchnorm_and_relu_is_the_papers_closed_form():
    """E[relu(x)] = g phi(-b/g) + b (1 - Phi(-b/g)) for x of mean b and deviation g; b -= (W~ - W) E[x]."""
    shift, scale = torch.tensor([1.0, -0.5, 0.0, 2.0]), torch.tensor([0.5, 1.0, 2.0, 0.3])
    unit = torch.special.ndtri((torch.rand(4, 40_000, generator=torch.Generator().manual_seed(0)) + 1e-6) / 1.00001)
    x = torch.relu(shift + scale * unit.T)
    normal = torch.distributions.Normal(0.0, 1.0)
    ratio = -shift / scale
    mean = scale * normal.log_prob(ratio).exp() + shift * (1 - normal.cdf(ratio))
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    after = copy.deepcopy(layer)
    with torch.no_grad():
        after.weight.copy_((4 * after.weight).round() / 4)
        wanted = layer.bias - (after.weight - layer.weight) @ mean
    BiasCorrection().rewrite(after, trace(layer, x[:4])[0], [x], layer)
    torch.testing.assert_close(after.bias.detach(), wanted, rtol=0, atol=0.005)
    assert float((after.bias - layer.bias).detach().abs().max()) > 0.02


def biased(activation=nn.ReLU, **settings):
    """Channels of large means before a ReLU, then a layer that takes them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), activation(), nn.Conv2d(6, 4, 3, groups=2, **settings))
    with torch.no_grad():
        model[1].weight.uniform_(0.2, 1)
        model[1].bias.copy_(torch.tensor([9.0, 4, 2, 0.5, -1, 6]))
    return model


def test_absorbed_biases_are_shift_less_three_scales_and_change_no_output():
    """By the statistics of the data BatchNorm's shift and scale are mean and deviation of what it gives."""
    model, x = biased(), torch.rand(64, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    model.train()
    for _ in range(200):
        model[:2](x)
    model.eval()
    expected = (model[1].bias - 3 * model[1].weight.abs()).detach().clamp(min=0)
    fold(model, x)
    before, taken, outer = model[1].bias.detach().clone(), model[3].bias.detach().clone(), model[3].weight.detach()
    with torch.no_grad():
        wanted, high = model(x), float(model[:3](x).amax())
        told = Absorb().rewrite(model, trace(model, x)[0], list(x.split(16)))
        shift = before - model[1].bias
        assert told == [f"{int((expected > 0).sum())} channels in 1 place absorbed"]
        torch.testing.assert_close(shift, expected, rtol=0.02, atol=0.02)
        columns = torch.block_diag(*outer.sum((2, 3)).split(2))
        torch.testing.assert_close(model[3].bias, taken + columns @ shift)
        assert float(model[:3](x).amax()) < 0.7 * high, "the range of the activations is smaller"
        far = (model(x) - wanted).abs()
        assert float((far > 1e-5).float().mean()) < 0.3
        assert float(far.mean()) < 2e-3 * float(wanted.std())
        Absorb(times=50).rewrite(model, trace(model, x)[0], [x])
        torch.testing.assert_close(model[1].bias, before - shift)


def test_with_room_below_the_outputs_are_the_same():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(50, 3)
    with torch.no_grad():
        model[0].bias.fill_(5)
        wanted = model(x)
        Absorb().rewrite(model, trace(model, x)[0], x)
        assert float((model[0].bias - 5).max()) < -1
        assert float((model(x) - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("model", [biased(nn.ReLU6), biased(padding=1), biased(bias=False), biased(nn.GELU)])
def test_what_would_change_outputs_is_not_absorbed(model):
    x = torch.rand(4, 2, 8, 8)
    model.eval()
    fold(model, x)
    with torch.no_grad():
        wanted = model(x)
        assert Absorb().rewrite(model, trace(model, x)[0], x) == ["0 channels in 0 places absorbed"]
        assert torch.equal(model(x), wanted)


def test_relu6_keeps_its_channels_and_residual_streams_around_it_are_scaled():
    """It clips at 6, so that a factor doesn't commute; the channels after the second layer are free."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU6(), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    x = 20 * torch.rand(2, 2, 4, 4)
    graph, constants = trace(model, x)
    spaces = spaces_of(graph, tensors_of(model) | constants)
    assert [space.takers[0].weight for space in spaces] == ["3.weight"]
    with torch.no_grad():
        wanted, first = model(x), model[0].weight.clone()
        assert Equalize().rewrite(model, graph) == ["4 channels in 1 place equalized"]
        torch.testing.assert_close(model(x), wanted)
        assert torch.equal(model[0].weight, first)


RECIPE = """
passes = ["equalize", "smooth:0.3", "bias_correction"]

[[rule]]
steps = [{method = "quantize/uniform", bits = 4, per = "tensor"}]
activations = "uniform:8"
"""


def test_they_bring_a_network_with_one_scale_a_tensor_nearer():
    model, x = chain()[:8], NETS["chain"][1]
    fold(model, x)
    state, errors = tensors_of(model), []
    for space in spaces_of(trace(model, x)[0], state):
        space.divide(100.0 ** torch.linspace(-1, 1, space.channels), state)
    with torch.no_grad():
        wanted = model(x)
        for passes in ("[]", '["equalize"]', '["equalize", "bias_correction"]'):
            text = RECIPE.replace('["equalize", "smooth:0.3", "bias_correction"]', passes)
            net = lilliput.load(lilliput.compress(model, Recipe.loads(text), [x]), engine="dense")
            errors.append(float((net(x) - wanted).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("way", ["compress", "attach"])
def test_through_recipe_file_and_the_users_class(way):
    recipe, model, x = Recipe.loads(RECIPE), chain(), NETS["chain"][1]
    assert Recipe.loads(recipe.dumps()) == recipe
    assert recipe.passes[1] == Smooth(alpha=0.3)
    if way == "compress":
        artifact = lilliput.compress(model, recipe, iter([x]))
    else:
        lilliput.attach(model, recipe, iter([x]))
        assert attachment(model).notes["pass quantize/passes/bias_correction"] == "4 biases corrected"
        lilliput.attach(model, recipe, iter([x]))
        with pytest.raises(RecipeError, match="other passes"):
            lilliput.attach(model, Recipe(recipe.rules, passes=(Equalize(),)), [x])
        artifact = lilliput.pack(model)
    artifact = loads(dumps(artifact))
    assert artifact.recipe == recipe
    assert "equalized" in artifact.facts["notes"]["pass quantize/passes/equalize"]
    with torch.no_grad():
        one, other = lilliput.load(artifact, engine="dense")(x), lilliput.load(artifact, into=chain())(x)
        if way == "attach":
            assert torch.equal(one, model(x))
            assert torch.equal(one, other)
    assert float((one - other).detach().abs().max()) < 0.01


def test_bad_input_is_one_line_and_changes_nothing():
    x = NETS["chain"][1]
    rules = Recipe.loads(RECIPE).rules
    for kind, text, recipe, data in (
        (DataError, "smooth needs data", Recipe(passes=(Smooth(),)), None),
        (DataError, "equalize needs an example", Recipe(passes=(Equalize(),)), None),
        (DataError, "NaN or infinite", Recipe(rules, passes=(Smooth(),)), [x * torch.nan]),
        (DataError, "NaN or infinite", Recipe(passes=(BiasCorrection(),)), [x * torch.nan]),
    ):
        for way in (lilliput.compress, lilliput.attach):
            model = chain()
            before = copy.deepcopy(model.state_dict())
            with pytest.raises(kind, match=text) as caught:
                way(model, recipe, data)
            assert "\n" not in str(caught.value)
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for text, wrong in (("passes: must be a list", '"equalize"'), (r"passes\[0\]", '["equalise"]')):
        with pytest.raises(RecipeError, match=text):
            Recipe.loads(f"passes = {wrong}")
    with pytest.raises(RecipeError, match="can't stand here"):
        Recipe.loads('passes = ["quantize/uniform"]')
    with pytest.raises(MethodError, match="alpha"):
        Smooth(alpha=2)
