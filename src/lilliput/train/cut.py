"""The cuts that a recipe asks for, made on a copy, with what its criteria need collected from data."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lilliput.core.cut import CutRule
from lilliput.core.errors import MethodError, RecipeError
from lilliput.core.layers import weights
from lilliput.core.recipe import Recipe
from lilliput.graph.blocks import cut_blocks
from lilliput.graph.cut import Cuts, apply_cuts, compose, note_cuts, noted_cuts
from lilliput.graph.groups import Group
from lilliput.graph.macs import macs
from lilliput.graph.narrow import cut
from lilliput.observe.collect import collect

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def cut_by(
    model: nn.Module, recipe: Recipe, example: Any, data: Any = None, stats: Mapping[str, Any] | None = None
) -> tuple[nn.Module, tuple[Cuts, ...]]:
    """Makes the cuts of a recipe on a copy.

    Whole blocks go first, rule by rule. Then rules that share criterion, multiple and absorb are carried out together,
    in the order in which the first of each stands; no group of channels is cut twice.

    Args:
        model: any module; it is not changed.
        recipe: its `cuts`.
        example: as for `trace`.
        data: what criteria with needs are calibrated on; any iterable of batches, gone through once for each
            criterion that needs something.
        stats: what `observe.collect` collected, by weight name; isn't collected again.

    Returns:
        The smaller model, which has all its cuts noted, and the cuts of each step, to be applied one after the other.

    Raises:
        RecipeError: there is no example; a rule fits no group of channels.
        MethodError: a criterion can't be computed: it needs data, or its scores aren't numbers; names the rule.
        ModelError: the model can't be traced.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> smaller, _ = cut_by(net, Recipe(cuts=(CutRule(share=0.5),)), torch.rand(1, 4))
    >>> smaller[0].out_features
    3
    """
    if example is None:
        raise RecipeError("the recipe cuts channels, which takes an input of the model: give example= or data")
    kinds = {name: weight.kind for weight in weights(model) for name in (weight.name, *weight.aliases)}
    chosen = _Chosen(recipe.cuts, kinds)
    count = macs(model, example)
    smaller, made = _without_blocks(model, recipe.cuts, example, data, stats)
    narrowing = [rule for rule in recipe.cuts if rule.pattern != "block"]
    for key in dict.fromkeys(map(_together, narrowing)):
        rules = [number for number, rule in enumerate(recipe.cuts) if rule in narrowing and _together(rule) == key]
        first = recipe.cuts[rules[0]]
        try:
            # Scores are of the channels that are left: one pass of the data for each criterion.
            scores = criterion_scores(smaller, first.criterion, data, stats if smaller is model else None)
            smaller, cuts = cut(
                smaller,
                lambda group, own=rules: chosen.share(group, own),  # type: ignore[misc]
                example,
                criterion=scores,
                multiple=first.multiple,
                absorb=first.absorb,
            )
        except MethodError as error:
            raise _named(error, rules[0]) from None
        made.append(cuts)
    chosen.check()
    if made:
        made[0] = replace(made[0], macs=count)
        note_cuts(smaller, compose(Cuts(macs=noted_cuts(model).macs or count), noted_cuts(smaller)))
    return smaller, tuple(made)


def _without_blocks(
    model: nn.Module, rules: Sequence[CutRule], example: Any, data: Any, stats: Mapping[str, Any] | None
) -> tuple[nn.Module, list[Cuts]]:
    """The model without the residual blocks that rules remove, each block by the first rule that fits."""
    smaller = model
    made: list[Cuts] = []
    earlier: list[str] = []
    for number, rule in enumerate(rules):
        if rule.pattern != "block":
            continue

        def fitting(name: str, own: str = rule.match, taken: tuple[str, ...] = tuple(earlier)) -> bool:
            return fnmatchcase(name, own) and not any(fnmatchcase(name, pattern) for pattern in taken)

        try:
            scores = criterion_scores(smaller, rule.criterion, data, stats if smaller is model else None)
            smaller, cuts = cut_blocks(smaller, rule.share, example, match=fitting, criterion=scores)
        except MethodError as error:
            raise _named(error, number) from None
        made.append(cuts)
        earlier.append(rule.match)
    return smaller, made


def _named(error: MethodError, number: int) -> MethodError:
    return MethodError(f"cut[{number}]: {str(error).removeprefix('cut: ')}")


def cut_in_place(model: nn.Module, steps: Sequence[Cuts]) -> nn.Module:
    """Makes the cuts that `cut_by` has found on the model itself, and returns it; cut parameters are new objects.

    Args:
        model: the one that `cut_by` was given.
        steps: what it gave.
    """
    for cuts in steps:
        before = noted_cuts(model)
        apply_cuts(model, cuts)
        note_cuts(model, compose(before, cuts))
    return model


def cut_lines(cuts: Cuts) -> dict[str, str]:
    """Returns what was removed, and what was kept whole and why, as notes for a report.

    >>> cut_lines(Cuts(lines=("a: removed 1 of 2 channels",)))
    {'cut 1': 'a: removed 1 of 2 channels'}
    """
    return {f"cut {number}": line for number, line in enumerate(cuts.lines, 1)}


def _together(rule: CutRule) -> tuple[Any, ...]:
    return rule.criterion, rule.multiple, rule.absorb


@dataclass
class _Chosen:
    """Which rule each group of channels goes by.

    Attributes:
        rules: of the recipe.
        kinds: of layers, by their weights' names.
    """

    rules: Sequence[CutRule]
    kinds: Mapping[str, str]

    def __post_init__(self) -> None:
        self.used: set[int] = set()
        self.seen: dict[str, str] = {}

    def share(self, group: Group, own: Sequence[int]) -> float:
        """The share of a group's channels, 0 if it goes by none of one's own rules."""
        pattern = pattern_of(group, self.kinds)
        self.seen[group.name] = pattern
        fitting = [number for number, rule in enumerate(self.rules) if fits(rule, group, pattern)]
        self.used.update(fitting)
        return self.rules[fitting[0]].share if fitting and fitting[0] in own else 0.0

    def check(self) -> None:
        """Raises RecipeError if a rule fits nothing; one that an earlier rule has taken it from is fine."""
        for number, rule in enumerate(self.rules):
            if number not in self.used and rule.pattern != "block":
                near = difflib.get_close_matches(rule.match, self.seen, 3, 0.4) or list(self.seen)[:3]
                there = ", ".join(f"{name} ({self.seen[name]})" for name in near) or "none that could be cut"
                raise RecipeError(
                    f"cut[{number}] (match = {rule.match!r}, pattern = {rule.pattern!r}) fits no channels; "
                    f"there is {there}"
                )


def fits(rule: CutRule, group: Group, pattern: str) -> bool:
    """Whether a rule speaks of a group of channels, by any of the weights whose outputs they are.

    Args:
        rule: of a recipe.
        group: of channels.
        pattern: see `pattern_of`.
    """
    names = {group.name, *(member.parameter for member in group.members if member.axis == 0)}
    return rule.pattern in ("channel", pattern) and any(fnmatchcase(name, rule.match) for name in names)


def pattern_of(group: Group, kinds: Mapping[str, str]) -> str:
    """Says what a group's channels are: `"filter"`, `"neuron"` or `"head"`.

    Args:
        group: of channels.
        kinds: of layers, by their weights' names.
    """
    outputs = [member for member in group.members if member.parameter == group.name and member.axis == 0]
    kind = kinds.get(group.name, "vector")
    if kind in CONVOLUTIONS:
        return "filter"
    # A head takes as many outputs of its projection as it is wide.
    return "head" if outputs and len(outputs[0].places[0]) > 1 and kind != "recurrent" else "neuron"


def criterion_scores(
    model: nn.Module, criterion: Any, data: Any, stats: Mapping[str, Any] | None
) -> dict[str, Tensor] | None:
    """Returns the scores of every weight that the criterion can score, by name; None for the plain squares.

    Args:
        model: whose weights they are.
        criterion: a method of `prune/`, or None.
        data: what it is calibrated on if it needs anything.
        stats: what was collected already, by name.

    Raises:
        MethodError: it can score none; says why.
    """
    if criterion is None:
        return None
    needs = frozenset(getattr(criterion, "needs", frozenset()))
    found = [w for w in weights(model) if w.parameter.is_floating_point() and w.parameter.numel()]
    found = [weight for weight in found if weight.kind != "vector" or not needs]
    known = dict(stats or {})
    missing = {weight.name: needs for weight in found if needs and weight.name not in known}
    if missing and data is not None:
        known |= collect(model, missing, data)
    scores: dict[str, Tensor] = {}
    refusals: list[MethodError] = []
    for weight in found:
        try:
            score = criterion.score(weight.parameter.detach(), known.get(weight.name))
            scores |= dict.fromkeys((weight.name, *weight.aliases), score)
        except MethodError as error:
            refusals.append(error)
    if not scores:
        raise refusals[0] if refusals else MethodError("the model has no weight that could be scored")
    return scores


def again(data: Any) -> Any:
    """Returns data that can be gone through more than once: an iterator as a list, which takes its memory."""
    return list(data) if isinstance(data, Iterator) else data
