"""From a budget of latency to a recipe: bits and channels by what layers take in the engine that runs them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from lilliput.core.budget import Budget
from lilliput.core.data import call, inputs_of, target_of, with_example
from lilliput.core.errors import BudgetError, MethodError
from lilliput.core.recipe import Recipe, Rule
from lilliput.file.artifact import Artifact
from lilliput.observe.divergence import divergence, measure_for
from lilliput.observe.sensitivity import Progress, take
from lilliput.observe.sensitivity import whole as apart
from lilliput.quantize.activations.uniform import Uniform as Activations
from lilliput.quantize.uniform import Uniform
from lilliput.run.clock import race
from lilliput.run.examples import example_inputs
from lilliput.run.layers import layer_seconds
from lilliput.run.load import fill, load
from lilliput.run.measure import arguments, reference
from lilliput.run.native import Native
from lilliput.search.channels import Channels
from lilliput.search.cost import file_bytes
from lilliput.search.metric import Evaluate, score
from lilliput.search.narrow import chosen
from lilliput.search.plan import title
from lilliput.solve.knapsack import knapsack
from lilliput.solve.widths import Limit
from lilliput.train.attach import plain_copy, tensor_bytes
from lilliput.train.compress import compress
from lilliput.train.cut import again
from lilliput.train.quantizer import place

TRIES = 6
"""Times that a plan is made again because the network, measured as a whole, isn't as fast as its layers promised."""

MARGIN = 0.97
"""Plans are made for this part of the budget, so that the next measurement doesn't exceed it by chance."""

BITS = (Uniform(bits=8),)
LEVELS = Activations(bits=8)


@dataclass(frozen=True, eq=False)
class Timed:
    """A recipe, what it makes, and how fast that is.

    Attributes:
        recipe: the recipe.
        artifact: what `compress` makes by it.
        part: its latency beside the uncompressed network's, both measured in turns.
        seconds: its latency.
        loss: of its outputs, see `observe.divergence`.
        engine: the way in which `native` runs it.
    """

    recipe: Recipe
    artifact: Artifact
    part: float
    seconds: float
    loss: float
    engine: str


