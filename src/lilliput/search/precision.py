"""How many bits what goes into each layer takes: mixed precision of activations, by what it does to the outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.activations import Quantized
from lilliput.core.budget import Budget
from lilliput.core.data import call, inputs_of
from lilliput.core.errors import BudgetError, MethodError
from lilliput.core.layers import Weight, weights
from lilliput.core.method import ActivationQuantizer, find
from lilliput.core.recipe import Recipe, Rule
from lilliput.observe.collect import collect
from lilliput.observe.divergence import Measure
from lilliput.observe.sensitivity import Progress, whole
from lilliput.run.load import fill
from lilliput.search.cost import file_bytes
from lilliput.search.metric import Evaluate, score
from lilliput.search.repair import TRIES
from lilliput.solve.knapsack import knapsack
from lilliput.train.attach import plain_copy, tensor_bytes
from lilliput.train.compress import compress
from lilliput.train.quantizer import place, unsuited

OFFERED = (2, 3, 4, 5, 6, 7, 8)
"""Bits that a layer's inputs may take; even ones are measured, the loss of odd ones is the geometric mean beside it."""

BROKEN = 1e6
"""Stands for an infinite loss, to be chosen only where there is no other."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What goes into the layers of one weight.

    Attributes:
        weight: theirs.
        paths: the layers.
        numbers: how many numbers go into them for one batch.
        losses: divergence of the model's outputs, for each of `OFFERED`.
    """

    weight: Weight
    paths: tuple[str, ...]
    numbers: int
    losses: tuple[float, ...]


def quantizer(bits: int) -> ActivationQuantizer:
    """Returns the quantizer of so many bits: levels from zero's side, a static range of least squared error."""
    made: ActivationQuantizer = find("quantize/activations", "uniform")(bits=bits, solver="mse")
    return made


def entries(
    model: nn.Module, batches: Sequence[Any], measure: Measure | None = None, progress: Progress | None = None
) -> list[Entry]:
    """Measures for each layer what fewer bits of its inputs alone do to the model's outputs.

    Args:
        model: in eval mode; unchanged.
        batches: of inputs, (inputs, targets) or dicts; they calibrate and they measure.
        measure: how outputs are compared, see `observe.divergence.measure_for`.
        progress: called after each layer.

    Returns:
        One entry for each weight whose layers can take quantizers and are called with more than zeros.
    """
    model = plain_copy(model).eval().requires_grad_(False)
    found = {
        weight.name: (weight, tuple(path for path, _ in weight.owners))
        for weight in weights(model)
        if weight.kind != "vector" and all(unsuited(model, path) is None for path, _ in weight.owners)
    }
    numbers = _numbers(model, [path for _, paths in found.values() for path in paths], batches[0])
    found = {name: own for name, own in found.items() if sum(numbers[path] for path in own[1])}
    stats = collect(model, dict.fromkeys(found, quantizer(8).needs), list(batches))
    result = []
    for done, (name, (weight, paths)) in enumerate(found.items()):
        losses = {}
        for bits in OFFERED[::2]:
            method, other = quantizer(bits), plain_copy(model)
            try:
                own = Quantized(method, method.observe(stats[name]))
            except MethodError:
                break
            place(other, dict.fromkeys(paths, own))
            loss = whole(model, other, batches, measure=measure)
            losses[bits] = loss if math.isfinite(loss) else BROKEN
        else:
            result.append(Entry(weight, paths, sum(numbers[path] for path in paths), between(losses)))
        if progress:
            progress("measuring activations", done + 1, len(found))
    return result


def between(losses: dict[int, float]) -> tuple[float, ...]:
    """Returns the loss of each of `OFFERED` from those of the even ones, none below one of more bits.

    >>> between({2: 4.0, 4: 1.0, 6: 0.25, 8: 0.5})
    (4.0, 2.0, 1.0, 0.7071067811865476, 0.5, 0.5, 0.5)
    """
    even = {bits: max(loss for other, loss in losses.items() if other >= bits) for bits in losses}
    return tuple(even[b] if b in even else math.sqrt(even[b - 1] * even[b + 1]) for b in OFFERED)


def _numbers(model: nn.Module, paths: Sequence[str], batch: Any) -> dict[str, int]:
    """Counts the numbers that go into layers for one batch, all calls together."""
    count = dict.fromkeys(paths, 0)

    def hook(path: str) -> Callable[..., None]:
        def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(value, Tensor) and value.dtype.is_floating_point:
                count[path] += value.numel()

        return add

    handles = [model.get_submodule(p).register_forward_pre_hook(hook(p), with_kwargs=True) for p in paths]
    try:
        with torch.no_grad():
            call(model, inputs_of(batch))
    finally:
        for handle in handles:
            handle.remove()
    return count


