"""Penalties of an attached recipe: as a term of the loss, or as a proximal step after the optimizer's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lilliput.core.errors import RecipeError
from lilliput.core.layers import weights
from lilliput.core.method import Penalty
from lilliput.train.attach import attached, attachment


def penalized(model: nn.Module) -> Iterator[tuple[nn.Parameter, Penalty]]:
    """Yields every weight that the attached recipe puts a penalty on, as long as the weight itself is trained."""
    state = attachment(model)
    if state is None or all(rule.penalty is None for rule in state.recipe.rules):
        return
    replaced = {weight.name for weight, node in attached(model) if node.trained}
    for weight in weights(model):
        rule = state.recipe.rule_for(weight)
        if rule is None or rule.penalty is None or weight.name in replaced:
            continue
        if weight.parameter.requires_grad:
            yield weight.parameter, rule.penalty


def penalty(model: nn.Module) -> Tensor:
    """Returns the sum of all penalties of the attached recipe, a scalar to be added to a loss.

    By its gradient weights come near zero, but hardly ever to it: cut them off in the end, or call `shrink` after each
    optimizer step instead. Not both: then each pulls.

    >>> from lilliput.core.recipe import Recipe, Rule
    >>> from lilliput.prune.lasso import Lasso
    >>> from lilliput.train.attach import attach
    >>> net = attach(nn.Linear(2, 2, bias=False), Recipe((Rule(penalty=Lasso(strength=0.5)),)))
    >>> float(penalty(net).detach()) == float(0.5 * net.weight.detach().abs().sum())
    True
    """
    terms = [term.penalty(weight) for weight, term in penalized(model)]
    if not terms:
        return torch.zeros((), device=next((p.device for p in model.parameters()), None))
    return torch.stack([term.to(terms[0].device, terms[0].dtype) for term in terms]).sum()


def shrink(model: nn.Module, rate: float) -> None:
    """Takes the proximal step of all penalties of the attached recipe, in place; call it after `optimizer.step()`.

    Args:
        model: a model with a recipe attached.
        rate: the learning rate of that step, >= 0; with Adam, too, the plain rate.

    Raises:
        RecipeError: a negative rate.
    """
    if not rate >= 0:
        raise RecipeError(f"rate = {rate} must not be negative")
    with torch.no_grad():
        for weight, term in penalized(model):
            weight.copy_(term.shrink(weight, rate))
