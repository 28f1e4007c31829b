"""The multiple-choice knapsack: one choice from each group, least total loss, total cost within a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_STATES = 20_000
"""Partial solutions kept after each group. Where more are needed, those of the best bound are kept, and
`Solution.bound` says how far from the optimum the answer can be."""


@dataclass(frozen=True)
class Solution:
    """What was chosen.

    Attributes:
        chosen: index of the choice in each group.
        cost: total cost.
        loss: total loss.
        bound: no choice within the limit has a smaller total loss than this; equal to `loss` if that is proven optimal.
    """

    chosen: tuple[int, ...]
    cost: float
    loss: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the loss can be above the optimum: loss - bound >= 0."""
        return max(self.loss - self.bound, 0.0)


@dataclass(frozen=True)
class _Group:
    """The choices of a group that none other beats in both cost and loss, by rising cost.

    Attributes:
        index: their places in the group as it was given.
        cost: their costs, rising.
        loss: their losses, falling.
        hull: which of them lie on the lower convex hull of (cost, loss).
    """

    index: Integers
    cost: Floats
    loss: Floats
    hull: Integers


def knapsack(
    costs: Sequence[Sequence[float]],
    losses: Sequence[Sequence[float]],
    limit: float,
    *,
    most_states: int = MOST_STATES,
) -> Solution | None:
    """Chooses one of each group so that the sum of losses is least and the sum of costs is at most the limit.

    Partial solutions that no other beats in both cost and loss are carried from group to group (Nemhauser and Ullmann
    1969), except for those which the linear relaxation proves hopeless: its optimum takes the steps of the groups'
    lower convex hulls in the order of their slope and splits the last (Sinha and Zoltners 1979). Exact as long as
    `most_states` is enough, which it nearly always is.

    Args:
        costs: of each choice of each group; finite. Whole numbers below 2^53 are added exactly.
        losses: likewise; may be negative.
        limit: the largest total cost.
        most_states: see `MOST_STATES`.

    Returns:
        The solution, or None if even the cheapest choices cost more than the limit.

    Raises:
        ValueError: an empty group, lists of different lengths, or a number that isn't finite.

    >>> knapsack([[1, 3], [2, 4]], [[9, 1], [5, 0]], limit=5)
    Solution(chosen=(1, 0), cost=5.0, loss=6.0, bound=6.0)
    """
    groups = [_group(c, v, number) for number, (c, v) in enumerate(_paired(costs, losses))]
    if sum(g.cost[0] for g in groups) > limit:
        return None
    # Costly groups first: the cheap ones then fill the gap to the limit, where the relaxation is nearly exact.
    order = sorted(range(len(groups)), key=lambda i: (-float(np.ptp(groups[i].cost)), i))
    chosen, proven = _search([groups[i] for i in order], limit, most_states)
    picks = dict(zip(order, chosen))
    total_cost = sum(float(g.cost[picks[i]]) for i, g in enumerate(groups))
    total_loss = sum(float(g.loss[picks[i]]) for i, g in enumerate(groups))
    answer = tuple(int(g.index[picks[i]]) for i, g in enumerate(groups))
    return Solution(answer, total_cost, total_loss, total_loss if proven is None else min(proven, total_loss))


def _paired(
    costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]
) -> list[tuple[Sequence[float], Sequence[float]]]:
    if len(costs) != len(losses):
        raise ValueError(f"costs of {len(costs)} groups and losses of {len(losses)}")
    return list(zip(costs, losses))


def _group(costs: Sequence[float], losses: Sequence[float], number: int) -> _Group:
    cost, loss = np.asarray(costs, np.float64), np.asarray(losses, np.float64)
    if cost.ndim != 1 or cost.shape != loss.shape or not cost.size:
        raise ValueError(f"group {number} has {cost.size} costs and {loss.size} losses; needs one of each a choice")
    if not (np.isfinite(cost).all() and np.isfinite(loss).all()):
        raise ValueError(f"group {number} has a cost or loss that is not finite")
    index = pareto(cost, loss)
    return _Group(index, cost[index], loss[index], hull(cost[index], loss[index]))


def pareto(cost: Floats, loss: Floats) -> Integers:
    """Returns the indices that no other beats or equals in both, by rising cost; of equals the first.

    >>> pareto(np.array([3.0, 1.0, 2.0, 2.0]), np.array([0.0, 5.0, 5.0, 4.0])).tolist()
    [1, 3, 0]
    """
    order = np.lexsort((np.arange(len(cost)), loss, cost))
    best = np.minimum.accumulate(np.concatenate(([np.inf], loss[order][:-1])))
    kept: Integers = order[loss[order] < best]
    return kept


