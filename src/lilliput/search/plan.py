"""`plan`: from a budget to the recipe that meets it at the least loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lilliput.core.budget import Budget
from lilliput.core.data import inputs_of
from lilliput.core.errors import BudgetError
from lilliput.core.recipe import Recipe
from lilliput.observe.divergence import Measure
from lilliput.observe.sensitivity import Progress, take
from lilliput.search.cost import Frame
from lilliput.search.draft import Draft, Drafter
from lilliput.search.losses import OutputErrors, WeightErrors
from lilliput.search.metric import Evaluate, score
from lilliput.search.repair import Judge, for_drop, for_size
from lilliput.search.space import Space


@dataclass(frozen=True)
class Options:
    """How much work a plan may take.

    Attributes:
        batches: of the data, on which sensitivity is measured.
        trials: settings measured for each layer on average, at most.
        evaluations: calls of `evaluate` while a drop is searched for, at most.
        measure: `"kl"` for logits, `"squared"` for other outputs, or None to go by the outputs' shape.
    """

    batches: int = 4
    trials: int = 6
    evaluations: int = 12
    measure: Measure | None = None


def plan(
    model: nn.Module,
    budget: Budget,
    data: Any = None,
    evaluate: Evaluate | None = None,
    *,
    example: Any = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Recipe:
    """Finds the recipe that meets a budget at the least loss.

    For each weight the settings of all methods, and their compositions, that none other beats in bytes and weight
    error; for each of those what it does to the model's outputs; then the exact choice of one a layer (a knapsack)
    under the bytes that the coder really writes. The plan is written to memory, and with `max_drop` evaluated, before
    it is given back.

    Args:
        model: a trained network; it is not changed.
        budget: size, largest drop of the metric, or both. With both the size holds and the drop is checked; with a
            drop alone the file is made as small as the drop allows.
        data: any iterable of inputs, (inputs, targets) or dicts. Without it the plan goes by the weights' own error,
            each relative to its layer's norm, which knows nothing of which layers matter.
        evaluate: the user's metric, `evaluate(model) -> float`, higher is better; needed for `max_drop`.
        example: one input for the graph if there is no data; with neither the file holds no graph, and no BatchNorm
            is folded.
        options: how much work it may take.
        progress: called with the stage, what is done of it and the total.

    Returns:
        A recipe with one rule a layer, each with the reason for its setting.

    Raises:
        BudgetError: it can't be met; names the nearest budget that can.
        DataError: data or metric can't be used.

    >>> recipe = plan(nn.Linear(64, 64), Budget(size="4 kB"))
    >>> [rule.match for rule in recipe.rules]
    ['weight', '*']
    """
    return draft(model, budget, data, evaluate, example=example, options=options, progress=progress).recipe


def draft(
    model: nn.Module,
    budget: Budget,
    data: Any = None,
    evaluate: Evaluate | None = None,
    *,
    example: Any = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Draft:
    """Does what `plan` does, and returns with the recipe its size, predicted and written, and its estimated loss."""
    options = options or Options()
    if budget.size is None and budget.max_drop is None:
        raise BudgetError("the budget asks for nothing: give a size, a max_drop or both")
    if budget.max_drop is not None and evaluate is None:
        raise BudgetError(f"max_drop = {budget.max_drop} can't be checked without evaluate(model) -> float")
    batches = take(data, options.batches) if data is not None else []
    if example is None and batches:
        example = inputs_of(batches[0])
    frame = Frame.of(model, example)
    # Before the long work: a metric that can't be used is found at once.
    judge = None if evaluate is None or budget.max_drop is None else Judge(evaluate, score(evaluate, model), progress)
    space = Space.of(frame, progress)
    losses = (
        OutputErrors(space, batches, options.trials * len(space.items), options.measure, progress)
        if batches
        else WeightErrors(space)
    )
    drafter = Drafter(space, losses, title(budget))
    if judge is None or budget.max_drop is None:
        return for_size(drafter, budget.bytes(frame.original))
    limit = None if budget.size is None else budget.bytes(frame.original)
    return for_drop(drafter, judge, budget.max_drop, limit, options.evaluations)


def title(budget: Budget) -> str:
    """Names a plan after what was asked for.

    >>> title(Budget(size="1 MB", max_drop=0.005))
    'planned for 1 MB, drop <= 0.005'
    """
    size = f"{budget.size:,} bytes" if isinstance(budget.size, int) else budget.size
    drop = None if budget.max_drop is None else f"drop <= {budget.max_drop:g}"
    return "planned for " + ", ".join(part for part in (size, drop) if part)
