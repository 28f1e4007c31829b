"""How many channels each group loses: least total loss, products of widths within limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PASSES = 20
"""Times that exchanges between groups are looked for, at most."""


@dataclass(frozen=True)
class Term:
    """The cost of one weight: factor * product over its axes of (size - sum of places * removed).

    Attributes:
        factor: cost of one of its numbers.
        axes: for each axis its size, and (group, indices that one of the group's channels takes) for those that cut it.
    """

    factor: float
    axes: tuple[tuple[float, tuple[tuple[int, float], ...]], ...]


@dataclass(frozen=True)
class Limit:
    """A sum of terms that must not exceed a limit.

    Attributes:
        limit: the largest cost.
        terms: what depends on the widths.
        rest: what doesn't.
    """

    limit: float
    terms: tuple[Term, ...]
    rest: float = 0.0

    def cost(self, removed: Sequence[float]) -> float:
        """Returns the cost with so many channels of each group removed.

        >>> Limit(9.0, (Term(2.0, ((4.0, ((0, 1.0),)), (3.0, ()))),), rest=1.0).cost([2])
        13.0
        """
        return self.rest + sum(_value(term, removed) for term in self.terms)


def widths(
    removals: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], limits: Sequence[Limit]
) -> tuple[int, ...] | None:
    """Chooses a level for each group so that all limits hold, at a small total loss.

    Since a weight's cost is the product of its widths, this is no knapsack: from all channels on, always the step is
    taken that costs the least loss for what it brings nearer to the limits, whatever its length; then pairs of groups
    exchange channels as long as the loss falls. No proof of the optimum; on small cases it is nearly always found.

    Args:
        removals: for each group the numbers of channels that may go, from 0 upwards.
        losses: of each of them.
        limits: on the costs.

    Returns:
        The place of each group's choice, or None if all that may go isn't enough.

    >>> limit = Limit(30.0, (Term(1.0, ((4.0, ((0, 1.0),)), (10.0, ()))), Term(1.0, ((10.0, ((1, 1.0),)),))))
    >>> widths([[0, 1, 2], [0, 5]], [[0.0, 1.0, 2.0], [0.0, 9.0]], [limit])
    (2, 0)
    """
    state = _State([np.asarray(r, float) for r in removals], [np.asarray(v, float) for v in losses], limits)
    if state.excess([r[-1] for r in state.removals]) > 0:
        return None
    state.descend()
    for _ in range(PASSES):
        if not state.improve():
            break
    return tuple(state.chosen)


def _value(term: Term, removed: Sequence[float]) -> float:
    value = term.factor
    for size, cuts in term.axes:
        value *= size - sum(places * removed[group] for group, places in cuts)
    return value


class _State:
    """A choice, and what it costs."""

    def __init__(self, removals: list[Floats], losses: list[Floats], limits: Sequence[Limit]) -> None:
        self.removals, self.losses, self.limits = removals, losses, limits
        self.chosen = [0] * len(removals)
        self.touching = [
            [[t for t in limit.terms if any(g == group for _, cuts in t.axes for g, _ in cuts)] for limit in limits]
            for group in range(len(removals))
        ]

    @property
    def removed(self) -> list[float]:
        return [float(r[place]) for r, place in zip(self.removals, self.chosen)]

    def excess(self, removed: Sequence[float]) -> float:
        return sum(max(limit.cost(removed) / limit.limit - 1, 0.0) for limit in self.limits)

    def excesses(self, group: int, removed: list[float]) -> Floats:
        """Excess with each of a group's levels in turn; the others as they are."""
        levels = self.removals[group]
        total = np.zeros(len(levels))
        for limit, terms in zip(self.limits, self.touching[group]):
            cost = np.full(len(levels), limit.cost(removed))
            for term in terms:
                cost += _along(term, removed, group, levels) - _value(term, removed)
            # The comparison with the limit must not fail by the rounding of a difference.
            total += np.where(cost > limit.limit * (1 + 1e-12), cost / limit.limit - 1, 0.0)
        return total

    def descend(self) -> None:
        """Goes on until all limits hold."""
        while True:
            removed = self.removed
            before = self.excess(removed)
            if before <= 1e-12:
                return
            best: tuple[float, int, int] | None = None
            for group, place in enumerate(self.chosen):
                gain = before - self.excesses(group, removed)[place + 1 :]
                more = self.losses[group][place + 1 :] - self.losses[group][place]
                for step, (won, lost) in enumerate(zip(gain, more)):
                    if won > 0 and (best is None or lost / won < best[0]):
                        best = lost / won, group, place + 1 + step
            if best is None:
                raise ArithmeticError("no step brings the cost nearer to its limit")
            self.chosen[best[1]] = best[2]

    def improve(self) -> bool:
        """Gives channels back to a group where another can lose some for less; returns whether any were."""
        better = False
        for group in range(len(self.chosen)):
            here = self.chosen[group]
            best: tuple[float, list[int]] | None = None
            for place in range(len(self.removals[group])):
                won = float(self.losses[group][here] - self.losses[group][place])
                if won <= 0 or place == here:
                    continue
                found = self._paid(group, place, won)
                if found is not None and (best is None or found[0] > best[0] + 1e-15):
                    best = found
            if best is not None and best[0] > 1e-12:
                self.chosen = best[1]
                better = True
        return better

    def _paid(self, group: int, place: int, won: float) -> tuple[float, list[int]] | None:
        """What is won in all by a group's other level, with at most one other group that makes up for its cost."""
        trial = list(self.chosen)
        trial[group] = place
        removed = [float(r[p]) for r, p in zip(self.removals, trial)]
        if self.excess(removed) <= 1e-12:
            return won, trial
        best: tuple[float, list[int]] | None = None
        for other, now in enumerate(trial):
            if other == group:
                continue
            holds = self.excesses(other, removed) <= 0
            gains = np.where(holds, won - (self.losses[other] - self.losses[other][now]), -np.inf)
            pick = int(gains.argmax())
            if gains[pick] > 0 and (best is None or gains[pick] > best[0]):
                best = float(gains[pick]), [*trial[:other], pick, *trial[other + 1 :]]
        return best


def _along(term: Term, removed: Sequence[float], group: int, levels: Floats) -> Floats:
    """A term's value with each of one group's levels."""
    value = np.full(len(levels), term.factor)
    for size, cuts in term.axes:
        fixed = sum(places * removed[other] for other, places in cuts if other != group)
        own = sum(places for other, places in cuts if other == group)
        value = value * (size - fixed - own * levels)
    return value
