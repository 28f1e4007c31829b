"""`in_turn`: a recipe attached one layer after another, with training between."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from lilliput.core.errors import RecipeError
from lilliput.core.layers import Weight, weights
from lilliput.core.recipe import Recipe, Rule
from lilliput.train.attach import attach
from lilliput.train.calibrate import calibrated


def in_turn(
    model: nn.Module, recipe: Recipe, data: Any = None, *, example: Any = None, order: Sequence[str] = ()
) -> Iterator[str]:
    """Attaches a recipe one weight after another; train the model in between.

    What a method wants to know of a weight is collected when its turn comes, from the model as it has become: so
    filters are pruned by entropy (Luo & Wu 2017, arXiv 1706.05791), by their effect on the next layer (Luo, Wu & Lin
    2017, arXiv 1707.06342) or by zeros (Hu et al. 2016, arXiv 1607.03250). After the last one the model is as `attach`
    would leave it, with the whole recipe.

    Args:
        model: changed in place, when the first name is asked for.
        recipe: what to do with which weight.
        data: iterable anew for each weight, of what `attach` takes; None if no method needs any.
        example: as for `attach`.
        order: names of weights whose turn comes first; the others follow in the model's order.

    Yields:
        The name of the weight that was attached last.

    Raises:
        RecipeError: a rule ranks all its weights at once (`scope = "global"`), or fits none; a name in `order` has no
            step; there is no step at all.
        Others: as `attach`.

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> recipe = Recipe.loads("rule = [{steps = [{method = 'prune/magnitude', sparsity = 0.5}]}]")
    >>> for name in in_turn(net, recipe):  # here you would train
    ...     print(name, int((net[0].weight == 0).sum()), int((net[2].weight == 0).sum()))
    0.weight 8 0
    2.weight 8 4
    """
    found = weights(model)
    recipe.check(found)
    turns = _turns(recipe, found, order)
    held: dict[str, Any] = {}
    for place, weight in enumerate(turns):
        later = tuple(_untouched(other) for other in turns[place + 1 :])
        alone = tuple(_untouched(other) for other in turns if other is not weight)
        held |= calibrated(model, Recipe((*alone, *recipe.rules)), data, None)
        attach(model, Recipe((*later, *recipe.rules), recipe.name), data, example=example, stats=held)
        yield weight.name


def _turns(recipe: Recipe, found: list[Weight], order: Sequence[str]) -> list[Weight]:
    """The weights that have steps, in the order in which their turns come."""
    rules = [(weight, recipe.rule_for(weight)) for weight in found]
    treated = {weight.name: weight for weight, rule in rules if rule is not None and rule.steps}
    if not treated:
        raise RecipeError("in_turn: the recipe has no step for any weight")
    for _, rule in rules:
        if rule is not None and any(getattr(step, "scope", "") == "global" for step in rule.steps):
            raise RecipeError("in_turn: scope = 'global' ranks all weights of a rule at once; use attach")
    for name in order:
        if name not in treated:
            raise RecipeError(f"in_turn: order names '{name}', which has no step; there is {', '.join(treated)}")
    return [treated[name] for name in dict.fromkeys((*order, *treated))]


def _untouched(weight: Weight) -> Rule:
    """A rule that keeps the others from a weight."""
    return Rule(match=glob.escape(weight.name), layers=weight.kind)
