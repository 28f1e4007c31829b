"""Everything that a plan can choose: for each layer its settings, their bytes, and their packed forms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from torch import Tensor

from lilliput.core.layers import Weight
from lilliput.core.method import path_of
from lilliput.core.packed import Packed, pack_steps, unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.observe.sensitivity import Progress
from lilliput.search.candidates import Candidate, Steps, candidates, shared_candidates
from lilliput.search.cost import Frame


@dataclass(frozen=True, eq=False)
class Item:
    """One decision of a plan: the setting of one weight, or of all biases and norms together.

    Attributes:
        weights: the parameters that it is about.
        candidates: the settings, by rising bytes; the last is the most exact.
        vectors: it is about all biases and norms.
    """

    weights: tuple[Weight, ...]
    candidates: tuple[Candidate, ...]
    vectors: bool = False

    @property
    def label(self) -> str:
        """Its name in messages."""
        return "biases and norms" if self.vectors else self.weights[0].name

    @property
    def numel(self) -> int:
        """Number of weights."""
        return sum(weight.parameter.numel() for weight in self.weights)

    def rule(self, place: int, why: str) -> Rule:
        """Returns the rule of the recipe that sets one of the candidates."""
        steps = self.candidates[place].steps
        if self.vectors:
            return Rule(steps=steps, layers="vector", why=why)
        return Rule(re.sub(r"([*?[])", r"[\1]", self.weights[0].name), steps, why=why)


@dataclass(frozen=True, eq=False)
class Space:
    """All decisions of a plan.

    Attributes:
        frame: the network and its file.
        items: the decisions.
    """

    frame: Frame
    items: tuple[Item, ...]
    _forms: dict[tuple[str, int], Packed | Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, frame: Frame, progress: Progress | None = None) -> Space:
        """Finds the settings of every weight of a network."""
        found = [w for w in frame.weights if w.parameter.dtype.is_floating_point and w.parameter.numel()]
        matrices = [weight for weight in found if weight.kind != "vector"]
        items = []
        for number, weight in enumerate(matrices):
            items.append(Item((weight,), candidates(weight.parameter)))
            if progress:
                progress("trying settings", number + 1, len(matrices))
        vectors = tuple(weight for weight in found if weight.kind == "vector")
        if vectors:
            items.append(Item(vectors, shared_candidates([w.parameter for w in vectors]), vectors=True))
        return cls(frame, tuple(items))

    def forms(self, item: Item, place: int) -> dict[str, Packed | Tensor]:
        """Returns an item's weights packed by one of its settings, by name; they are kept."""
        packed = {}
        for weight in item.weights:
            key = weight.name, place
            if key not in self._forms:
                self._forms[key] = pack_steps(weight.parameter.detach(), item.candidates[place].steps)
            packed[weight.name] = self._forms[key]
        return packed

    def values(self, item: Item, place: int) -> Mapping[str, Tensor]:
        """Returns an item's weights as one of its settings gives them back."""
        return {name: unpack(form) for name, form in self.forms(item, place).items()}

    def packed(self, chosen: Sequence[int]) -> dict[str, Packed | Tensor]:
        """Returns all weights packed as chosen."""
        return {k: v for item, place in zip(self.items, chosen) for k, v in self.forms(item, place).items()}


def named(steps: Steps) -> str:
    """Says in a few words what steps do: their names, and of their settings those that a search varies.

    >>> from lilliput.quantize.uniform import Uniform
    >>> named((Uniform(bits=4),))
    'uniform (4 bits)'
    """
    return ", then ".join(_named(step) for step in steps) or "as it is"


def _named(step: object) -> str:
    offered = step.choices()  # type: ignore[attr-defined]
    words = []
    for item in fields(step):  # type: ignore[arg-type]
        value = getattr(step, item.name)
        if len({getattr(other, item.name) for other in offered}) > 1:
            words.append(_setting(item.name, value))
    words = [word for word in words if word]
    return path_of(step).rpartition("/")[2] + (f" ({', '.join(words)})" if words else "")


def _setting(name: str, value: object) -> str:
    plain = name.replace("_", " ")
    if isinstance(value, bool):
        return plain if value else ""
    if isinstance(value, int):
        return f"{value} {plain}"
    return str(value) if isinstance(value, str) else f"{plain} {value:g}"


def recipe(space: Space, chosen: Sequence[int], losses: Sequence[Sequence[float]], name: str, unit: str) -> Recipe:
    """Returns the recipe of a choice, one rule a layer, each with the reason for its setting.

    Args:
        space: what could be chosen.
        chosen: the setting of each item.
        losses: estimated loss of each setting of each item.
        name: of the recipe.
        unit: what the losses are, in words.
    """
    rules = [
        item.rule(place, reason(item, place, loss, unit)) for item, place, loss in zip(space.items, chosen, losses)
    ]
    return Recipe(tuple(rules), name)


def reason(item: Item, place: int, losses: Sequence[float], unit: str) -> str:
    """Says what a setting takes and costs, and what the next smaller one would cost more."""
    here = item.candidates[place]
    text = f"{named(here.steps)}: {here.bytes / 1000:.4g} kB, +{max(losses[place], 0):.2g} {unit}"
    if place == 0:
        return text + "; nothing smaller is offered"
    smaller = item.candidates[place - 1]
    saved, more = (here.bytes - smaller.bytes) / 1000, losses[place - 1] - losses[place]
    return text + f"; {named(smaller.steps)} would save {saved:.3g} kB and cost {more:+.2g}"
