"""Entropy of pooled activations: closed forms, bounds, invariance."""

import math

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.observe.collect import collect
from lilliput.prune.entropy import Entropy, entropies
from lilliput.prune.sparse import mask_of


def test_closed_forms():
    even = torch.arange(40.0)[:, None]
    assert float(entropies(even, 8)) == pytest.approx(math.log(8))
    assert float(entropies(torch.full((5, 1), 3.0), 8)) == 0
    assert float(entropies(torch.tensor([[0.0], [1.0]] * 6), 100)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("bins", [2, 10, 100])
def test_bounds_and_affine_invariance(bins):
    values = torch.randn(50, 7, dtype=torch.float64)
    found = entropies(values, bins)
    assert bool((found >= 0).all())
    assert bool((found <= math.log(min(bins, 50)) + 1e-12).all())
    torch.testing.assert_close(entropies(4 * values + 0.5, bins), found)


def test_the_last_bin_is_closed():
    assert float(entropies(torch.tensor([[0.0], [0.5], [1.0]]), 2)) == pytest.approx(
        -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
    )


def test_channels_that_always_say_the_same_go_first():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU())
    model[0].weight.data = torch.eye(4)
    value = torch.rand(60, 4)
    value[:, 2] = 0.7
    stats = collect(model, {"0.weight": Entropy.needs}, value.split(16))["0.weight"]
    kept = mask_of(Entropy(sparsity=0.25).pack(torch.ones(4, 4), stats))
    assert kept.all(1).tolist() == [True, True, False, True]


def test_one_example_is_refused():
    stats = collect(nn.Linear(3, 2), {"weight": Entropy.needs}, torch.randn(1, 3))["weight"]
    with pytest.raises(MethodError, match="give more data"):
        Entropy(sparsity=0.5).pack(torch.ones(2, 3), stats)
