"""Optimal brain surgeon: the closed form, the recursion, elimination, least squares, brute force."""

import itertools

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.core.stats import Stats
from lilliput.observe.collect import collect
from lilliput.prune.obs import OBS
from lilliput.solve.surgeon import recursive_inverse, surgeon


def problem(count=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(40, count, generator=generator, dtype=torch.float64)
    rows = rows @ (torch.eye(count) + 0.5 * torch.randn(count, count, generator=generator, dtype=torch.float64))
    return torch.randn(count, generator=generator, dtype=torch.float64), rows, rows.T @ rows / 40


def test_one_removal_solves_the_constrained_problem():
    weight, _, hessian = problem()
    value, order = surgeon(weight, hessian.inverse(), 1)
    place = int((order == 0).nonzero())
    system = torch.zeros(11, 11, dtype=torch.float64)
    system[:10, :10] = hessian
    system[place, 10] = system[10, place] = 1
    right = torch.zeros(11, dtype=torch.float64)
    right[10] = -weight[place]
    torch.testing.assert_close(value - weight, torch.linalg.solve(system, right)[:10])
    costs = weight.square() / (2 * hessian.inverse().diagonal())
    assert place == int(costs.argmin())
    change = value - weight
    assert float(change @ hessian @ change / 2) == pytest.approx(float(costs[place]), rel=1e-9)


def test_recursion_over_patterns_is_the_inverse():
    _, rows, hessian = problem()
    torch.testing.assert_close(
        recursive_inverse(rows, 1e-4), (hessian + 1e-4 * torch.eye(10, dtype=torch.float64)).inverse()
    )


@pytest.mark.parametrize("count", [1, 4, 9])
def test_many_removals_end_at_least_squares_on_the_support(count):
    weight, _, hessian = problem()
    value, order = surgeon(weight, hessian.inverse(), count)
    kept = order == 10
    assert int((~kept).sum()) == count
    wanted = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight)
    torch.testing.assert_close(value[kept], wanted)
    assert not bool(value[~kept].any())


def test_diagonal_hessian_moves_nothing_else():
    weight = problem()[0]
    value, order = surgeon(weight, torch.diag(1 / torch.arange(1.0, 11.0, dtype=torch.float64)), 4)
    worth = weight.square() * torch.arange(1.0, 11.0, dtype=torch.float64)
    assert set((order < 10).nonzero().flatten().tolist()) == set(worth.argsort()[:4].tolist())
    assert torch.equal(value, weight * (order == 10))


def test_greedy_is_no_better_than_all_supports_and_usually_equal():
    equal = 0
    for seed in range(10):
        weight, _, hessian = problem(8, seed)
        value, _ = surgeon(weight, hessian.inverse(), 4)
        own = float((value - weight) @ hessian @ (value - weight))
        costs = []
        for kept in itertools.combinations(range(8), 4):
            places = list(kept)
            change = -weight.clone()
            change[places] += torch.linalg.solve(hessian[places][:, places], hessian[places] @ weight)
            costs.append(float(change @ hessian @ change))
        assert own >= min(costs) * (1 - 1e-9)
        equal += own <= min(costs) * (1 + 1e-9)
    assert equal >= 5


def test_on_a_linear_layer_it_is_least_squares_of_the_outputs():
    layer, value = nn.Linear(6, 2, bias=False).double(), torch.randn(50, 6, dtype=torch.float64)
    value = value @ (torch.eye(6) + 0.4 * torch.randn(6, 6, dtype=torch.float64))
    stats = collect(layer, {"weight": OBS.needs}, value.split(20))["weight"]
    gram = value.T @ value / 50
    torch.testing.assert_close(stats.values["hessian"], torch.block_diag(gram, gram))
    weight = layer.weight.detach()
    packed = OBS(sparsity=0.5, alpha=1e-12).pack(weight, stats)
    found = unpack(packed)
    for row, wanted in zip(found, weight):
        kept = row != 0
        torch.testing.assert_close(row[kept], torch.linalg.solve(gram[kept][:, kept], gram[kept] @ wanted))


def test_bad_input_is_refused():
    with pytest.raises(MethodError, match=r"prune/obc takes pattern 2:4"):
        OBS(pattern="2:4")
    with pytest.raises(MethodError, match="of another weight"):
        OBS(sparsity=0.5).pack(torch.ones(2, 3), Stats({"hessian": torch.eye(3)}))
    large = nn.Linear(64, 64)
    stats = collect(large, {"weight": OBS.needs}, torch.randn(2, 64))["weight"]
    with pytest.raises(MethodError, match="too large; take prune/obc"):
        OBS(sparsity=0.5).pack(large.weight.detach(), stats)
