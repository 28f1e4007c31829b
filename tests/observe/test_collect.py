"""Calibration: what is collected is what its definition says, batch by batch, and the model is untouched."""

import contextlib
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import DataError, MethodError
from lilliput.core.recipe import Recipe, Rule
from lilliput.observe.collect import collect
from lilliput.observe.inputs import pieces
from lilliput.prune.obc import OBC
from lilliput.prune.wanda import Wanda
from lilliput.train.attach import attach
from lilliput.train.compress import compress

BOTH = frozenset({"gram", "inputs"})
RULE = Recipe((Rule(steps=(Wanda(sparsity=0.5),)),))


def one(model, data, needs=BOTH, name="weight"):
    return collect(model, {name: needs}, data)[name].values


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv1d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, groups=2, padding="same"),
        nn.Conv2d(4, 8, 3, groups=4, padding=2, padding_mode="reflect"),
        nn.Conv3d(2, 3, 2, padding=1),
    ],
    ids=str,
)
def test_rows_times_the_weight_are_the_output(layer):
    """output = rows @ W^T for each group, so that a change D of W changes it by D X^T."""
    shape = (5, 6) if isinstance(layer, nn.Linear) else (5, layer.in_channels, *[7] * len(layer.kernel_size))
    value = torch.randn(shape, dtype=torch.float64)
    layer = layer.double()
    with torch.no_grad():
        nn.init.zeros_(layer.bias)
        output = layer(value)
        rows = torch.cat(list(pieces(layer, value)), 1)
        groups = len(rows)
        product = rows @ layer.weight.reshape(groups, -1, rows.shape[2]).transpose(1, 2)
    expected = output if output.ndim == 2 else output.flatten(2).transpose(1, 2).reshape(-1, output.shape[1])
    torch.testing.assert_close(torch.cat(list(product), 1), expected)
    gram = one(layer, value.split(2))["gram"]
    assert gram.count == rows.shape[1]
    torch.testing.assert_close(gram.matrix, rows.transpose(1, 2) @ rows / rows.shape[1])


def test_few_unfolded_inputs_exist_at_a_time(monkeypatch):
    layer, value = nn.Conv2d(2, 3, 3), torch.randn(7, 2, 6, 6)
    whole = torch.cat(list(pieces(layer, value)), 1)
    monkeypatch.setattr("lilliput.observe.inputs.MOST", 300)
    parts = list(pieces(layer, value))
    assert len(parts) == 7
    assert torch.equal(torch.cat(parts, 1), whole)


def test_moments_over_batches_are_those_of_all():
    value = torch.randn(50, 3) * torch.tensor([1.0, 10.0, 100.0]) + 5
    moments = one(nn.Linear(3, 2), value.split(7))["inputs"]
    assert moments.count == 50
    assert torch.equal(moments.low[0], value.amin(0))
    assert torch.equal(moments.high[0], value.amax(0))
    torch.testing.assert_close(moments.mean[0], value.double().mean(0))
    torch.testing.assert_close(moments.square[0], value.double().square().mean(0))


def test_only_what_is_asked_for_is_collected():
    assert one(nn.Linear(3, 2), torch.randn(4, 3), frozenset({"inputs"})).keys() == {"inputs"}
    assert collect(nn.Linear(3, 2), {}, torch.randn(4, 3)) == {}


def test_a_tied_weight_sees_the_inputs_of_all_its_layers():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, value):
            return self.second(self.first(value))

    model, value = Tied(), torch.randn(8, 3)
    both = torch.cat([value, model.first(value).detach()])
    torch.testing.assert_close(one(model, value, name="first.weight")["gram"].matrix[0], both.T @ both / 16)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, left, right):
        return self.layer(input=left + right)


@pytest.mark.parametrize("labels", [{}, {"labels": torch.zeros(4)}])
def test_dicts_and_tuples_are_data(labels):
    left, right = torch.randn(4, 3), torch.randn(4, 3)
    found = one(Named(), [{"left": left, "right": right, **labels}], name="layer.weight")["gram"].matrix[0]
    other = one(Named(), [((left, right), None)], name="layer.weight")["gram"].matrix[0]
    torch.testing.assert_close(found, (left + right).T @ (left + right) / 4)
    assert torch.equal(found, other)


def test_the_model_is_untouched():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    keys = [set(module.__dict__) for module in model.modules()]
    for data in ([torch.randn(4, 3)] * 2, [torch.full((4, 3), torch.nan)]):
        with contextlib.suppress(DataError):
            collect(model, {"3.weight": BOTH}, data)
        assert [module.training for module in model.modules()] == [True, True, False, True, True]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks for module in model.modules())
        assert [set(module.__dict__) for module in model.modules()] == keys


