"""Which steps each weight gets, where a rule decides about its weights together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lilliput.core.errors import LilliputError, MethodError

if TYPE_CHECKING:
    from torch import Tensor

    from lilliput.core.layers import Weight
    from lilliput.core.method import WeightMethod
    from lilliput.core.recipe import Recipe

Steps = tuple["WeightMethod", ...]


def allotted(
    recipe: Recipe, found: Sequence[Weight], value: Callable[[Weight], Tensor], stats: Mapping[str, Any] | None = None
) -> dict[str, Steps]:
    """Returns the steps of each weight by its name; weights without a rule are left out.

    Args:
        recipe: its rules.
        found: the weights of a model.
        value: gives a weight's present value; called for rules that decide about their weights together only.
        stats: what calibration collected, by name.

    Raises:
        MethodError: if such a decision stands behind another step, or can't be made; names the rule.
    """
    steps: dict[str, Steps] = {}
    for number, rule in enumerate(recipe.rules):
        own = [weight for weight in found if recipe.rule_for(weight) is rule]
        steps |= dict.fromkeys((weight.name for weight in own), rule.steps)
        if any(step.together for step in rule.steps[1:]):
            raise MethodError(f"rule[{number}]: what ranks the weights of a rule together must be its first step")
        if not rule.steps or not rule.steps[0].together:
            continue
        try:
            heads = rule.steps[0].allot({weight.name: value(weight).detach() for weight in own}, stats or {})
        except LilliputError as error:
            raise type(error)(f"rule[{number}]: {error}") from None
        steps |= {name: (head, *rule.steps[1:]) for name, head in heads.items()}
    return steps
