"""Channels of the next layer: the greedy order by hand, the lasso's optimum, least squares, orderings."""

import itertools

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.observe.collect import collect
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.next_layer import NextLayer
from lilliput.prune.sparse import mask_of
from lilliput.solve.channels import greedy_order, lasso, lasso_order, shares


def problem(layer, seed=0, shape=(24,)):
    torch.manual_seed(seed)
    layer.weight.data = torch.randn_like(layer.weight)
    value = (torch.randn(*shape) @ torch.randn(shape[-1], shape[-1]) / shape[-1] ** 0.5).to(layer.weight.dtype)
    return layer.weight.detach().clone(), value, collect(layer, {"weight": NextLayer.needs}, [value])["weight"]


def test_shares_are_inner_products_of_what_channels_add():
    layer = nn.Conv2d(3, 4, 2, bias=False).double()
    value = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    gram = collect(layer, {"weight": NextLayer.needs}, [value])["weight"].values["gram"].matrix[0]
    added = []
    for channel in range(3):
        only = torch.zeros_like(value)
        only[:, channel] = value[:, channel]
        added.append(layer(only).detach().flatten())
    added = torch.stack(added)
    torch.testing.assert_close(shares(layer.weight.detach().flatten(1), gram, 3), added @ added.T / (5 * 9))


def greedy_by_hand(products):
    left, gone, order = list(range(len(products))), [], [0] * len(products)
    for step in range(len(products)):
        costs = {j: float(products[[*gone, j]][:, [*gone, j]].sum()) for j in left}
        best = min(left, key=costs.__getitem__)
        gone.append(best)
        left.remove(best)
        order[best] = step
    return order


@pytest.mark.parametrize("seed", range(5))
def test_greedy_order_is_that_of_its_definition(seed):
    rows = torch.randn(30, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    products = rows.T @ rows
    assert greedy_order(products).tolist() == greedy_by_hand(products)


@pytest.mark.parametrize("penalty", [0.0, 0.3, 2.0])
def test_lasso_meets_its_conditions(penalty):
    rows = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 30**0.5
    products = rows.T @ rows
    beta = lasso(products, penalty, torch.zeros(6, dtype=torch.float64), 5000)
    slope = products @ (1 - beta)
    assert bool((slope.abs() <= penalty + 1e-5).all())
    torch.testing.assert_close(slope[beta != 0], penalty * beta[beta != 0].sign(), atol=1e-5, rtol=0)
    assert not bool(lasso(products, float(products.sum(1).abs().max()), torch.zeros(6).double()).any())


def test_channels_that_add_nothing_come_last():
    products = torch.diag(torch.tensor([4.0, 0.0, 9.0]))
    assert lasso_order(products).argsort().tolist() == [1, 0, 2]
    assert greedy_order(products).argsort().tolist() == [1, 0, 2]


@pytest.mark.parametrize("by", ["thinet", "lasso"])
def test_weights_left_are_least_squares(by):
    weight, value, stats = problem(nn.Linear(24, 10, bias=False).double(), shape=(100, 24))
    packed = NextLayer(sparsity=0.5, by=by, damping=0.0).pack(weight, stats)
    found, kept = unpack(packed), mask_of(packed).all(0)
    assert int(kept.sum()) == 12
    assert not bool(found[:, ~kept].any())
    outputs = value @ weight.T
    wanted = torch.linalg.lstsq(value[:, kept], outputs).solution.T
    torch.testing.assert_close(found[:, kept], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("by", ["thinet", "lasso"])
def test_beats_the_norm_of_channels(by):
    better = 0
    for seed in range(6):
        layer = nn.Linear(24, 10, bias=False)
        weight, value, stats = problem(layer, seed, (100, 24))
        errors = [
            float((value @ (weight - unpack(packed)).T).square().sum())
            for packed in (
                NextLayer(sparsity=0.5, by=by).pack(weight, stats),
                NextLayer(sparsity=0.5, by=by, reconstruct=False).pack(weight, stats),
                Magnitude(sparsity=0.5, pattern="channel").pack(weight),
            )
        ]
        assert errors[0] < errors[1]
        better += errors[0] < errors[2]
    assert better >= 5


def test_greedy_is_no_better_than_the_best_set():
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    products = rows.T @ rows
    gone = (greedy_order(products) < 4).nonzero().flatten().tolist()
    costs = [float(products[list(s)][:, list(s)].sum()) for s in itertools.combinations(range(8), 4)]
    own = float(products[gone][:, gone].sum())
    assert min(costs) - 1e-9 <= own <= sorted(costs)[len(costs) // 4]


def test_stats_of_another_layer_are_refused():
    _, _, stats = problem(nn.Linear(24, 10, bias=False), shape=(50, 24))
    with pytest.raises(MethodError, match="of another layer"):
        NextLayer(sparsity=0.5).pack(torch.ones(10, 23), stats)