@pytest.mark.parametrize(
    ("data", "needs", "message"),
    [
        ([], {"0.weight": BOTH}, "the data is empty"),
        (3, {"0.weight": BOTH}, "must be an iterable of batches, not int"),
        (
            [torch.randn(2, 3), torch.tensor([[1.0, torch.nan, 0.0]])],
            {"0.weight": BOTH},
            "batch 1: what goes into layer",
        ),
        ([torch.randn(2, 3)], {"9.weight": BOTH}, "no weight '9.weight'"),
        ([torch.randn(2, 3)], {"0.weight": frozenset({"grams"})}, "nothing is known of a need 'grams'; there is"),
    ],
)
def test_errors_say_what_and_where(data, needs, message):
    with pytest.raises(DataError, match=message):
        collect(nn.Sequential(nn.Linear(3, 2)), needs, data)


def test_what_a_weight_cannot_have_is_said_by_the_method():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    data = [torch.tensor([[1, 2]])]
    with pytest.raises(MethodError, match=r"^0\.weight .*only linear and convolution layers have, not this embedding"):
        compress(model, RULE, data)
    compress(model, Recipe((Rule(layers="linear", steps=(Wanda(sparsity=0.5),)),)), data)


def test_a_layer_that_nothing_reaches_is_named():
    model = nn.Linear(3, 3)
    model.unused = nn.Linear(3, 3)
    with pytest.raises(MethodError, match=r"^unused\.weight .*no batch of the data reached this layer"):
        compress(model, RULE, [torch.randn(4, 3)])


@pytest.mark.parametrize("call", [compress, attach])
def test_without_data_the_message_says_what_to_give(call):
    with pytest.raises(MethodError, match="needs data: give data="):
        call(nn.Linear(3, 2), RULE)


def test_compress_and_attach_collect_by_themselves_from_all_data_even_an_iterator():
    model, value = nn.Linear(4, 3), torch.randn(64, 4) * torch.tensor([1.0, 10.0, 0.1, 5.0])
    stats = collect(model, {"weight": OBC.needs}, value.split(8))
    recipe = Recipe((Rule(steps=(OBC(sparsity=0.5),)),))
    given = compress(model, recipe, example=value[:8], stats=stats)
    for data in (list(value.split(8)), iter(value.split(8)), ((part, None) for part in value.split(8))):
        one_pass = compress(model, recipe, data)
        assert torch.equal(one_pass.weights["weight"].parts["values"], given.weights["weight"].parts["values"])
    attached = attach(nn.Linear(4, 3), recipe, iter(value.split(8)))
    assert int((attached.weight == 0).sum()) == 6


def test_data_is_not_touched_beyond_the_first_batch_if_nothing_needs_it():
    seen = []
    endless = (seen.append(i) or torch.randn(2, 3) for i in itertools.count())
    from lilliput.prune.magnitude import Magnitude

    compress(nn.Linear(3, 2), Recipe((Rule(steps=(Magnitude(sparsity=0.5),)),)), endless)
    assert seen == [0]


def test_training_goes_on_from_the_weights_that_make_up_for_those_removed():
    model, value = nn.Linear(16, 8), torch.randn(64, 16) @ torch.randn(16, 16)
    before, dense = model.weight.detach().clone(), model(value).detach()
    attach(model, Recipe((Rule(steps=(OBC(sparsity=0.5),)),)), [value])
    alone = functional.linear(value, before * (model.weight != 0), model.bias).detach()
    assert float((model(value).detach() - dense).square().mean()) < 0.7 * float((alone - dense).square().mean())
    latent = model.parametrizations["weight"].original
    assert torch.equal(latent.detach(), model.weight.detach())


def test_samples_are_rows_of_the_inputs_each_as_likely():
    from lilliput.observe.call import Call
    from lilliput.observe.inputs import SamplesOf

    layer = nn.Linear(1, 1)
    counts = torch.zeros(1000)
    for seed in range(20):
        samples = SamplesOf(most=100)
        samples.source.manual_seed(seed)
        for part in torch.arange(1000.0).split(130):
            samples.see(Call(layer, part[:, None], part[:, None]))
        rows = samples.result().rows
        assert rows.shape == (1, 100, 1)
        assert len(rows.unique()) == 100
        counts[rows.flatten().long()] += 1
    quarters = counts.reshape(4, 250).sum(1)
    assert bool((quarters > 420).all())
    assert bool((quarters < 580).all())
