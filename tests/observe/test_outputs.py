"""What is collected of activations: by hand, batch by batch as at once, and after the right function."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import DataError
from lilliput.observe.collect import collect


def one(model, name, need, data, **options):
    return collect(model, {name: frozenset({need})}, data, **options)[name].values[need]


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), function

    def forward(self, value):
        return self.function(functional.dropout(self.norm(self.conv(value)), training=self.training))


@pytest.mark.parametrize("function", [functional.relu, nn.ReLU(inplace=True), torch.relu, nn.ReLU6(), torch.tanh])
def test_the_activation_after_a_norm_counts(function):
    model, value = Functional(function), torch.randn(6, 2, 5, 5)
    model.norm.running_mean.fill_(0.3)
    expected = model.eval()(value)
    found = one(model, "conv.weight", "outputs", value.split(4))
    assert torch.equal(found.zeros, (expected == 0).sum((0, 2, 3)))
    torch.testing.assert_close(found.mean, expected.double().mean((0, 2, 3)))
    torch.testing.assert_close(found.square, expected.double().square().mean((0, 2, 3)))


def test_without_an_activation_the_layers_own_output_counts():
    layer, value = nn.Linear(3, 4), torch.randn(8, 3)
    found = one(layer, "weight", "outputs", value.split(3))
    torch.testing.assert_close(found.mean, layer(value).detach().double().mean(0))
    sequence = torch.randn(4, 5, 3)
    pooled = one(layer, "weight", "pooled", sequence.split(3))
    torch.testing.assert_close(pooled, layer(sequence).detach().mean(1))


def test_peaks_by_class_are_those_of_all_at_once():
    layer, value, target = nn.Conv1d(2, 3, 3), torch.randn(30, 2, 8), torch.randint(4, (30,))
    target[target == 1] = 3
    found = one(layer, "weight", "peaks", list(zip(value.split(7), target.split(7))))
    peaks = layer(value).detach().amax(2).double()
    for number in (0, 2, 3):
        own = peaks[target == number]
        assert int(found.counts[number]) == len(own)
        torch.testing.assert_close(found.means[number], own.mean(0))
        torch.testing.assert_close(found.squares[number], (own - own.mean(0)).square().sum(0))
    assert int(found.counts[1]) == 0


@pytest.mark.parametrize("need", ["peaks", "taylor", "gradient", "curvature"])
def test_no_targets_is_said(need):
    with pytest.raises(DataError, match="needs targets: give \\(inputs, targets\\)"):
        one(nn.Linear(3, 4), "weight", need, torch.randn(8, 3))


def test_gradients_and_modes_are_as_before():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    data = [(torch.randn(5, 3), torch.randint(2, (5,)))]
    needs = frozenset({"taylor", "gradient", "curvature", "hessian", "evaluate", "correlation", "outputs"})
    stats = collect(model, {"0.weight": needs}, data)["0.weight"]
    assert stats.values.keys() == needs
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_gradient_is_of_each_example():
    model, value, target = nn.Linear(3, 2).double(), torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))
    found = one(model, "weight", "gradient", list(zip(value.split(4), target.split(4))))
    slopes = []
    for x, y in zip(value, target):
        slopes.append(torch.autograd.grad(functional.cross_entropy(model(x[None]), y[None]), model.weight)[0])
    slopes = torch.stack(slopes)
    torch.testing.assert_close(found.mean, slopes.mean(0))
    torch.testing.assert_close(found.square, slopes.square().mean(0))
    assert found.count == 6


def test_replaced_weights_are_evaluated_and_put_back():
    model, value, target = nn.Linear(3, 2), torch.randn(6, 3), torch.randint(2, (6,))
    before = model.weight.detach().clone()
    other = torch.randn(2, 3)
    costs = one(model, "weight", "evaluate", [(value, target)])
    expected = functional.cross_entropy(functional.linear(value, other, model.bias), target)
    assert costs(other) == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(model.weight, before)
    moved = one(model, "weight", "evaluate", [value])
    assert moved(before) == 0.0
    assert moved(other) > 0
