"""Wanda: the score in closed form, rows alike, and better than magnitude where inputs differ."""

import pytest
import torch
from torch import nn

from lilliput.observe.collect import collect
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.sparse import mask_of
from lilliput.prune.wanda import Wanda


def case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(24, 10, bias=False)
    layer.weight = nn.Parameter(torch.randn(10, 24, generator=generator))
    inputs = torch.randn(200, 24, generator=generator) * torch.logspace(-1, 1, 24)
    return layer.weight.detach(), inputs, collect(layer, {"weight": Wanda.needs}, inputs.split(64))["weight"]


def test_score_is_weight_times_norm_of_the_input():
    weight, inputs, stats = case()
    expected = weight.abs() * inputs.norm(dim=0)
    scores = Wanda(per="layer").score(weight, stats)
    torch.testing.assert_close(scores / scores.max(), expected / expected.max())


def test_each_output_keeps_its_best():
    weight, inputs, stats = case()
    kept = mask_of(Wanda(sparsity=0.75).pack(weight, stats))
    expected = (weight.abs() * inputs.norm(dim=0)).argsort(dim=1, descending=True)[:, :6].sort(dim=1).values
    assert torch.equal(kept.nonzero()[:, 1].reshape(10, 6), expected)


def test_equal_inputs_make_it_magnitude():
    weight, _, _ = case()
    layer = nn.Linear(24, 10, bias=False)
    stats = collect(layer, {"weight": Wanda.needs}, [torch.eye(24)])["weight"]
    kept = mask_of(Wanda(sparsity=0.5, per="layer").pack(weight, stats))
    assert torch.equal(kept, mask_of(Magnitude(sparsity=0.5).pack(weight)))


def test_groups_of_a_convolution_have_inputs_of_their_own():
    layer = nn.Conv2d(4, 4, 1, groups=2, bias=False)
    inputs = torch.randn(5, 4, 3, 3) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    stats = collect(layer, {"weight": Wanda.needs}, [inputs])["weight"]
    norms = inputs.pow(2).sum((0, 2, 3)).sqrt().reshape(2, 1, 2)
    expected = (layer.weight.detach().reshape(2, 2, 2).abs() * norms).reshape(4, 2, 1, 1)
    scores = Wanda(per="layer").score(layer.weight.detach(), stats)
    torch.testing.assert_close(scores / scores.max(), expected / expected.max())


@pytest.mark.parametrize("seed", range(3))
def test_changes_outputs_less_than_magnitude_where_inputs_differ(seed):
    weight, inputs, stats = case(seed)

    def moved(packed):
        return float((inputs @ (weight * ~mask_of(packed)).T).square().sum())

    assert moved(Wanda(sparsity=0.5).pack(weight, stats)) < 0.5 * moved(Magnitude(sparsity=0.5).pack(weight))