def hull(cost: Floats, loss: Floats) -> Integers:
    """Returns the places of the lower convex hull's corners.

    Args:
        cost: rising.
        loss: falling.

    >>> hull(np.array([0.0, 1.0, 2.0]), np.array([4.0, 3.0, 0.0])).tolist()
    [0, 2]
    """
    corners: list[int] = []
    for place in range(len(cost)):
        while len(corners) >= 2:
            a, b = corners[-2:]
            if (loss[a] - loss[b]) * (cost[place] - cost[a]) > (loss[a] - loss[place]) * (cost[b] - cost[a]):
                break
            corners.pop()
        corners.append(place)
    return np.array(corners, np.int64)


@dataclass(frozen=True)
class _Relaxed:
    """The linear relaxation of some groups: its least loss as a function of the money, convex and piecewise linear.

    Attributes:
        cost: total cost at each corner, rising from that of the cheapest choices.
        loss: total loss there, falling.
        step_group: which group moves one corner of its own hull on between corners i and i + 1.
    """

    cost: Floats
    loss: Floats
    step_group: Integers

    def bound(self, money: Floats) -> Floats:
        """Returns a lower bound of the groups' loss; infinite where the money doesn't reach."""
        value: Floats = np.interp(money, self.cost, self.loss)
        return np.where(money < self.cost[0], np.inf, value)

    def corner(self, money: Floats) -> Integers:
        """Returns the last corner that the money reaches; its choices are whole ones."""
        place: Integers = np.searchsorted(self.cost, money, side="right") - 1
        return place


def _relaxations(groups: list[_Group]) -> list[_Relaxed]:
    """Returns the relaxation of groups i, i + 1, ... for every i from 0 to their number."""
    steps = [
        (float((g.loss[b] - g.loss[a]) / (g.cost[b] - g.cost[a])), i, g.cost[b] - g.cost[a], g.loss[b] - g.loss[a])
        for i, g in enumerate(groups)
        for a, b in zip(g.hull[:-1], g.hull[1:])
    ]
    steps.sort(key=lambda step: step[:2])
    found = []
    for first in range(len(groups) + 1):
        own = [step for step in steps if step[1] >= first]
        start = groups[first:]
        cost = np.cumsum([sum(g.cost[0] for g in start), *(step[2] for step in own)])
        loss = np.cumsum([sum(g.loss[0] for g in start), *(step[3] for step in own)])
        found.append(_Relaxed(cost, loss, np.array([step[1] for step in own], np.int64)))
    return found


def _search(groups: list[_Group], limit: float, most_states: int) -> tuple[list[int], float | None]:
    """Returns the choices, and a lower bound of the loss, None if the choices are proven optimal."""
    relaxed = _relaxations(groups)
    cost, loss = np.zeros(1), np.zeros(1)
    history: list[tuple[Integers, Integers]] = []
    best_loss, best = np.inf, (0, 0)
    dropped = np.inf
    for level in range(len(groups) + 1):
        rest = relaxed[level]
        # Every partial solution can be completed by whole choices: the best such completion so far is the incumbent.
        reach = loss + rest.loss[rest.corner(limit - cost)]
        if reach.min() < best_loss:
            best_loss, best = float(reach.min()), (level, int(reach.argmin()))
            finish = _completion(groups, rest, level, float(limit - cost[best[1]]))
        if level == len(groups):
            break
        cost, loss, parent, pick = _extended(cost, loss, groups[level])
        bound = loss + relaxed[level + 1].bound(limit - cost)
        keep = np.flatnonzero(bound < best_loss)
        if len(keep) > most_states:
            keep = keep[np.argsort(bound[keep], kind="stable")]
            dropped = min(dropped, float(bound[keep[most_states]]))
            keep = np.sort(keep[:most_states])
        if not len(keep):
            break
        cost, loss = cost[keep], loss[keep]
        history.append((parent[keep], pick[keep]))
    chosen, (level, state) = list(finish), best
    for parents, picks in reversed(history[:level]):
        chosen.insert(0, int(picks[state]))
        state = int(parents[state])
    return chosen, dropped if dropped < best_loss else None


def _extended(cost: Floats, loss: Floats, group: _Group) -> tuple[Floats, Floats, Integers, Integers]:
    """Adds each choice of a group to each state; returns the undominated states, their parents and picks."""
    costs = (cost[:, None] + group.cost).ravel()
    losses = (loss[:, None] + group.loss).ravel()
    kept = pareto(costs, losses)
    return costs[kept], losses[kept], kept // len(group.cost), kept % len(group.cost)


def _completion(groups: list[_Group], rest: _Relaxed, level: int, money: float) -> list[int]:
    """Returns the choices of groups `level`, ... at the last corner that the money reaches."""
    corner = int(rest.corner(np.array([money]))[0])
    moves = np.bincount(rest.step_group[:corner], minlength=len(groups))[level:]
    return [int(group.hull[move]) for group, move in zip(groups[level:], moves)]
