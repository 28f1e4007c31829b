"""Conformance of steps in training and in the file: a rule's steps, attached, packed, written and read."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.packed import Packed, leaves, pack_steps, unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.file.artifact import Artifact
from lilliput.file.read import loads
from lilliput.file.write import dumps, size
from lilliput.testing.calibrated import stats_for
from lilliput.testing.spread import gaussian, same, settings_of, tried, weights
from lilliput.train.attach import attach, attached, packed_weights

TOLERANCE = 1e-5
"""For factors, relative to the largest weight: a product of matrices may be rounded otherwise."""


class Weights(nn.Module):
    """A model of nothing but weights: each is a parameter, the output their sum weighted by fixed numbers."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self) -> Tensor:
        """Returns sum_i a_i w_i over all weights, in float64."""
        total = torch.zeros((), dtype=torch.float64)
        for name in self.names():
            weight = getattr(self, name).double()
            total = total + (weight * gaussian(*weight.shape, seed=99).double()).sum()
        return total

    def names(self) -> list[str]:
        """Returns the names of the weights, attached or not."""
        hidden = getattr(self, "parametrizations", {})
        return sorted({*self._parameters, *hidden})


def recipe_of(steps: tuple[Any, ...]) -> Recipe:
    """Returns the recipe that does these steps to every parameter, vectors too."""
    return Recipe((Rule(steps=steps), Rule(layers="vector", steps=steps)))


def model_of(steps: tuple[Any, ...], values: Mapping[str, Tensor]) -> tuple[Weights, int]:
    """Returns a model of those weights that the steps claim, the steps attached, and how many they are."""
    # A step with a course of its own must be able to take the weight at its start, too.
    ends = (steps, tuple(step.at(0.0) for step in steps))
    claimed = {
        name: value
        for name, value in values.items()
        if all(
            tried(partial(pack_steps, value, now, stats_for(now, value)), f"{now} on {name} {tuple(value.shape)}")
            is not None
            for now in dict.fromkeys(ends)
        )
    }
    model = Weights({name: value.clone() for name, value in claimed.items()})
    if claimed:
        rules = recipe_of(steps).rules
        ranks = {value.ndim >= 2 for value in claimed.values()}
        stats = {name: found for name, value in claimed.items() if (found := stats_for(steps, value)) is not None}
        attach(model, Recipe(tuple(rule for rule, rank in zip(rules, (True, False)) if rank in ranks)), stats=stats)
    return model, len(claimed)


def check_steps(steps: tuple[Any, ...], values: Mapping[str, Tensor], sized: bool = True) -> int:
    """Checks law 1 (what training saw is what the file holds) and law 2 (the declared size is the written size).

    Args:
        steps: weight methods.
        values: weights; those that the steps refuse by a MethodError are passed over.
        sized: check law 2 too, which codes everything once more.

    Returns:
        How many weights were claimed, and so went through attach, pack, write and read.

    Raises:
        AssertionError: names the steps, the weight and what is wrong.
    """
    model, count = model_of(steps, values)
    if not count:
        return 0
    model.eval()
    packed = packed_weights(model)
    artifact = Artifact(packed, recipe_of(steps))
    data = dumps(artifact)
    assert not sized or size(artifact) == len(data), f"{steps}: declared {size(artifact)} bytes, written {len(data)}"
    back = loads(data)
    assert back.recipe == artifact.recipe, f"{steps}: the recipe read is another"
    with torch.no_grad():
        for name, held in packed.items():
            what = f"{steps} on {name} {tuple(values[name].shape)}"
            assert isinstance(held, Packed), f"{what}: attached, but not packed"
            _same_leaves(held, back.weights[name], what)
            _same_value(getattr(model, name), back.weights[name], what)
    return count


def _same_leaves(held: Packed | Tensor, read: Packed | Tensor, what: str) -> None:
    own, other = dict(leaves(held)), dict(leaves(read))
    assert own.keys() == other.keys(), f"{what}: parts {own.keys()} were written, {other.keys()} read"
    for part, tensor in own.items():
        assert same(tensor, other[part]), f"{what}: part {part} was written as {tensor}, read as {other[part]}"


def _same_value(seen: Tensor, packed: Packed | Tensor, what: str) -> None:
    held = unpack(packed)
    if _factorized(packed) and seen.numel():
        assert seen.dtype == held.dtype, f"{what}: {seen.dtype} in training, {held.dtype} in the file"
        limit = TOLERANCE * float(seen.double().abs().max())
        assert float((seen.double() - held.double()).abs().max()) <= limit, f"{what}: the file holds another weight"
        return
    assert same(seen, held), f"{what}: training saw {seen}, the file holds {held}"


def _factorized(packed: Packed | Tensor) -> bool:
    if isinstance(packed, Tensor):
        return False
    return packed.method.startswith("factorize/") or any(map(_factorized, packed.parts.values()))