@dataclass(eq=False)
class Latency:
    """A plan for a latency.

    Attributes:
        model: the user's; it is not changed.
        data: what layers are calibrated on; goes through more than once.
        example: one input.
        evaluate: the metric, or None.
        options: see `search.plan.Options`.
        progress: told of it.
    """

    model: nn.Module
    data: Any
    example: Any
    evaluate: Evaluate | None
    options: Any
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.batches = take(self.data, self.options.batches)

    @cached_property
    def whole(self) -> Artifact:
        """The network as it is, in a file."""
        made = compress(self.model, Recipe(), example=self.example)
        if made.graph is None:
            raise BudgetError(f"latency is measured on the network's graph: {dict(made.facts['notes']).get('graph')}")
        return made

    @cached_property
    def given(self) -> Any:
        """The input that is timed: a batch of one."""
        assert self.whole.graph is not None
        return arguments(self.whole.graph, example_inputs(self.whole.graph))

    @cached_property
    def yardstick(self) -> nn.Module:
        """The uncompressed network in ONNX Runtime, or in plain torch."""
        return reference(self.whole)

    def timed(self, recipe: Recipe) -> Timed:
        """Makes what a recipe says, and measures it beside the uncompressed network."""
        artifact = compress(self.model, recipe, self.data, example=self.example)
        net: Any = load(artifact, engine=Native())
        with torch.no_grad():
            calls = {"whole": self.of(self.yardstick), "net": self.of(net)}
            seconds = race(calls, seconds=1.0)
        made = fill(plain_copy(self.model), artifact).eval()
        loss = apart(plain_copy(self.model).eval(), made, self.batches, measure=self.options.measure)
        if self.progress:
            self.progress("measuring networks", 1, 0)
        return Timed(recipe, artifact, seconds["net"] / seconds["whole"], seconds["net"], loss, net.chosen.way)

    def of(self, net: nn.Module) -> Callable[[], Any]:
        """A call of a network on the input that is timed."""
        return lambda: call(net, self.given)

    def limit(self, budget: Budget) -> float:
        """The budget as a part of the uncompressed network's latency."""
        with torch.no_grad():
            own = race({"whole": self.of(self.yardstick)}, seconds=0.5)["whole"]
        return budget.seconds(own) / own

    def plan(self, budget: Budget, name: str) -> Timed:
        """Finds the recipe of the least loss that is fast enough.

        Raises:
            BudgetError: none was found; names the fastest.
        """
        limit = self.limit(budget)
        plain = self.timed(Recipe(name=name))
        if plain.part <= limit:
            return plain
        coded = self.timed(Recipe((Rule(steps=BITS, activations=LEVELS, why="8 bits"),), name))
        if coded.part <= limit:
            best = self.floats(coded, limit)
        else:
            # Of a small network the levels take longer than they save.
            best = self.narrowed(coded if coded.part < MARGIN * plain.part else plain, limit)
        self.check(best, budget)
        return best

    def check(self, made: Timed, budget: Budget) -> None:
        """Sees to what else the budget asks for."""
        if budget.size is not None:
            size, most = file_bytes(made.artifact), budget.bytes(tensor_bytes(self.model))
            if size > most:
                raise BudgetError(f"the plan that is fast enough takes {size:,} bytes, more than {most:,}")
        if budget.max_drop is not None and self.evaluate is not None:
            after = score(self.evaluate, fill(plain_copy(self.model), made.artifact))
            lost = score(self.evaluate, self.model) - after
            if lost > budget.max_drop:
                raise BudgetError(
                    f"the best plan found at {made.part:.2f} of the latency loses {lost:.4g}, more than "
                    f"{budget.max_drop:g}; allow that, or train after the cut"
                )

    def floats(self, coded: Timed, limit: float) -> Timed:
        """Gives layers that suffer most by 8 bits their floats back, as far as the budget allows.

        Which those are is a knapsack: a layer's loss, with it alone in 8 bits, against the time that floats take more,
        both as measured.
        """
        assert coded.artifact.graph is not None
        names = [name for name in coded.artifact.weights if name.rpartition(".")[0] in coded.artifact.quantizers]
        names = [name for name in names if name.rpartition(".")[2] == "weight"]
        losses = self.losses(coded.artifact, names)
        taken = layer_seconds(coded.artifact, coded.engine)
        longer = [max(taken[name].floats - taken[name].packed, 0.0) if name in taken else 0.0 for name in names]
        unit, best, share = coded.seconds / coded.part, coded, 1.0
        for _ in range(TRIES - 1):
            room = (limit * MARGIN - coded.part) * unit * share
            if room <= 0 or not names:
                break
            found = knapsack([[0.0, cost] for cost in longer], [[loss, 0.0] for loss in losses], room)
            kept = [] if found is None else [name for name, place in zip(names, found.chosen) if place]
            if not kept:
                break
            whys = dict(zip(names, losses))
            rules = tuple(Rule(_literal(name), why=f"floats: 8 bits cost {whys[name]:.2g}") for name in kept)
            tried = self.timed(replace(coded.recipe, rules=(*rules, *coded.recipe.rules)))
            if tried.part <= limit and tried.loss < best.loss:
                return tried
            share /= 2
        return best

    def losses(self, artifact: Artifact, names: Sequence[str]) -> list[float]:
        """What 8 bits of one layer alone, weight and input, do to the outputs."""
        # The weights in which BatchNorm is folded, and no quantizers.
        floats = fill(plain_copy(self.model), self.whole).eval()
        parameters, totals = dict(floats.named_parameters()), [0.0] * len(names)
        with torch.no_grad():
            for batch in self.batches:
                inputs = inputs_of(batch)
                wanted = call(floats, inputs)
                how = self.options.measure or measure_for(wanted, target_of(batch))
                for number, name in enumerate(names):
                    path = name.rpartition(".")[0]
                    before = parameters[name].data
                    parameters[name].data = artifact.weight(name)
                    place(floats, {path: artifact.quantizers[path]})
                    totals[number] += divergence(wanted, call(floats, inputs), how)
                    _remove(floats, path)
                    parameters[name].data = before
                    if self.progress:
                        self.progress("measuring layers", number + 1, len(names))
        return [total / len(self.batches) for total in totals]

    def narrowed(self, base: Timed, limit: float) -> Timed:
        """Cuts channels besides 8 bits, or alone: a layer's time, as measured, goes with the product of its widths."""
        options = self.options
        channels = Channels.of(self.model, self.example, self.data, options.criterion, options.multiple)
        channels.batches, channels.trials, channels.progress = self.batches, options.trials, self.progress
        taken = {name: each.packed for name, each in layer_seconds(base.artifact, base.engine).items()}
        bound, nearest, best = self.cost(channels, taken, base), base, None
        asked = limit * MARGIN
        for _ in range(TRIES):
            found = chosen(channels, [replace(bound, limit=asked * base.seconds / base.part)], None)
            place_ = tuple(len(item.removals) - 1 for item in channels.items) if found is None else found
            rules = channels.rules(place_, channels.losses(tuple([0] * len(channels.items))))
            try:
                tried = self.timed(replace(base.recipe, cuts=rules))
            except MethodError:
                # So narrow that nothing but zeros reach a layer, whose quantizer has no scale then.
                asked *= 1.25
                continue
            nearest = min(nearest, tried, key=lambda one: one.part)
            if tried.part <= limit and (best is None or tried.loss < best.loss):
                best = tried
            if found is None or (best is not None and best.part > 0.9 * limit):
                break
            # What is cut saves less than it promised, or more.
            asked = min(max(asked * limit * MARGIN / tried.part, asked / 2), asked * 1.5)
        if best is None:
            raise BudgetError(
                f"no network of {limit:.2f} times the latency was found; the fastest takes {nearest.part:.2f} times "
                f"({nearest.seconds * 1e3:.3g} ms)"
            )
        return best

    def cost(self, channels: Channels, taken: Mapping[str, float], base: Timed) -> Limit:
        """The latency of the network by the widths of its layers; what is no layer's stays."""
        numbers = {name: seconds / channels.analysis.tensors[name].numel() for name, seconds in taken.items()}
        total = sum(taken.values())
        # Alone, layers take longer than among others: part of what goes from one to the next stays in registers.
        scale = min(1.0, 0.95 * base.seconds / max(total, 1e-12))
        bound = channels.weighed({name: number * scale for name, number in numbers.items()}, base.seconds)
        return replace(bound, rest=base.seconds - bound.cost(channels.removed()) + bound.rest)


