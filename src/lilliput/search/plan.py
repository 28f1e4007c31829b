"""`plan`: from a budget to the recipe that meets it at the least loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lilliput.core.budget import Budget
from lilliput.core.data import inputs_of, with_example
from lilliput.core.errors import BudgetError
from lilliput.core.recipe import Recipe
from lilliput.hardware.device import Device
from lilliput.observe.divergence import Measure
from lilliput.observe.sensitivity import Progress, take
from lilliput.search.channels import Channels
from lilliput.search.cost import Frame, file_bytes
from lilliput.search.draft import Draft, Drafter
from lilliput.search.energy import Energies, for_energy
from lilliput.search.losses import OutputErrors, WeightErrors
from lilliput.search.metric import Evaluate, score
from lilliput.search.narrow import narrowed
from lilliput.search.precision import Precision
from lilliput.search.repair import TRIES, Judge, for_drop, for_size
from lilliput.search.space import Space
from lilliput.train.attach import tensor_bytes
from lilliput.train.compress import compress
from lilliput.train.cut import again


@dataclass(frozen=True)
class Options:
    """How much work a plan may take.

    Attributes:
        batches: of the data, on which sensitivity is measured.
        trials: settings measured for each layer on average, at most.
        evaluations: calls of `evaluate` while a drop is searched for, at most.
        measure: `"kl"` for logits, `"squared"` for other outputs, or None to go by the outputs' shape.
        criterion: scores channels where the budget is one of MACs or parameters, a method of `prune/`; None: squares.
        multiple: of which widths are to be there.
    """

    batches: int = 4
    trials: int = 6
    evaluations: int = 12
    measure: Measure | None = None
    criterion: Any = None
    multiple: int = 1


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
    under the bytes that the coder really writes. The plan is written to memory, and with `max_drop` evaluated.

    A budget of MACs or parameters gives a recipe that cuts channels: for each group of channels that go together its
    width, by what narrower ones do to the outputs, measured, and by what they save. It is cut before it is given back,
    and what is left is counted. With a size besides, the smaller network is planned for that.

    A budget of latency chooses bits and channels by what layers take in the engine `native`; see `search.latency`. A
    budget of energy chooses among the same settings as a size, by what their bits and zeros save on a device; see
    `search.energy`.

    A budget of activation bits gives each layer a quantizer of its inputs: the bits of all of them by what fewer bits
    of one do to the outputs, measured, under the mean that is allowed; with a size or a drop besides, weights too.

    Args:
        model: a trained network; it is not changed.
        budget: size, energy, latency, largest drop of the metric, MACs, parameters, or some of them. Drops are without
            any training; with a drop alone the file is made as small as it allows.
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
    if budget.latency is not None:
        return _quick(model, budget, (data, example), evaluate, (options or Options(), progress))
    if budget.activations is not None:
        return _precise(model, budget, data, evaluate, example, options or Options(), progress)
    if not budget.counts:
        return draft(model, budget, data, evaluate, example=example, options=options, progress=progress).recipe
    if budget.energy is not None:
        raise BudgetError("energy and MACs or parameters can't be budgeted at once: plan the cut, then the rest")
    work = _Work(model, evaluate, options or Options(), progress, *with_example(data, example))
    return work.narrow(budget)


def _precise(
    model: nn.Module,
    budget: Budget,
    data: Any,
    evaluate: Evaluate | None,
    example: Any,
    options: Options,
    progress: Progress | None,
) -> Recipe:
    """Plans with a budget of activation bits."""
    if data is None:
        raise BudgetError("a budget of activation bits needs data: bits go by what they do to the outputs")
    if budget.max_drop is not None and evaluate is None:
        raise BudgetError(f"max_drop = {budget.max_drop} can't be checked without evaluate(model) -> float")
    batches = take(data, options.batches)
    example = inputs_of(batches[0]) if example is None else example

    def rest(left: Budget) -> Recipe:
        return plan(model, left, batches, evaluate, example=example, options=options, progress=progress)

    return Precision(model, budget, batches, evaluate, example, rest, title(budget)).recipe(options.measure, progress)


def _quick(
    model: nn.Module, budget: Budget, given: tuple[Any, Any], evaluate: Evaluate | None, how: tuple[Any, Any]
) -> Recipe:
    # Here: that file needs this one.
    from lilliput.search.latency import planned

    return planned(model, budget, given, evaluate, how)


@dataclass(frozen=True, eq=False)
class _Work:
    """A plan that begins with channels.

    Attributes:
        model: the user's.
        evaluate: the metric.
        options: how much work it may take.
        progress: told of it.
        data: as given, its first batch still there.
        example: one input.
    """

    model: nn.Module
    evaluate: Evaluate | None
    options: Options
    progress: Progress | None
    data: Any
    example: Any

    def narrow(self, budget: Budget) -> Recipe:
        """Plans the channels, then all else on the smaller network."""
        if self.example is None:
            raise BudgetError("a budget of MACs or parameters cuts channels: give data or example=")
        if budget.max_drop is not None and self.evaluate is None:
            raise BudgetError(f"max_drop = {budget.max_drop} can't be checked without evaluate(model) -> float")
        data = again(self.data)
        before = None if self.evaluate is None else score(self.evaluate, self.model)
        options = self.options
        channels = Channels.of(self.model, self.example, data, options.criterion, options.multiple)
        channels.batches = take(data, options.batches) if data is not None else ()
        channels.trials, channels.progress = options.trials, self.progress
        found = narrowed(self.model, budget, channels, data, self.evaluate)
        left = budget.max_drop
        if left is not None and before is not None and self.evaluate is not None:
            lost = before - score(self.evaluate, found.model)
            left -= lost
            if left < 0:
                had = ", ".join(f"{count:,} {what}" for what, count in found.counts.items())
                raise BudgetError(
                    f"no cut found loses at most {budget.max_drop:g} without training: the best loses "
                    f"{lost:.4g} at {had}; allow that, or train after the cut"
                )
        recipe = Recipe(name=title(budget), cuts=found.cuts)
        return recipe if budget.size is None else self.size(budget, recipe, found.model, data, left)

    def size(self, budget: Budget, recipe: Recipe, smaller: nn.Module, data: Any, left: float | None) -> Recipe:
        """Adds rules for the weights of the smaller network, until the file that `compress` makes fits."""
        limit = room = budget.bytes(tensor_bytes(self.model))
        for _ in range(TRIES):
            rules = draft(
                smaller,
                Budget(size=room, max_drop=left),
                data,
                self.evaluate,
                example=self.example,
                options=self.options,
                progress=self.progress,
            ).recipe.rules
            whole = replace(recipe, rules=rules)
            taken = file_bytes(compress(self.model, whole, data, example=self.example))
            if taken <= limit:
                return whole
            room -= taken - limit
        raise BudgetError(f"no file of {limit:,} bytes was found; the nearest has {taken:,}")


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
    if budget.size is None and budget.max_drop is None and budget.energy is None:
        raise BudgetError("the budget asks for nothing: give a size, an energy, a max_drop, MACs or parameters")
    if budget.max_drop is not None and evaluate is None:
        raise BudgetError(f"max_drop = {budget.max_drop} can't be checked without evaluate(model) -> float")
    batches = take(data, options.batches) if data is not None else []
    if example is None and batches:
        example = inputs_of(batches[0])
    device = None if budget.energy is None else Device.load(budget.device)
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
    if device is not None:
        return _frugal(drafter, budget, Energies.of(space, device), judge)
    if judge is None or budget.max_drop is None:
        return for_size(drafter, budget.bytes(frame.original))
    limit = None if budget.size is None else budget.bytes(frame.original)
    return for_drop(drafter, judge, budget.max_drop, limit, options.evaluations)


def _frugal(drafter: Drafter, budget: Budget, energies: Energies, judge: Judge | None) -> Draft:
    """A plan under a budget of energy, whose drop is checked."""
    size = None if budget.size is None else budget.bytes(drafter.space.frame.original)
    found = for_energy(drafter, energies, budget.energies(energies.original), size)
    if judge is not None and budget.max_drop is not None and judge.drop(found) > budget.max_drop:
        raise BudgetError(
            f"the best plan of {budget.energy} energy loses {judge.drop(found):.4g}, more than {budget.max_drop:g}: "
            "allow more energy, or train after it"
        )
    return found


def title(budget: Budget) -> str:
    """Names a plan after what was asked for.

    >>> title(Budget(size="1 MB", max_drop=0.005))
    'planned for 1 MB, drop <= 0.005'
    """
    size = f"{budget.size:,} bytes" if isinstance(budget.size, int) else budget.size
    drop = None if budget.max_drop is None else f"drop <= {budget.max_drop:g}"
    counts = [f"{budget.macs} MACs" if budget.macs is not None else None]
    counts += [f"{budget.parameters} parameters" if budget.parameters is not None else None]
    counts += [f"{budget.energy} energy on {budget.device}" if budget.energy is not None else None]
    counts += [f"a latency of {budget.latency}" if budget.latency is not None else None]
    bits = None if budget.activations is None else f"activations of {budget.activations:g} bits"
    return "planned for " + ", ".join(part for part in (*counts, size, drop, bits) if part)
