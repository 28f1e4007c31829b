"""The knapsack against brute force, closed forms, and its own stated bound."""

import itertools
import random

import numpy as np
import pytest

from lilliput.solve.knapsack import hull, knapsack, pareto


def brute(costs: list[list[float]], losses: list[list[float]], limit: float) -> float | None:
    """Least loss over all combinations."""
    totals = [
        sum(v[i] for v, i in zip(losses, picks))
        for picks in itertools.product(*(range(len(c)) for c in costs))
        if sum(c[i] for c, i in zip(costs, picks)) <= limit
    ]
    return min(totals, default=None)


def instance(seed: int, groups: int, choices: int, spread: int = 30) -> tuple[list[list[float]], list[list[float]]]:
    source = random.Random(seed)
    sizes = [source.randint(1, choices) for _ in range(groups)]
    costs = [[float(source.randint(0, spread)) for _ in range(n)] for n in sizes]
    losses = [[float(source.randint(-5, spread)) for _ in range(n)] for n in sizes]
    return costs, losses


@pytest.mark.parametrize("seed", range(400))
def test_equals_brute_force(seed: int) -> None:
    costs, losses = instance(seed, groups=1 + seed % 6, choices=4)
    source = random.Random(seed + 10_000)
    low, high = sum(min(c) for c in costs), sum(max(c) for c in costs)
    limit = source.uniform(low - 3, high + 3)
    found = knapsack(costs, losses, limit)
    expected = brute(costs, losses, limit)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.loss == expected == found.bound
    assert found.cost <= limit
    assert found.cost == sum(c[i] for c, i in zip(costs, found.chosen))
    assert found.loss == sum(v[i] for v, i in zip(losses, found.chosen))


@pytest.mark.parametrize("seed", range(60))
def test_few_states_keep_the_stated_bound(seed: int) -> None:
    costs, losses = instance(seed, groups=6, choices=4, spread=1000)
    limit = sum(sum(c) / len(c) for c in costs)
    exact = brute(costs, losses, limit)
    found = knapsack(costs, losses, limit, most_states=2)
    assert exact is not None
    assert found is not None
    assert found.cost <= limit
    assert found.bound <= exact <= found.loss
    assert found.gap == found.loss - found.bound


def test_the_limit_itself_is_allowed_and_one_less_is_not() -> None:
    assert knapsack([[5], [7]], [[1], [1]], 12).cost == 12
    assert knapsack([[5], [7]], [[1], [1]], 11) is None


def test_no_groups_cost_nothing() -> None:
    found = knapsack([], [], 0)
    assert found is not None
    assert (found.chosen, found.cost, found.loss) == ((), 0, 0)
    assert knapsack([], [], -1) is None


def test_more_room_is_never_worse() -> None:
    costs, losses = instance(7, groups=25, choices=8, spread=10_000)
    low, high = sum(min(c) for c in costs), sum(max(c) for c in costs)
    values = [knapsack(costs, losses, limit).loss for limit in np.linspace(low, high, 40)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == sum(min(v) for v in losses)


def test_a_realistic_net_is_solved_to_proven_optimality() -> None:
    # Bytes and losses as a network has them: loss falls fourfold a bit.
    source = random.Random(3)
    weights = [int(10 ** source.uniform(2.5, 6)) for _ in range(100)]
    scale = [10 ** source.uniform(-3, 0) for _ in weights]
    costs = [[w * b // 8 + 40 for b in range(2, 9)] for w in weights]
    losses = [[s * 4.0**-b * source.uniform(0.8, 1.2) for b in range(2, 9)] for s in scale]
    found = knapsack(costs, losses, sum(weights) * 4 // 8)
    assert found is not None
    assert found.gap == 0
    assert found.cost <= sum(weights) * 4 // 8


def test_dominated_and_equal_choices_are_left_out() -> None:
    assert pareto(np.array([1.0, 1.0, 2.0, 0.5]), np.array([3.0, 3.0, 3.0, 9.0])).tolist() == [3, 0]
    assert hull(np.array([0.0, 1.0, 2.0, 3.0]), np.array([9.0, 4.0, 3.5, 0.0])).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("costs", "losses"),
    [([[]], [[]]), ([[1.0]], [[1.0, 2.0]]), ([[1.0]], []), ([[float("nan")]], [[0.0]]), ([[1.0]], [[float("inf")]])],
)
def test_bad_input_is_refused(costs: list[list[float]], losses: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="group"):
        knapsack(costs, losses, 10)