def _remove(model: nn.Module, path: str) -> None:
    from lilliput.train.quantizer import remove

    remove(model.get_submodule(path))


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def planned(
    model: nn.Module,
    budget: Budget,
    given: tuple[Any, Any],
    evaluate: Evaluate | None,
    how: tuple[Any, Progress | None],
) -> Recipe:
    """Returns the recipe that meets a budget of latency, for `native` with this number of threads and a batch of one.

    If weights and activations of 8 bits are fast enough, the layers that lose most by them keep floats as far as there
    is time; if not, channels are cut besides, each layer counted by the time that it takes. The whole network is
    measured beside the uncompressed one in ONNX Runtime before the recipe is given back.

    Args:
        model: the user's; it is not changed.
        budget: its latency, and what it asks for besides.
        given: data and example, as for `search.plan.plan`.
        evaluate: the metric, or None.
        how: options and progress of `search.plan.plan`.

    Raises:
        BudgetError: it can't be met; names the fastest network that was found.
    """
    data, example = given
    if data is None:
        raise BudgetError("a budget of latency puts activations in 8 bits, which are calibrated: give data")
    if budget.counts or budget.energy is not None or budget.activations is not None:
        words = "a latency, and MACs, parameters, energy or bits, are two ways to say what layers may take: give one"
        raise BudgetError(words)
    if budget.max_drop is not None and evaluate is None:
        raise BudgetError(f"max_drop = {budget.max_drop} can't be checked without evaluate(model) -> float")
    data, example = with_example(again(data), example)
    return Latency(model, data, example, evaluate, *how).plan(budget, title(budget)).recipe
