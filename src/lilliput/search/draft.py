"""The best plan of one size: knapsack, write to memory, and again with what was learnt, until the file fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from lilliput.core.recipe import Recipe
from lilliput.file.artifact import Artifact
from lilliput.search.cost import file_bytes
from lilliput.search.losses import OutputErrors, WeightErrors
from lilliput.search.space import Space, recipe
from lilliput.solve.knapsack import knapsack

ROUNDS = 12
"""Times that the knapsack is solved for one limit, at most."""

SLACK = 5e-4
"""Part of the limit that may stay unused because the frame was estimated too large."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A plan that has been written to memory.

    Attributes:
        space: what could be chosen.
        chosen: the setting of each item.
        recipe: the same as a recipe.
        predicted: bytes of the file as the knapsack saw them.
        size: bytes of the file as written.
        loss: estimated.
    """

    space: Space
    chosen: tuple[int, ...]
    recipe: Recipe
    predicted: int
    size: int
    loss: float

    @cached_property
    def artifact(self) -> Artifact:
        """What `compress` makes of this plan."""
        return self.space.frame.artifact(self.recipe, self.space.packed(self.chosen))

    def model(self) -> nn.Module:
        """A copy of the user's model with the planned weights."""
        return self.space.frame.compressed(self.artifact)


@dataclass(eq=False)
class Drafter:
    """Makes plans of any size over one space.

    Attributes:
        space: what can be chosen.
        losses: what it costs.
        name: of the recipes.
    """

    space: Space
    losses: WeightErrors | OutputErrors
    name: str = ""

    def __post_init__(self) -> None:
        costs = self.costs()
        self._frame = self.smallest_draft().size - sum(min(c) for c in costs)

    def costs(self) -> list[list[int]]:
        """Bytes of each setting of each item."""
        return [[candidate.bytes for candidate in item.candidates] for item in self.space.items]

    def smallest_draft(self) -> Draft:
        """The smallest file that the settings can make."""
        return self.written([0] * len(self.space.items), 0)

    def finest_draft(self) -> Draft:
        """The most exact file: every weight as it is."""
        return self.written([len(item.candidates) - 1 for item in self.space.items], 0)

    def at(self, limit: int) -> Draft | None:
        """Returns the plan of least estimated loss whose file has at most `limit` bytes; None if there is none.

        Settings that are chosen on an estimate are measured, and the choice is made again, as long as that finds any.
        """
        best: Draft | None = None
        margin = 0
        for _ in range(ROUNDS):
            table = self.losses.table()
            found = knapsack(self.costs(), table, limit - self._frame - margin)
            if found is None:
                break
            if self.losses.refine(found.chosen):
                continue
            draft = self.written(found.chosen, self._frame)
            self._frame = draft.size - int(found.cost)
            if draft.size > limit:
                margin += max((draft.size - limit) // 4, 1)
                continue
            if best is None or draft.loss <= best.loss:
                best = draft
            if draft.predicted - draft.size <= SLACK * limit:
                break
        if best is None:
            smallest = self.smallest_draft()
            return smallest if smallest.size <= limit else None
        return best

    def written(self, chosen: Sequence[int], frame: int) -> Draft:
        """Writes a choice to memory."""
        table = self.losses.table()
        made = recipe(self.space, chosen, table, self.name, self.losses.unit)
        predicted = frame + self.space.bytes(chosen)
        size = file_bytes(self.space.frame.artifact(made, self.space.packed(chosen)))
        loss = sum(losses[place] for losses, place in zip(table, chosen))
        return Draft(self.space, tuple(chosen), made, predicted, size, loss)
