"""The Taylor criterion: exact where the cost is linear, per example, gates, layer norms, and near the oracle."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.observe.collect import collect
from lilliput.prune.sparse import mask_of
from lilliput.prune.taylor import Taylor, changes_without


def taylor(model, name, data, loss=None, needs=Taylor.needs):
    return collect(model, {name: needs}, data, loss=loss)[name]


class Tail(nn.Module):
    """A convolution, a ReLU, and something linear."""

    def __init__(self):
        super().__init__()
        self.conv, self.tail = nn.Conv2d(2, 4, 3, bias=False).double(), nn.Linear(4 * 9, 1).double()

    def forward(self, value):
        return self.tail(functional.relu(self.conv(value)).flatten(1))


def test_linear_cost_makes_it_the_oracle():
    """M * Theta = |C without the map - C| for one example, as the cost is linear in z."""
    model, value = Tail(), torch.randn(1, 2, 5, 5, dtype=torch.float64)
    loss = lambda output, target: output.sum()  # noqa: E731
    stats = taylor(model, "conv.weight", [(value, torch.zeros(1))], loss, frozenset({"taylor", "evaluate"}))
    change = changes_without(model.conv.weight.detach(), stats.values["evaluate"])
    torch.testing.assert_close(9 * stats.values["taylor"].change, change.abs(), rtol=1e-10, atol=1e-12)
    assert stats.values["taylor"].macs == 9 * 18


def test_absolute_value_is_taken_for_each_example():
    model, value = Tail(), torch.randn(8, 2, 5, 5, dtype=torch.float64)
    target = torch.randn(8, 1, dtype=torch.float64)
    alone = [
        taylor(model, "conv.weight", [(value[i : i + 1], target[i : i + 1])]).values["taylor"].change for i in range(8)
    ]
    mean = torch.stack(alone).mean(0)
    for size in (1, 3, 8):
        data = list(zip(value.split(size), target.split(size)))
        torch.testing.assert_close(taylor(model, "conv.weight", data).values["taylor"].change, mean)


def test_gate_form():
    model, value, target = Tail(), torch.randn(1, 2, 5, 5, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    gate = torch.ones(4, dtype=torch.float64, requires_grad=True)
    hidden = functional.relu(model.conv(value)) * gate[:, None, None]
    slope = torch.autograd.grad(functional.mse_loss(model.tail(hidden.flatten(1)), target), gate)[0]
    found = taylor(model, "conv.weight", [(value, target)]).values["taylor"].change
    torch.testing.assert_close(found, slope.abs() / 9)


def test_layers_are_scaled_to_length_one_and_pay_for_their_macs():
    model = Tail()
    stats = taylor(model, "conv.weight", [(torch.randn(4, 2, 5, 5, dtype=torch.float64), torch.ones(4, 1).double())])
    assert float(Taylor().channels(stats).norm()) == pytest.approx(1)
    plain, taxed = Taylor().channels(stats), Taylor(macs=1000.0).channels(stats)
    torch.testing.assert_close(plain - taxed, torch.full((4,), 1e-3 * 162, dtype=torch.float64))
    scores = Taylor().score(model.conv.weight.detach(), stats)
    torch.testing.assert_close(scores.sum((1, 2, 3)), plain)


def test_a_channel_without_slope_is_worth_nothing():
    model = Tail()
    model.tail.weight.data[:, 9:18] = 0
    stats = taylor(model, "conv.weight", [(torch.randn(4, 2, 5, 5, dtype=torch.float64), torch.ones(4, 1).double())])
    assert float(Taylor().channels(stats)[1]) == 0
    kept = mask_of(Taylor(sparsity=0.25).pack(model.conv.weight.detach(), stats))
    assert kept.flatten(1).any(1).tolist() == [True, False, True, True]


def test_ranks_like_the_oracle_on_a_trained_network():
    torch.manual_seed(0)
    prototypes = torch.randn(6, 16)
    target = torch.randint(6, (768,))
    value = prototypes[target] + 0.7 * torch.randn(768, 16)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 6))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(value), target).backward()
        optimizer.step()
    model[0].bias.data.zero_()
    data = list(zip(value.split(128), target.split(128)))
    method = Taylor(oracle=True)
    stats = taylor(model, "0.weight", data, needs=method.needs)
    estimated, measured = Taylor().channels(stats), method.score(model[0].weight.detach(), stats).sum(1)
    places = torch.stack([estimated.argsort().argsort().double(), measured.argsort().argsort().double()])
    assert float(torch.corrcoef(places)[0, 1]) > 0.4
