"""The best plan of one size: knapsack, write to memory, and again with what was learnt, until the file fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from lilliput.core.recipe import Recipe
from lilliput.file.artifact import Artifact
from lilliput.search.cost import file_bytes
from lilliput.search.losses import Guide, OutputErrors, WeightErrors
from lilliput.search.space import Space, recipe
from lilliput.solve.knapsack import knapsack

ROUNDS = 12
"""Times that the knapsack is solved for one limit, at most."""

STEP = 25
"""Bytes that a step takes on average in manifest, header and recipe; what that misses is measured by writing."""

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
        artifact: what was written.
    """

    space: Space
    chosen: tuple[int, ...]
    recipe: Recipe
    predicted: int
    size: int
    loss: float
    artifact: Artifact

    def confirmed(self) -> Draft:
        """Returns the plan with the artifact that `compress` makes of it, dead channels cut, and its size."""
        artifact = self.space.frame.finished(self.artifact)
        return replace(self, artifact=artifact, size=file_bytes(artifact))

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
        self._frame = 0
        self._frame = self.smallest_draft().size - self.cost([0] * len(self.space.items))

    def costs(self) -> list[list[int]]:
        """Bytes of each setting of each item, its entries in the file's frame included."""
        return [[c.bytes + STEP * len(c.steps) for c in item.candidates] for item in self.space.items]

    def cost(self, chosen: Sequence[int]) -> int:
        """Sum of the costs of some settings."""
        return sum(costs[place] for costs, place in zip(self.costs(), chosen))

    def smallest_draft(self) -> Draft:
        """The smallest file that the settings can make."""
        return self.written([0] * len(self.space.items))

    def finest_draft(self) -> Draft:
        """The most exact file: every weight as it is."""
        return self.written([len(item.candidates) - 1 for item in self.space.items])

    def at(self, limit: int) -> Draft | None:
        """Returns the best plan found whose file has at most `limit` bytes; None if there is none."""
        found = self.variants(limit)
        return found[0] if found else None

    def variants(self, limit: int) -> list[Draft]:
        """Returns plans whose files have at most `limit` bytes, the best first.

        There is one by each of the losses' guides. Since losses of single layers only add up where they are small,
        the plans are compared by the loss of the whole, measured where there is data.
        """
        found: dict[tuple[int, ...], Draft] = {}
        for guide in self.losses.guides():
            draft = self._fitted(limit, guide)
            if draft is not None:
                found.setdefault(draft.chosen, draft)
        if not found:
            smallest = self.smallest_draft()
            return [smallest] if smallest.size <= limit else []
        return sorted(found.values(), key=lambda draft: self.losses.whole(draft.chosen))

    def _fitted(self, limit: int, guide: Guide) -> Draft | None:
        """Solves the knapsack, writes the file and solves it again with the frame's size as it then is.

        Settings that are chosen on an estimate are measured, and the choice is made again, as long as that finds any.
        """
        best: tuple[float, Draft] | None = None
        seen: set[tuple[int, ...]] = set()
        margin = 0
        for _ in range(ROUNDS):
            found = knapsack(self.costs(), guide(), limit - self._frame - margin)
            if found is None:
                break
            if self.losses.refine(found.chosen):
                continue
            draft = self.written(found.chosen)
            if draft.size > limit:
                # One that was too large before comes again where the frame's size changes to and fro.
                margin += draft.size - limit if draft.chosen in seen else 0
            elif best is None or found.loss <= best[0]:
                best = found.loss, draft
            if draft.size <= limit and (draft.chosen in seen or draft.predicted - draft.size <= SLACK * limit):
                break
            seen.add(draft.chosen)
            self._frame += draft.size - draft.predicted
        return best[1] if best else None

    def written(self, chosen: Sequence[int]) -> Draft:
        """Writes a choice to memory."""
        table = self.losses.table()
        made = recipe(self.space, chosen, table, self.name, self.losses.unit)
        predicted = self._frame + self.cost(chosen)
        artifact = self.space.frame.artifact(made, self.space.packed(chosen))
        loss = sum(losses[place] for losses, place in zip(table, chosen))
        return Draft(self.space, tuple(chosen), made, predicted, file_bytes(artifact), loss, artifact)
