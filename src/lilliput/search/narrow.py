"""From a budget in MACs or parameters to the widths of all layers: which channels a recipe cuts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from lilliput.core.budget import Budget, Count
from lilliput.core.cut import CutRule
from lilliput.core.errors import BudgetError
from lilliput.core.recipe import Recipe
from lilliput.graph.cut import noted_cuts
from lilliput.search.channels import Channels, counted
from lilliput.search.metric import Evaluate, score
from lilliput.solve.widths import Limit, widths
from lilliput.train.attach import plain_copy
from lilliput.train.cut import cut_by

ROUNDS = 2
"""Times that the groups' losses are measured anew, the others as they were chosen."""

TRIES = 5
"""Times that a choice is made again because the cut model's cost isn't what was expected."""

CLOSE = 0.97
"""A cost that isn't further below its limit than this is near enough."""


@dataclass(frozen=True, eq=False)
class Narrowed:
    """A plan of channels, carried out.

    Attributes:
        cuts: the rules of a recipe.
        model: cut by them.
        counts: its MACs for one input, or parameters, as they were asked for.
        loss: of its outputs, without training.
    """

    cuts: tuple[CutRule, ...]
    model: nn.Module
    counts: dict[Count, int]
    loss: float


def narrowed(model: nn.Module, budget: Budget, channels: Channels, data: Any, evaluate: Evaluate | None) -> Narrowed:
    """Finds how many channels each group loses, so that MACs and parameters are within a budget.

    Several choices are made: by the measured losses of single groups, by the part of the scores that goes, by the
    geometric mean of both, and one share for all. The best of them, by the metric if there is one, else by the loss of
    the whole, is improved: losses are measured again around it. Then it is cut, and what is left is counted.

    Args:
        model: the user's; it is not changed.
        budget: its `macs` and `parameters`.
        channels: of the model.
        data: what a criterion is calibrated on.
        evaluate: the user's metric, or None.

    Raises:
        BudgetError: even with one channel left wherever some can go there is more; names how much.
    """
    whole = {what: counted(what, channels.model, channels.example) for what in budget.counts}
    limits = {what: channels.limit(what, budget.count(what, round(whole[what]))) for what in budget.counts}
    best: Narrowed | None = None
    for _ in range(TRIES):
        found = chosen(channels, list(limits.values()), evaluate)
        place = tuple(len(item.removals) - 1 for item in channels.items) if found is None else found
        made = _made(model, channels, place, data, budget.counts)
        fits = all(made.counts[what] <= limit.limit for what, limit in limits.items())
        if fits and (best is None or made.loss < best.loss):
            best = made
        corrected, channels = _corrected(limits, channels, made, place)
        if not fits and found is None:
            break
        if fits and (corrected == limits or any(made.counts[w] >= CLOSE * limit.limit for w, limit in limits.items())):
            break
        limits = corrected
    if best is None:
        raise _out_of_reach(limits, made)
    return best


def chosen(channels: Channels, limits: Sequence[Limit], evaluate: Evaluate | None) -> tuple[int, ...] | None:
    """Chooses the width of each group; None if the limits can't be reached."""
    items = channels.items
    removals = [item.removals for item in items]
    judge = _judge(channels, evaluate)
    start = tuple([0] * len(items))
    if all(limit.cost(channels.removed(start)) <= limit.limit for limit in limits):
        return start
    losses, errors = channels.losses(start), channels.errors()
    between = [[float(np.sqrt(a * b)) for a, b in zip(*pair)] for pair in zip(losses, errors)]
    found = [widths(removals, table, limits) for table in (losses, errors, between)]
    candidates = {c for c in (*found, uniform(channels, limits)) if c is not None}
    if not candidates:
        return None
    best = min(sorted(candidates), key=judge)
    for _ in range(ROUNDS if channels.batches else 0):
        again = widths(removals, channels.losses(best), limits)
        if again is None or again in candidates:
            break
        candidates.add(again)
        if judge(again) < judge(best):
            best = again
    return best


def uniform(channels: Channels, limits: Sequence[Limit]) -> tuple[int, ...] | None:
    """Takes the smallest share of all groups' channels alike that meets the limits; None if there is none."""
    for share in np.linspace(0, 1, 129):
        place = tuple(
            next((i for i, gone in enumerate(item.removals) if gone >= share * item.group.size), len(item.removals) - 1)
            for item in channels.items
        )
        if all(limit.cost(channels.removed(place)) <= limit.limit for limit in limits):
            return place
    return None


def _judge(channels: Channels, evaluate: Evaluate | None) -> Callable[[tuple[int, ...]], tuple[float, float]]:
    """Says how bad a choice is: by the metric, then by the loss."""
    known: dict[tuple[int, ...], tuple[float, float]] = {}

    def judge(place: tuple[int, ...]) -> tuple[float, float]:
        if place not in known:
            metric = 0.0
            if evaluate is not None:
                work = plain_copy(channels.model)
                parameters = dict(work.named_parameters(remove_duplicate=False))
                for name, value in channels.zeroed(place).items():
                    parameters[name].data = value
                metric = -score(evaluate, work)
                if channels.progress:
                    channels.progress("evaluating widths", len(known) + 1, 0)
            known[place] = metric, channels.whole(place)
        return known[place]

    return judge


def _made(model: nn.Module, channels: Channels, place: tuple[int, ...], data: Any, counts: Sequence[Count]) -> Narrowed:
    """Cuts, and counts what is left."""
    losses = channels.losses(tuple([0] * len(channels.items)))
    rules = channels.rules(place, losses)
    smaller = plain_copy(model).eval()
    if any(channels.removed(place)):
        smaller, _ = cut_by(smaller, Recipe(cuts=rules), channels.example, data)
    left = {what: round(counted(what, smaller, channels.example)) for what in counts}
    return Narrowed(rules, smaller, left, channels.whole(place))


def _corrected(
    limits: dict[Count, Limit], channels: Channels, made: Narrowed, place: tuple[int, ...]
) -> tuple[dict[Count, Limit], Channels]:
    """The limits with what the cut model really has, and groups that couldn't be cut taken out of the choice."""
    kept = {(cut.parameter, cut.axis): set(cut.kept) for cut in noted_cuts(made.model).cuts}
    real, items = [], []
    for item, gone in zip(channels.items, channels.removed(place)):
        member = item.group.members[0]
        left = kept.get((member.parameter, member.axis))
        failed = gone and (left is None or any(i in left for i in member.places[item.order[0]]))
        real.append(0 if failed else gone)
        items.append(replace(item, removals=(0,), errors=(0.0,)) if failed else item)
    if any(len(new.removals) != len(old.removals) for new, old in zip(items, channels.items)):
        channels = replace(channels, items=tuple(items), _wholes={})
    new = {}
    for what, limit in limits.items():
        rest = limit.rest + made.counts[what] - limit.cost(real)
        new[what] = limit if abs(rest - limit.rest) < 1 else replace(limit, rest=rest)
    return new, channels


def _out_of_reach(limits: dict[Count, Limit], made: Narrowed) -> BudgetError:
    words = {"macs": "MACs", "parameters": "parameters"}
    asked = ", ".join(f"{round(limit.limit):,} {words[what]}" for what, limit in limits.items())
    left = ", ".join(f"{made.counts[what]:,} {words[what]}" for what in limits)
    return BudgetError(
        f"no cut of channels leaves {asked}: with one channel left wherever some can go there are still {left}"
    )
