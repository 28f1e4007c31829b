"""One pass over data -> `Stats`: each weight gets what the methods of its rule need, and nothing else is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.checks import is_finite
from lilliput.core.data import call, inputs_of, target_of
from lilliput.core.errors import DataError
from lilliput.core.layers import Weight, weights
from lilliput.core.stats import Stats
from lilliput.observe.call import Call, Layer, Observer
from lilliput.observe.inputs import GramOf, MomentsOf

OF_INPUTS: dict[str, Callable[[], Observer]] = {"inputs": MomentsOf, "gram": GramOf}
"""Needs that a layer's inputs meet, and who collects them."""


@dataclass
class _Watch:
    """Who watches the calls of the layers that hold one weight."""

    weight: Weight
    observers: dict[str, Observer] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def stats(self) -> Stats:
        values = {need: observer.result() for need, observer in self.observers.items()}
        unseen = {need: "no batch of the data reached this layer" for need, value in values.items() if value is None}
        return Stats({k: v for k, v in values.items() if v is not None}, self.missing | unseen)


def collect(model: nn.Module, needs: Mapping[str, frozenset[str]], data: Iterable[Any]) -> dict[str, Stats]:
    """Runs a model once over data, in eval mode and without gradients, and collects what is asked for.

    Memory: what is asked for, and one batch. The model is as before afterwards: hooks are removed and the mode of
    every module is restored.

    Args:
        model: any module.
        needs: what to collect, by the weight's name: `"inputs"` (`observe.inputs.Moments`), `"gram"`
            (`observe.inputs.Gram`).
        data: any iterable of inputs, (inputs, targets) or dicts, or one tensor; gone through once.

    Returns:
        The stats by the weight's name. A need that a weight can't have is named in `Stats.missing`.

    Raises:
        DataError: no batch, a name that is no weight's, an unknown need, or activations that aren't finite.

    >>> net = nn.Linear(2, 1)
    >>> stats = collect(net, {"weight": frozenset({"gram"})}, [torch.tensor([[1.0, 2.0]])])
    >>> stats["weight"].values["gram"].matrix
    tensor([[[1., 2.],
             [2., 4.]]])
    """
    watches = _watches(model, needs)
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        number = -1
        batch: Any = None

        def saw(watch: _Watch, path: str, seen: Call) -> None:
            if not is_finite(seen.input):
                raise DataError(f"batch {number}: what goes into layer '{path}' is NaN or infinite; check the data")
            for observer in watch.observers.values():
                observer.see(seen)

        for watch in watches.values():
            for path in dict.fromkeys(path for path, _ in watch.weight.owners) if watch.observers else ():
                stack.enter_context(_watched(model, path, watch, saw, lambda: target_of(batch)))
        for number, batch in enumerate(_batches(data)):  # noqa: B007
            with torch.no_grad():
                call(model, inputs_of(batch))
    if number < 0:
        raise DataError("the data is empty: give an iterable with at least one batch")
    return {name: watch.stats() for name, watch in watches.items()}


def _watches(model: nn.Module, needs: Mapping[str, frozenset[str]]) -> dict[str, _Watch]:
    found = {weight.name: weight for weight in weights(model)}
    watches = {}
    for name, wanted in needs.items():
        if name not in found:
            raise DataError(f"no weight '{name}' in the model to collect anything for")
        watch = watches[name] = _Watch(found[name])
        modules = [model.get_submodule(path) for path, _ in watch.weight.owners]
        for need in sorted(wanted):
            if need not in OF_INPUTS:
                raise DataError(f"nothing is known of a need '{need}'; there is {', '.join(OF_INPUTS)}")
            if watch.weight.kind == "vector" or not all(isinstance(module, Layer) for module in modules):
                watch.missing[need] = (
                    f"needs '{need}', which only linear and convolution layers have, not this {watch.weight.kind}; "
                    "restrict the rule by match or layers"
                )
                continue
            watch.observers[need] = OF_INPUTS[need]()
    return watches


@contextmanager
def _watched(
    model: nn.Module, path: str, watch: _Watch, saw: Callable[[_Watch, str, Call], None], target: Callable[[], Any]
) -> Iterator[None]:
    """Lets a watch see every call of one layer for as long as the context lasts."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        value = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(value, Tensor) and isinstance(output, Tensor):
            with torch.no_grad():
                saw(watch, path, Call(module, value.detach(), output.detach(), target()))

    handle = model.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode, and every module back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _batches(data: Any) -> Iterator[Any]:
    if isinstance(data, Tensor):
        return iter([data])
    try:
        return iter(data)
    except TypeError:
        raise DataError(f"data must be an iterable of batches, not {type(data).__name__}") from None
