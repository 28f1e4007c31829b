"""Random search: the best of its candidates, never worse with more, the optimum if all are tried."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from lilliput.core.packed import unpack
from lilliput.observe.collect import collect
from lilliput.prune.random_search import RandomSearch, resampled
from lilliput.prune.sparse import pattern_of


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    value, target = torch.randn(64, 5), torch.randint(3, (64,))
    stats = collect(model, {"0.weight": RandomSearch.needs}, [(value, target)])["0.weight"]
    return model[0].weight.detach(), stats


def cost(method, weight, stats):
    return stats.values["evaluate"](unpack(method.pack(weight, stats)))


def test_more_candidates_are_never_worse(case):
    costs = [cost(RandomSearch(sparsity=0.5, candidates=n), *case) for n in (1, 4, 16, 64)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]


def test_many_candidates_reach_the_best_mask(case):
    weight, stats = case
    best = min(
        stats.values["evaluate"](weight * torch.zeros(6, 1).index_fill_(0, torch.tensor(kept), 1))
        for kept in itertools.combinations(range(6), 3)
    )
    assert cost(RandomSearch(sparsity=0.5, candidates=300), weight, stats) == pytest.approx(best)
    for variant in ("particle", "genetic"):
        evolved = RandomSearch(sparsity=0.5, candidates=300, variant=variant)
        assert cost(evolved, weight, stats) == pytest.approx(best)


def test_evolution_finds_better_masks_than_as_many_random_ones():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
    stats = collect(model, {"0.weight": RandomSearch.needs}, [torch.randn(64, 8)])["0.weight"]
    weight = model[0].weight.detach()

    def mean(variant, **settings):
        tried = [RandomSearch(sparsity=0.5, candidates=120, variant=variant, seed=s, **settings) for s in range(4)]
        return sum(cost(method, weight, stats) for method in tried) / 4

    assert mean("genetic", generations=8) < 0.9 * mean("random")


def test_a_child_keeps_what_both_parents_keep_and_nothing_else():
    method = RandomSearch(sparsity=0.5, variant="genetic", mutation=0.0)
    one = torch.tensor([3.0, 3, 3, 0, 0, 0])[:, None].expand(6, 4)
    two = torch.tensor([3.0, 3, 0, 3, 0, 0])[:, None].expand(6, 4)
    source = torch.Generator().manual_seed(0)
    for _ in range(20):
        scores = method._child([one, two], [0.0, 0.0], source)
        kept = set(pattern_of("filter").select(scores, 0.5)[:, 0].nonzero().flatten().tolist())
        assert kept in ({0, 1, 2}, {0, 1, 3})


@pytest.mark.parametrize("variant", ["random", "particle", "genetic"])
def test_deterministic_under_the_seed_and_below_the_mean(case, variant):
    method = RandomSearch(sparsity=0.5, candidates=16, variant=variant)
    assert cost(method, *case) == cost(method, *case)
    singles = [cost(RandomSearch(sparsity=0.5, candidates=1, seed=s), *case) for s in range(20)]
    searched = [cost(replace(method, seed=s), *case) for s in range(5)]
    assert sum(searched) / 5 < sum(singles) / 20


def test_patterns_are_kept(case):
    weight, stats = case
    found = unpack(RandomSearch(sparsity=0.4, pattern="channel", candidates=4).pack(weight, stats))
    assert int((~found.any(0)).sum()) == 2


def test_systematic_resampling():
    assert resampled([1.0] * 5, 0.3) == [0, 1, 2, 3, 4]
    assert resampled([100.0, 0.0, 100.0], 0.5) == [1, 1, 1]
    inf = float("inf")
    assert sorted(resampled([inf, inf], 0.5)) == [0, 1]
