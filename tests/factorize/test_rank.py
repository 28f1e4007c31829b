"""Ranks: planted ones are found in noise, and one budget over all layers is spent as well as can be."""

import itertools

import pytest
import torch
from torch import nn

from lilliput.core.errors import BudgetError, MethodError
from lilliput.core.recipe import Recipe, Rule
from lilliput.factorize.rank import break_even, budgeted, evbmf, rank_for_ratio, ranks_within, shared_ranks
from lilliput.factorize.svd import Svd
from lilliput.factorize.whitened import Whitened
from lilliput.testing.spread import decaying, gaussian, generator
from lilliput.train.compress import compress


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def found(matrix):
    return evbmf(torch.linalg.svdvals(matrix), tuple(matrix.shape))


@pytest.mark.parametrize(
    ("rows", "columns", "rank", "noise"),
    [(100, 300, 10, 0.1), (64, 576, 5, 0.5), (64, 576, 20, 0.2), (300, 100, 7, 0.3), (64, 64, 8, 0.1)],
)
def test_variational_bayes_finds_a_planted_rank_and_its_noise(rows, columns, rank, noise):
    for seed in range(3):
        planted = normal(rows, rank, seed=seed) @ normal(rank, columns, seed=seed + 10)
        result = found(planted + noise * normal(rows, columns, seed=seed + 20))
        assert result.rank == rank
        assert result.noise == pytest.approx(noise, rel=0.03)
        assert len(result.values) == rank


@pytest.mark.parametrize("shape", [(64, 576), (128, 128), (256, 2304)])
def test_pure_noise_has_rank_zero(shape):
    result = found(normal(*shape))
    assert result.rank == 0
    assert result.noise == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 7.0, 1e30])
def test_the_rank_does_not_depend_on_the_scale(factor):
    matrix = normal(40, 4) @ normal(4, 90, seed=1) + 0.3 * normal(40, 90, seed=2)
    one, other = found(matrix), found(matrix * factor)
    assert one.rank == other.rank == 4
    assert other.noise == pytest.approx(one.noise * factor, rel=1e-6)


def test_shrinking_takes_off_what_the_noise_added():
    """The singular values of the planted part lie below those of the sum; the shrunk ones are nearer to them."""
    planted = normal(60, 4) @ normal(4, 200, seed=1)
    noisy = planted + 1.5 * normal(60, 200, seed=2)
    truth, seen = torch.linalg.svdvals(planted)[:4], torch.linalg.svdvals(noisy)[:4]
    assert float((found(noisy).values - truth).norm()) < 0.8 * float((seen - truth).norm())


@pytest.mark.parametrize("matrix", [torch.zeros(4, 6), torch.zeros(0, 3), torch.ones(1, 1), torch.ones(3, 1)])
def test_degenerate_matrices(matrix):
    assert 0 <= found(matrix).rank <= min(matrix.shape)


@pytest.mark.parametrize(("rows", "columns"), [(1, 9), (2, 2), (3, 7), (20, 30), (64, 576)])
def test_break_even_is_the_last_rank_that_pays(rows, columns):
    rank = break_even(rows, columns)
    assert rank * (rows + columns) < rows * columns <= (rank + 1) * (rows + columns)


def test_break_even_of_a_square_kernel_seen_as_rows_and_columns():
    out, channels, k = 24, 16, 3
    assert break_even(channels * k, k * out) == (channels * out * k * k - 1) // (k * (channels + out))


def test_ratio():
    assert rank_for_ratio(20, 30, 0.5) == 6
    assert rank_for_ratio(4, 4, 0.01) == 1


def brute_force(matrices, limit, places):
    best = None
    options = []
    for name, matrix in matrices.items():
        rows, columns = matrix.shape
        squares = torch.linalg.svdvals(matrix.double()).square()
        each = places.get(name, 1)
        options.append(
            [(rows * columns * each, 0.0, 0)]
            + [
                (r * (rows + columns) * each, float(squares[r:].sum() / squares.sum()), r)
                for r in range(1, min(matrix.shape) + 1)
            ]
        )
    for picks in itertools.product(*options):
        if sum(p[0] for p in picks) <= limit:
            loss = sum(p[1] for p in picks)
            best = loss if best is None else min(best, loss)
    return best