def chosen(found: Sequence[Entry], mean: float) -> dict[str, tuple[int, float]]:
    """Returns bits and loss by weight: of least total loss, the mean over all numbers at most `mean` bits.

    Raises:
        BudgetError: nothing can be quantized, or not so far.
    """
    if not found:
        raise BudgetError("no layer's inputs can be quantized, so that activations can't be planned")
    costs = [[bits * entry.numbers for bits in OFFERED] for entry in found]
    limit = mean * sum(entry.numbers for entry in found)
    solution = knapsack(costs, [entry.losses for entry in found], limit + 0.5)
    if solution is None:
        raise BudgetError(f"activations = {mean:g} bits can't be met; the fewest that are offered are {OFFERED[0]}")
    return {e.weight.name: (OFFERED[at], e.losses[at]) for e, at in zip(found, solution.chosen)}


def joined(recipe: Recipe, found: Sequence[Entry], picks: dict[str, tuple[int, float]]) -> Recipe:
    """Adds the quantizers to a recipe of weights: one rule for each layer that has one, before all others."""
    first = []
    for entry in found:
        bits, loss = picks[entry.weight.name]
        rule = recipe.rule_for(entry.weight) or Rule(why="weights as they are")
        why = f"{rule.why}; inputs in {bits} bits: +{loss:.2g} of divergence"
        name = re.sub(r"([*?[])", r"[\1]", entry.weight.name)
        first.append(replace(rule, match=name, layers="*", skip="none", activations=quantizer(bits), why=why))
    taken = {rule.match for rule in first}
    return replace(recipe, rules=(*first, *(rule for rule in recipe.rules if rule.match not in taken)))


@dataclass(frozen=True, eq=False)
class Precision:
    """A plan with a budget of activation bits.

    Attributes:
        model: the user's.
        budget: with `activations`.
        batches: calibrate and measure.
        evaluate: the metric.
        example: one input.
        rest: plans the weights for what else the budget asks for.
        name: of the recipe.
    """

    model: nn.Module
    budget: Budget
    batches: Sequence[Any]
    evaluate: Evaluate | None
    example: Any
    rest: Callable[[Budget], Recipe]
    name: str

    def recipe(self, measure: Measure | None, progress: Progress | None) -> Recipe:
        """Plans activations, then weights, until the file that `compress` makes fits.

        Raises:
            BudgetError: it can't be met; names the nearest that can.
        """
        budget = self.budget
        assert budget.activations is not None
        found = entries(self.model, self.batches, measure, progress)
        picks = chosen(found, budget.activations)
        # Before the long work on weights: what activations alone lose is no longer theirs to lose.
        allowed = budget.max_drop
        if allowed is not None:
            allowed -= max(self._lost(self._made(joined(Recipe(), found, picks))), 0.0)
        limit = room = None if budget.size is None else budget.bytes(tensor_bytes(self.model))
        for _ in range(TRIES):
            left = replace(budget, size=room, max_drop=allowed, activations=None)
            base = Recipe() if left == Budget(device=left.device) else self.rest(left)
            plan = replace(joined(base, found, picks), name=self.name)
            artifact = self._made(plan)
            taken = file_bytes(artifact)
            if limit is None or room is None or taken <= limit:
                self._lost(artifact)
                return plan
            # A little more than it was too large by: how the recipe's text is coded isn't known before.
            room -= taken - limit + limit // 200
        raise BudgetError(f"no file of {limit:,} bytes was found; the nearest has {taken:,}")

    def _made(self, plan: Recipe) -> Any:
        return compress(self.model, plan, list(self.batches), example=self.example)

    def _lost(self, artifact: Any) -> float:
        """Returns what the metric loses; BudgetError if that is more than may be lost."""
        if self.budget.max_drop is None or self.evaluate is None:
            return 0.0
        lost = score(self.evaluate, self.model) - score(self.evaluate, fill(plain_copy(self.model), artifact))
        if lost > self.budget.max_drop:
            raise BudgetError(
                f"with activations of {self.budget.activations:g} bits in the mean the metric drops by {lost:.4g}, "
                f"{self.budget.max_drop:g} are allowed; allow more bits or a larger drop, or train with the recipe"
            )
        return lost
