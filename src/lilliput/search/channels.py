"""What a plan of channels chooses from: the groups, how many of each may go, and what that costs and saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.core.budget import Count
from lilliput.core.cut import CutRule
from lilliput.core.errors import DataError
from lilliput.graph.groups import Analysis, Group, analyse
from lilliput.graph.macs import macs, uses
from lilliput.graph.ranking import channel_scores, squares
from lilliput.observe.cost import size
from lilliput.observe.sensitivity import Progress, Trial, interpolated, sensitivity
from lilliput.solve.widths import Limit, Term
from lilliput.train.attach import plain_copy
from lilliput.train.cut import criterion_scores

LEVELS = 24
"""Widths of a group that a plan tells apart, at most."""


@dataclass(frozen=True, eq=False)
class Item:
    """One decision of a plan: how many channels a group loses.

    Attributes:
        group: of channels.
        order: its channels, the weakest first.
        removals: numbers that may go, from 0 upwards.
        errors: for each of them the part of the group's scores that goes along.
    """

    group: Group
    order: tuple[int, ...]
    removals: tuple[int, ...]
    errors: tuple[float, ...]

    def rule(self, place: int, loss: float, settings: Mapping[str, Any]) -> CutRule:
        """Returns the rule of a recipe that removes so many.

        Args:
            place: of the choice.
            loss: estimated.
            settings: criterion and multiple.
        """
        gone, total = self.removals[place], self.group.size
        name = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in self.group.name)
        why = f"{total - gone} of {total} channels stay, +{max(loss, 0):.2g} loss"
        return CutRule(name, share_of(gone, total), why=why, **settings)


def share_of(gone: int, total: int) -> float:
    """Returns the shortest share that removes just so many channels.

    >>> share_of(5, 16), share_of(1, 3)
    (0.32, 0.4)
    """
    for digits in range(1, 7):
        step = 10.0**-digits
        for share in (round(gone / total, digits), round(gone / total + step, digits)):
            if 0 <= share < 1 and int(share * total) == gone:
                return share
    return (gone + 0.5) / total


@dataclass(eq=False)
class Channels:
    """All decisions of a plan of channels, what they cost and what they save.

    Attributes:
        model: a plain copy of the user's, in eval mode.
        example: one input.
        items: the decisions.
        analysis: the traced model.
        settings: of the rules: criterion and multiple.
        batches: of data, on which losses are measured; without any they are the part of the scores that goes.
        trials: widths measured for each group.
        progress: told of each trial.
    """

    model: nn.Module
    example: Any
    items: tuple[Item, ...]
    analysis: Analysis
    settings: Mapping[str, Any]
    batches: Sequence[Any] = ()
    trials: int = 6
    progress: Progress | None = None
    _wholes: dict[tuple[int, ...], float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, example: Any, data: Any, criterion: Any, multiple: int) -> Channels:
        """Finds the groups of a model, and ranks the channels of each as `cut` does.

        Args:
            model: the user's; it is not changed.
            example: one input.
            data: for a criterion that needs some.
            criterion: a method of `prune/`; None for squares.
            multiple: of which widths are to be.
        """
        work = plain_copy(model).eval()
        analysis = analyse(work, example, exported=True)
        scores = criterion_scores(work, criterion, data, None)
        state = dict(work.named_parameters(remove_duplicate=False))
        items = []
        for group in analysis.groups:
            if group.members and group.reason is None and group.size > 1:
                total = channel_scores(group, state, squares if scores is None else lambda name, _: scores.get(name))
                items.append(_item(group, total, multiple))
        settings = {"criterion": criterion, "multiple": multiple}
        return cls(work, example, tuple(item for item in items if len(item.removals) > 1), analysis, settings)

    def limit(self, what: Count, most: int) -> Limit:
        """Returns what a limit on MACs or parameters means for the widths, all else as the whole model has it."""
        numbers = {name: 1.0 for name, _ in self.model.named_parameters()}
        if what == "macs":
            share = 1 / examples_of(self.example)
            found = uses(self.analysis.graph, self.analysis.tensors, self.example)
            numbers = {name: count * share for name, count in found.items()}
        limit = self.weighed(numbers, float(most))
        return Limit(limit.limit, limit.terms, counted(what, self.model, self.example) - limit.cost(self.removed()))

    def weighed(self, numbers: Mapping[str, float], most: float) -> Limit:
        """Returns a limit on a sum over the weights: how many numbers each has times what one of them counts.

        Args:
            numbers: what one counts, by the weight's name.
            most: the limit.
        """
        cuts: dict[str, dict[int, list[tuple[int, float]]]] = {}
        for number, item in enumerate(self.items):
            for member in item.group.members:
                places = sum(len(each) for each in member.places) / item.group.size
                cuts.setdefault(member.parameter, {}).setdefault(member.axis, []).append((number, places))
        terms = []
        for name, factor in numbers.items():
            if name in cuts:
                shape = self.analysis.tensors[name].shape
                axes = tuple((float(n), tuple(cuts[name].get(axis, ()))) for axis, n in enumerate(shape))
                terms.append(Term(factor, axes))
        return Limit(most, tuple(terms))

    def removed(self, chosen: Sequence[int] = ()) -> list[int]:
        """How many channels of each group go; none by default."""
        return [item.removals[place] for item, place in zip(self.items, chosen or [0] * len(self.items))]

    def errors(self) -> list[list[float]]:
        """The part of each group's scores that goes with each of its widths."""
        return [list(item.errors) for item in self.items]

    def losses(self, around: Sequence[int]) -> list[list[float]]:
        """Measures what each group's widths do to the outputs while the others are as chosen.

        Args:
            around: the choice of each group.

        Returns:
            For each group its losses, beyond that of the widest width; estimated where none was measured.
        """
        if not self.batches:
            return self.errors()
        tried: list[tuple[int, int]] = []
        for number, item in enumerate(self.items):
            last = len(item.removals) - 1
            places = {1 + round(i * (last - 1) / max(self.trials - 1, 1)) for i in range(self.trials)} | {0}
            tried += [(number, place) for place in sorted(places) if place <= last]
        choices = [(*around[:n], place, *around[n + 1 :]) for n, place in tried]
        self._measure(choices)
        table = []
        for number, item in enumerate(self.items):
            known = {p: self._wholes[c] for (n, p), c in zip(tried, choices) if n == number}
            base = known[0]
            rising = np.maximum.accumulate([known[p] - base for p in sorted(known)])
            found = {p: max(float(v), 0.0) for p, v in zip(sorted(known), rising)}
            table.append(interpolated(item.errors, found))
        return table

    def whole(self, chosen: Sequence[int]) -> float:
        """The loss of a whole choice: measured where there is data."""
        if not self.batches:
            return sum(item.errors[place] for item, place in zip(self.items, chosen))
        self._measure([tuple(chosen)])
        return self._wholes[tuple(chosen)]

    def zeroed(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """The parameters that a choice changes, zeros in place of what would go: the outputs are those of the cut."""
        state = dict(self.model.named_parameters(remove_duplicate=False))
        values: dict[str, Tensor] = {}
        for item, gone in zip(self.items, self.removed(chosen)):
            for member in item.group.members if gone else ():
                if member.parameter in state:
                    value = values.setdefault(member.parameter, state[member.parameter].detach().clone())
                    places = [place for channel in item.order[:gone] for place in member.places[channel]]
                    value.index_fill_(member.axis, torch.tensor(places, device=value.device), 0.0)
        return values

    def rules(self, chosen: Sequence[int], losses: Sequence[Sequence[float]]) -> tuple[CutRule, ...]:
        """Returns the rules of a recipe for a choice; groups that stay whole get a rule too, so that none takes them.

        Args:
            chosen: of each item.
            losses: estimated, of each setting of each item.
        """
        return tuple(
            item.rule(place, loss[place], self.settings) for item, place, loss in zip(self.items, chosen, losses)
        )

    def _measure(self, choices: Sequence[tuple[int, ...]]) -> None:
        missing = [chosen for chosen in dict.fromkeys(choices) if chosen not in self._wholes]
        trials = [Trial(tuple(self.zeroed(chosen)), lambda c=chosen: self.zeroed(c)) for chosen in missing]  # type: ignore[misc]
        changed = [(chosen, trial) for chosen, trial in zip(missing, trials) if trial.names]
        found = sensitivity(self.model, [trial for _, trial in changed], self.batches, progress=self.progress)
        self._wholes |= dict.fromkeys(missing, 0.0)
        self._wholes |= {chosen: min(loss, 1e6) for (chosen, _), loss in zip(changed, found)}


def counted(what: Count, model: nn.Module, example: Any) -> float:
    """Counts MACs for one input, or parameters."""
    if what == "macs":
        return macs(model, example) / examples_of(example)
    return float(sum(parameter.numel() for parameter in model.parameters()))


def examples_of(example: Any) -> int:
    """How many inputs an example holds: its first length, 1 if it has none."""
    try:
        return max(size(example), 1)
    except DataError:
        return 1


def _item(group: Group, scores: Tensor, multiple: int) -> Item:
    """The widths of a group, evenly spaced, multiples where they are asked for."""
    order = scores.argsort(stable=True)
    step = multiple // math.gcd(multiple, len(group.members[0].places[0]))
    least = min(step, group.size)
    widths = [width for width in range(least, group.size) if width % step == 0] + [group.size]
    places = sorted({round(i * (len(widths) - 1) / min(LEVELS, len(widths))) for i in range(LEVELS + 1)} | {0})
    kept = sorted({widths[min(place, len(widths) - 1)] for place in places} | {group.size}, reverse=True)
    removals = tuple(group.size - width for width in kept)
    weak = (scores - scores.min().clamp(max=0))[order].double().cumsum(0)
    total = float(weak[-1])
    errors = tuple(float(weak[gone - 1]) / total if gone and total > 0 else gone / group.size for gone in removals)
    return Item(group, tuple(order.tolist()), removals, errors)