def saved_as_seen(cls: Any) -> None:
    """Laws 1 and 2 for each setting alone, on every weight."""
    for setting in settings_of(cls):
        assert check_steps((setting,), weights()), f"{setting} claims no weight"


def trains(cls: Any) -> None:
    """Training changes what is trained, stays lawful, survives `state_dict` and `deepcopy`."""
    for setting in settings_of(cls):
        assert check_training((setting,), weights()), f"{setting} claims no weight"


def check_training(steps: tuple[Any, ...], values: Mapping[str, Tensor]) -> int:
    """Checks the training contract of steps.

    The forward pass is differentiable and the gradient reaches every parameter that is trained; after a step of an
    optimizer law 1 holds; a deepcopy and a freshly attached model with the same `state_dict` compute the same.

    Returns:
        How many weights were claimed.
    """
    model, count = model_of(steps, {name: value for name, value in values.items() if value.numel()})
    if not count:
        return 0
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    model().backward()
    for name, parameter in trained.items():
        assert parameter.grad is not None, f"{steps}: no gradient reaches {name}"
        assert bool(torch.isfinite(parameter.grad).all()), f"{steps}: the gradient of {name} isn't finite"
    frozen = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for parameter in trained.values():
            if parameter.numel():
                # Clamped, since the largest weight of the spread is as large as can be.
                top = float(parameter.abs().max())
                parameter.sub_(0.01 * top * parameter.grad.sign()).clamp_(-top, top)  # type: ignore[union-attr]
    moved = [name for name, parameter in trained.items() if not same(parameter, before[name])]
    nothing_left = all(not parameter.grad.any() for parameter in trained.values())  # type: ignore[union-attr]
    assert moved or nothing_left, f"{steps}: training changed nothing"
    for name, buffer in model.named_buffers():
        assert same(buffer, frozen[name]), f"{steps}: training changed the frozen {name}"
    _same_after_training(model, steps, values)
    return count


def _same_after_training(model: Weights, steps: tuple[Any, ...], values: Mapping[str, Tensor]) -> None:
    model.eval()  # in training mode a method may draw at random
    copied = copy.deepcopy(model)
    fresh, _ = model_of(steps, {name: values[name] for name in model.names()})
    fresh.load_state_dict(model.state_dict())
    fresh.eval()
    with torch.no_grad():
        others = {weight.name: (weight, node) for weight, node in attached(fresh)}
        for weight, node in attached(model):
            twin, other = others[weight.name]
            seen = getattr(model, weight.name)
            what = f"{steps} on {weight.name} after training"
            assert same(getattr(copied, weight.name), seen), f"{what}: a deepcopy computes another weight"
            assert same(getattr(fresh, weight.name), seen), f"{what}: state_dict gives another weight"
            held = node.packed(weight.parameter)
            _same_value(seen, held, what)
            _same_leaves(held, other.packed(twin.parameter), what)


def compositions(first: Any, second: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the pairs of the first and last (coarsest and finest) settings of two methods.

    Where the first opens no part to a next step one pair will do: the second has nothing to pack.
    """
    ends = (ends_of(first), ends_of(second)) if first.into else (ends_of(first)[:1], ends_of(second)[:1])
    yield from itertools.product(*ends)


def ends_of(cls: Any) -> tuple[Any, ...]:
    """Returns the first and the last setting of a method, or the only one."""
    settings = settings_of(cls)
    return settings[:1] if len(settings) == 1 else (settings[0], settings[-1])


def composes(first: Any, second: Any, fewest: int = 2) -> int:
    """Checks law 1 for two methods, `first` then `second`: for each pair of their first and last settings.

    Each method's settings between the ends run alone only: with all pairs of all methods' settings the time would grow
    with the square of their number. The first pair runs on all weights of the spread, with law 2 and training, where
    the first step opens parts to the second; every other on `fewest` weights in turn.

    Returns:
        How many weights were claimed by both, all pairs counted: 0 means that the two don't compose at all, which
        is lawful, but for the caller to judge.
    """
    claimed = 0
    spread = list(weights().items())
    at = 0
    for number, steps in enumerate(compositions(first, second)):
        whole = number == 0 and bool(first.into)
        chosen = spread if whole else [spread[(at + i) % len(spread)] for i in range(fewest)]
        at += fewest
        ran = check_steps(steps, dict(chosen), sized=whole)
        if whole and ran:
            check_training(steps, dict(chosen))
        claimed += ran
    return claimed


LAWS = (saved_as_seen, trains)


def check(cls: Any, others: Iterable[Any] = ()) -> None:
    """Runs all laws of a weight method's training, alone and composed with other methods before and after it.

    Raises:
        AssertionError: names the setting, the weight and what is wrong; also if the method composes with none.
    """
    for law in LAWS:
        law(cls)
    ran = [composes(first, second) for other in others for first, second in ((cls, other), (other, cls))]
    assert not ran or any(ran), f"{cls.__name__} composes with no other method"
