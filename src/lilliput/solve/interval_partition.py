"""The cheapest way to cut sorted weighted points into k intervals, by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.core.errors import MethodError
from lilliput.core.native import extension

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Cost = Callable[[Any, Any], Floats]

# The table of starts has an int32 for each (interval, point): 128 MB at most.
TABLE_CELLS = 1 << 25
LARGEST_K = 1024


def partition(points: Floats, weights: Floats, k: int) -> Integers:
    """Cuts sorted points into k intervals of the least total squared error about their weighted means.

    D_c(i) = min over j of D_{c-1}(j) + cost(j, i), where cost(j, i) is the squared error of the points j..i-1.
    The best j grows with i, so that each layer is solved by divide and conquer in O(n log n). The costs come from
    prefix sums in doubles, and once more in pairs of doubles if the error found is so small beside the sum of
    squares that rounding could have chosen the intervals (tight clusters far apart).

    Args:
        points: n values, strictly ascending, float64.
        weights: n weights > 0, float64, exact integers as a rule.
        k: number of intervals, 1 <= k <= n, at most 1024.

    Returns:
        The k indices at which the intervals start; the first is 0. Among equally good cuts, the leftmost.

    Raises:
        MethodError: if k is out of range, or n * k is beyond what the table may hold.

    >>> partition(np.array([0.0, 1.0, 10.0, 12.0]), np.ones(4), 2)
    array([0, 2])
    """
    length = len(points)
    if not 1 <= k <= min(length, LARGEST_K):
        raise MethodError(f"can't cut {length} points into {k} intervals; take 1 to {min(length, LARGEST_K)}")
    if (length + 1) * k > TABLE_CELLS:
        raise MethodError(f"{length} points and {k} intervals are too many for the exact partition; merge points first")
    if k == length:
        return np.arange(length, dtype=np.int64)
    # A power of two keeps every digit and keeps the squares finite.
    _, exponent = np.frexp(np.abs(points).max())
    scaled = np.ldexp(points, -int(exponent))
    sums = _plain_prefix_sums(scaled, weights)
    error, starts = _solve(sums, k)
    noise = np.finfo(np.float64).eps * k * float(np.abs(sums[2]).max()) * length**0.5
    if error * 1e-6 < noise:
        _, starts = _solve(_pair_prefix_sums(scaled, weights), k)
    return starts


def _outward(terms: Floats, pivot: int) -> Floats:
    """Prefix sums that are zero at the pivot: a far outlier spoils only the intervals that hold it."""
    below = -np.cumsum(terms[:pivot][::-1])[::-1]
    return np.concatenate([below, [0.0], np.cumsum(terms[pivot:])])


def _plain_prefix_sums(points: Floats, weights: Floats) -> tuple[Floats, ...]:
    """Prefix sums of weight, weight * y and weight * y^2, with y the distance from the weighted median."""
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    pivot = min(int(np.searchsorted(mass, mass[-1] / 2)), len(points) - 1)
    distance = points - points[pivot]
    return mass, _outward(weights * distance, pivot), _outward(weights * distance * distance, pivot)


def _pair_prefix_sums(points: Floats, weights: Floats) -> tuple[Floats, ...]:
    """The same about zero, each of the two moments as a pair of doubles (high, low)."""
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    first, first_low = _exact_product(weights, points)
    square, square_low = _exact_product(points, points)
    second, second_low = _exact_product(weights, square)
    second_low = second_low + weights * square_low
    first_sum, first_rest = _pair_cumsum(first, first_low)
    second_sum, second_rest = _pair_cumsum(second, second_low)
    return mass, first_sum, second_sum, first_rest, second_rest


def _pair_cumsum(high: Floats, low: Floats) -> tuple[Floats, Floats]:
    total = np.concatenate([[0.0], np.cumsum(high)])
    before, after = total[:-1], total[1:]
    back = after - before
    error = (before - (after - back)) + (high - back)
    return total, np.concatenate([[0.0], np.cumsum(error + low)])


def _split(a: Any) -> tuple[Any, Any]:
    """Dekker (1971): a = high + low, with 26 bits each."""
    scaled = 134217729.0 * a
    high = scaled - (scaled - a)
    return high, a - high


def _exact_product(a: Any, b: Any) -> tuple[Any, Any]:
    """Dekker (1971): a * b = product + error exactly."""
    product = a * b
    (ah, al), (bh, bl) = _split(a), _split(b)
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _pair_difference(ah: Any, al: Any, bh: Any, bl: Any) -> tuple[Any, Any]:
    high = ah - bh
    back = high - ah
    low = ((ah - (high - back)) - (bh + back)) + (al - bl)
    total = high + low
    return total, low - (total - high)


def _solve(sums: tuple[Floats, ...], k: int) -> tuple[float, Integers]:
    """Least error and the starts of the intervals, from three prefix sums (plain) or five (pairs)."""
    native = extension()
    if native is not None:
        starts = np.empty(k, dtype=np.int64)
        empty = np.empty(0)
        error = native.kmeans1d_partition(*sums, *([empty] * (5 - len(sums))), starts)
        return float(error), starts
    return _solve_in_numpy(_plain_cost(*sums) if len(sums) == 3 else _pair_cost(*sums), len(sums[0]) - 1, k)


def _plain_cost(mass: Floats, first: Floats, second: Floats) -> Cost:
    def cost(a: Any, b: Any) -> Floats:
        moment = first[b] - first[a]
        error: Floats = np.maximum((second[b] - second[a]) - moment * moment / (mass[b] - mass[a]), 0.0)
        return error

    return cost


def _pair_cost(mass: Floats, first: Floats, second: Floats, first_low: Floats, second_low: Floats) -> Cost:
    def cost(a: Any, b: Any) -> Floats:
        weight = mass[b] - mass[a]
        moment, moment_low = _pair_difference(first[b], first_low[b], first[a], first_low[a])
        square, square_low = _pair_difference(second[b], second_low[b], second[a], second_low[a])
        product, product_low = _exact_product(moment, moment)
        product_low = product_low + 2.0 * moment * moment_low
        quotient = product / weight
        back, back_low = _exact_product(quotient, weight)
        quotient_low = (((product - back) - back_low) + product_low) / weight
        error: Floats = np.maximum((square - quotient) + (square_low - quotient_low), 0.0)
        return error

    return cost


def _solve_in_numpy(cost: Cost, length: int, k: int) -> tuple[float, Integers]:
    previous = np.concatenate([[0.0], cost(0, np.arange(1, length + 1))])
    table = np.zeros((k, length + 1), dtype=np.int32)
    for cluster in range(2, k + 1):
        low = length if cluster == k else cluster
        previous = _layer(cost, previous, table[cluster - 1], (low, length - (k - cluster), cluster - 1))
    starts = np.zeros(k, dtype=np.int64)
    end = length
    for cluster in range(k - 1, 0, -1):
        end = int(table[cluster, end])
        starts[cluster] = end
    return float(previous[length]), starts


def _layer(cost: Cost, previous: Floats, row: NDArray[np.int32], bounds: tuple[int, int, int]) -> Floats:
    """One layer for the ends low..high with starts from `first` on; all middles of one depth at once."""
    current = np.zeros_like(previous)
    lows, highs, froms = (np.array([bound], dtype=np.int64) for bound in bounds)
    tos = np.array([len(previous) - 2], dtype=np.int64)
    while len(lows):
        middles = (lows + highs) // 2
        sizes = np.minimum(middles - 1, tos) - froms + 1
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        candidates = np.arange(int(sizes.sum())) + np.repeat(froms - offsets, sizes)
        errors = previous[candidates] + cost(candidates, np.repeat(middles, sizes))
        least = np.minimum.reduceat(errors, offsets)
        hits = np.flatnonzero(errors == np.repeat(least, sizes))
        best = candidates[hits[np.searchsorted(hits, offsets)]]
        current[middles], row[middles] = least, best
        lows, highs = np.concatenate([lows, middles + 1]), np.concatenate([middles - 1, highs])
        froms, tos = np.concatenate([froms, best]), np.concatenate([best, tos])
        alive = lows <= highs
        lows, highs, froms, tos = lows[alive], highs[alive], froms[alive], tos[alive]
    return current