@pytest.mark.parametrize("limit", [40, 60, 77, 100, 131, 160, 200, 1000])
@pytest.mark.parametrize("places", [{}, {"b": 3}])
def test_a_budget_is_spent_as_well_as_by_brute_force(limit, places):
    matrices = {"a": gaussian(6, 8), "b": decaying(5, 9), "c": gaussian(4, 4, seed=3)}
    best = brute_force(matrices, limit, places)
    if best is None:
        with pytest.raises(BudgetError, match="everywhere costs"):
            budgeted(matrices, limit, places=places)
        return
    result = budgeted(matrices, limit, places=places)
    assert result.loss == pytest.approx(best, abs=1e-12)
    assert result.cost <= limit


def test_high_ranks_switch_back_to_dense():
    """What costs as much as the layer itself isn't factorized."""
    result = budgeted({"a": gaussian(10, 10), "b": gaussian(10, 10, seed=1)}, 200)
    assert result.ranks == {"a": 0, "b": 0}
    assert result.loss == 0


def test_importance_draws_the_budget():
    matrices = {"a": gaussian(20, 20), "b": gaussian(20, 20, seed=1)}
    ranks = budgeted(matrices, 440, importance={"a": 100.0}).ranks
    assert ranks["a"] == 0 or ranks["a"] > ranks["b"] > 0


def test_what_is_no_matrix_is_refused():
    with pytest.raises(MethodError, match=r"a: needs a matrix"):
        budgeted({"a": gaussian(3, 3, 3)}, 10)


def test_a_rule_of_a_recipe_spends_one_budget_on_all_its_weights():
    """Of two layers alike in size the one of low rank gives up its numbers, the other keeps all it has."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Linear(40, 40, bias=False)).eval()
    low = gaussian(40, 3, seed=1) @ gaussian(3, 40, seed=2)
    with torch.no_grad():
        model[0].weight.copy_(low)
        model[1].weight.copy_(torch.linalg.qr(gaussian(40, 40, seed=3))[0])
    data = [gaussian(64, 40, seed=4)]
    for method in (Svd(rule="budget", ratio=0.6), Whitened(rule="budget", ratio=0.6)):
        artifact = compress(model, Recipe((Rule(steps=(method,)),)), data)
        assert isinstance(artifact.weights["1.weight"], torch.Tensor)
        held = sum(part.numel() for part in artifact.weights["0.weight"].parts.values())
        assert held + 1600 <= 0.6 * 3200
        assert torch.allclose(artifact.weight("0.weight"), low, atol=1e-3)


def test_a_budget_is_not_drawn_away_by_one_large_direction():
    """Two layers alike but for one direction, large in the first, share a budget as if it weren't there."""
    values = torch.linspace(1, 0.1, 30).double()
    outlier = torch.cat([torch.tensor([100.0]).double(), values[1:]])
    ranks = shared_ranks("x", {"a": (outlier, (30, 30)), "b": (values, (30, 30))}, 0.5)
    assert sorted(ranks.values()) == [7, 8]
    relative = ranks_within({"a": (outlier, (30, 30)), "b": (values, (30, 30))}, 900).ranks
    assert relative == {"a": 1, "b": 14}


def test_a_shared_budget_is_no_worse_than_one_ratio_for_all():
    spectra = {n: (torch.linalg.svdvals(m), tuple(m.shape)) for n, m in {
        "a": gaussian(30, 40).double(), "b": decaying(20, 50).double(), "c": gaussian(25, 25, seed=3).double()
    }.items()}  # fmt: skip
    for ratio in (0.3, 0.5, 0.8):
        ranks = shared_ranks("x", spectra, ratio)
        total = 0.0
        for name, (values, shape) in spectra.items():
            same = rank_for_ratio(*shape, ratio)
            total += float(values[ranks[name] :].square().sum() / values[same:].square().sum())
        assert total < 3
        numbers = sum(min(ranks[n] * sum(shape), shape[0] * shape[1]) for n, (_, shape) in spectra.items())
        assert numbers <= ratio * sum(shape[0] * shape[1] for _, shape in spectra.values())


def test_a_budget_below_rank_one_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    with pytest.raises(MethodError, match=r"rule\[0\].*ratio = 0.1"):
        compress(model, Recipe((Rule(steps=(Svd(rule="budget", ratio=0.1),)),)))
