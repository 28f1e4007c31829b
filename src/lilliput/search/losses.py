"""What each setting of each layer costs: measured on data where it matters, filled in by the weight error elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lilliput.core.packed import unpack
from lilliput.observe.divergence import Measure
from lilliput.observe.sensitivity import Progress, Trial, interpolated, sensitivity
from lilliput.search.space import Item, Space

FIRST = (0.1, 0.01, 0.001)
"""The settings measured first: those whose relative squared errors are nearest to these (10, 20 and 30 dB)."""

BROKEN = 1e6
"""Stands for an infinite loss: a setting whose outputs aren't finite, to be chosen only where there is no other."""


Table = list[list[float]]
"""The loss of each setting of each item."""

Guide = Callable[[], Table]
"""What a knapsack goes by, as it is known at the time."""


@dataclass(eq=False)
class WeightErrors:
    """Without data: the sum of the layers' squared errors, each relative to its layer's squared norm.

    Attributes:
        space: what can be chosen.
    """

    space: Space
    unit = "relative weight error"

    def table(self) -> Table:
        """Returns the loss of each setting of each item."""
        return [[candidate.error for candidate in item.candidates] for item in self.space.items]

    def refine(self, chosen: Sequence[int]) -> bool:
        """Whether anything was learnt about these settings; never."""
        return False

    def guides(self) -> tuple[Guide, ...]:
        """Returns what plans may go by."""
        return (self.table,)

    def whole(self, chosen: Sequence[int]) -> float:
        """Returns the loss of a whole plan."""
        return sum(item.candidates[place].error for item, place in zip(self.space.items, chosen))


@dataclass(eq=False)
class OutputErrors:
    """With data: how far the outputs are from the uncompressed model's with one layer compressed.

    Losses of different layers are added, which holds as long as they are small; whole plans are measured too.

    Attributes:
        space: what can be chosen.
        batches: of the user's data.
        most_trials: layers' settings measured in all.
        measure: how outputs are compared, or None to go by their shape.
        progress: told of each trial.
        measured: loss by setting, for each item.
    """

    space: Space
    batches: Sequence[Any]
    most_trials: int
    measure: Measure | None = None
    progress: Progress | None = None
    measured: list[dict[int, float]] = field(default_factory=list)
    _wholes: dict[tuple[int, ...], float] = field(default_factory=dict)
    unit = "loss"

    def __post_init__(self) -> None:
        self.measured = [{} for _ in self.space.items]
        self._measure((i, place) for i, item in enumerate(self.space.items) for place in first_settings(item))

    def table(self) -> Table:
        """Returns the loss of each setting of each item."""
        return [
            interpolated([candidate.error for candidate in item.candidates], known)
            for item, known in zip(self.space.items, self.measured)
        ]

    def refine(self, chosen: Sequence[int]) -> bool:
        """Measures those of the chosen settings that were only estimated; returns whether there were any."""
        missing = [(i, place) for i, place in enumerate(chosen) if self._unknown(i, place)]
        left = self.most_trials - sum(len(known) for known in self.measured)
        # The largest estimates first: an error there moves the most.
        table = self.table()
        missing.sort(key=lambda pair: -table[pair[0]][pair[1]])
        self._measure(missing[: max(left, 0)])
        return bool(missing[: max(left, 0)])

    def guides(self) -> tuple[Guide, ...]:
        """Returns what plans may go by: the losses, the weight errors, and the geometric mean of both."""
        errors = WeightErrors(self.space).table

        def between() -> Table:
            pairs = zip(self.table(), errors())
            return [[math.sqrt(max(a, 0.0) * b) for a, b in zip(*pair)] for pair in pairs]

        return self.table, errors, between

    def whole(self, chosen: Sequence[int]) -> float:
        """Measures the loss of a whole plan."""
        chosen = tuple(chosen)
        if chosen not in self._wholes:
            names = tuple(weight.name for item in self.space.items for weight in item.weights)

            def values() -> dict[str, Tensor]:
                return {name: unpack(form) for name, form in self.space.packed(chosen).items()}

            self._wholes[chosen] = self._sensitivity([Trial(names, values)])[0]
        return self._wholes[chosen]

    def _sensitivity(self, trials: list[Trial]) -> list[float]:
        model = self.space.frame.model
        return sensitivity(model, trials, self.batches, measure=self.measure, progress=self.progress)

    def _unknown(self, number: int, place: int) -> bool:
        return place not in self.measured[number] and self.space.items[number].candidates[place].error > 0

    def _measure(self, pairs: Iterable[tuple[int, int]]) -> None:
        pairs = list(pairs)
        if not pairs:
            return
        trials = [self._trial(self.space.items[i], place) for i, place in pairs]
        found = self._sensitivity(trials)
        for (i, place), loss in zip(pairs, found):
            self.measured[i][place] = min(loss, BROKEN) if not math.isnan(loss) else BROKEN

    def _trial(self, item: Item, place: int) -> Trial:
        return Trial(tuple(w.name for w in item.weights), lambda: self.space.values(item, place))


def first_settings(item: Item) -> list[int]:
    """Returns the places of the settings that are measured first, at most `len(FIRST)`."""
    inexact = [place for place, candidate in enumerate(item.candidates) if candidate.error > 0]
    if len(inexact) <= len(FIRST):
        return inexact
    errors = [item.candidates[place].error for place in inexact]
    nearest = [min(range(len(errors)), key=lambda i: abs(math.log(errors[i] / aim))) for aim in FIRST]
    return sorted({inexact[i] for i in nearest})
