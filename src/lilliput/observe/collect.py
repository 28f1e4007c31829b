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
from lilliput.core.errors import DataError, LilliputError
from lilliput.core.layers import Weight, weights
from lilliput.core.stats import Stats
from lilliput.observe.call import Call, Layer, Observer
from lilliput.observe.correlation import CorrelationOf
from lilliput.observe.cost import Loss, cost
from lilliput.observe.follow import Follow
from lilliput.observe.gradients import CurvatureOf, EvaluateOf, GradientsOf, HessianOf, ModelObserver
from lilliput.observe.inputs import GramOf, MomentsOf, SamplesOf
from lilliput.observe.outputs import OutputsOf, PeaksOf, PooledOf, TaylorOf
from lilliput.observe.ranges import HistogramOf, RangeOf
from lilliput.observe.sources import SourcesOf

OF_LAYERS: dict[str, Callable[[], Observer]] = {
    "inputs": MomentsOf,
    "gram": GramOf,
    "samples": SamplesOf,
    "correlation": CorrelationOf,
}
"""Needs that a layer's inputs and outputs meet, and who collects them."""

OF_INPUTS: dict[str, Callable[[], RangeOf | HistogramOf]] = {"range": RangeOf, "histogram": HistogramOf}
"""Needs that what goes into a module meets, whatever the module does, and before a quantizer in front of it."""

OF_ACTIVATIONS: dict[str, Callable[[], Observer]] = {
    "outputs": OutputsOf,
    "pooled": PooledOf,
    "peaks": PeaksOf,
    "taylor": TaylorOf,
}
"""Needs that the output of the activation function after a layer meets; the layer's own where none follows."""

OF_MODELS: dict[str, Callable[[Mapping[str, nn.Parameter]], ModelObserver]] = {
    "gradient": GradientsOf,
    "curvature": CurvatureOf,
    "hessian": HessianOf,
    "evaluate": EvaluateOf,
    "source": SourcesOf,
}
"""Needs that the whole model meets, for weights of every kind."""


@dataclass
class _Watch:
    """Who watches the calls of the layers that hold one weight."""

    weight: Weight
    layers: dict[str, Observer] = field(default_factory=dict)
    activations: dict[str, Observer] = field(default_factory=dict)
    inputs: dict[str, RangeOf | HistogramOf] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def stats(self, whole: Mapping[str, Any]) -> Stats:
        values: dict[str, Any] = {need: observer.result() for need, observer in self.inputs.items()}
        values |= {need: observer.result() for need, observer in {**self.layers, **self.activations}.items()}
        values.update(whole)
        unseen = {need: "no batch of the data reached this layer" for need, value in values.items() if value is None}
        if "hessian" in unseen:
            unseen["hessian"] = "its whole Hessian would be too large; take prune/obc"
        return Stats({k: v for k, v in values.items() if v is not None}, self.missing | unseen)


def collect(
    model: nn.Module, needs: Mapping[str, frozenset[str]], data: Iterable[Any], *, loss: Loss | None = None
) -> dict[str, Stats]:
    """Runs a model once over data, in eval mode, and collects what is asked for.

    Memory: what is asked for, and one batch. The model is as before afterwards: hooks are removed, the mode of every
    module, `requires_grad` and `grad` of every parameter are what they were.

    Args:
        model: any module.
        needs: what to collect, by the weight's name. Of linear and convolution layers `"inputs"`
            (`observe.inputs.Moments`), `"gram"` (`observe.inputs.Gram`), `"samples"` (`observe.inputs.Samples`),
            `"correlation"`, `"outputs"`, `"pooled"`, `"peaks"`, `"taylor"` (`observe.outputs`); of any layer
            `"range"`, `"histogram"` (`observe.ranges`); of any weight `"gradient"`, `"curvature"`, `"hessian"`,
            `"evaluate"` (`observe.gradients`), `"source"` (`observe.sources`).
        data: any iterable of inputs, (inputs, targets) or dicts, or one tensor; gone through once.
        loss: `loss(output, target)`, the mean over the examples, for needs that ask for a cost; see `observe.cost`.

    Returns:
        The stats by the weight's name. A need that a weight can't have is named in `Stats.missing`.

    Raises:
        DataError: no batch, no targets where a cost needs them, a name that is no weight's, an unknown need, or
            activations that aren't finite.

    >>> net = nn.Linear(2, 1)
    >>> stats = collect(net, {"weight": frozenset({"gram"})}, [torch.tensor([[1.0, 2.0]])])
    >>> stats["weight"].values["gram"].matrix
    tensor([[[1., 2.],
             [2., 4.]]])
    """
    watches = _watches(model, needs)
    whole = {
        need: observer({name: watches[name].weight.parameter for name, wanted in needs.items() if need in wanted})
        for need, observer in OF_MODELS.items()
        if any(need in wanted for wanted in needs.values())
    }
    with _Pass(model, watches, loss).running() as one, _requiring(w.weight.parameter for w in watches.values()):
        for batch in _batches(data):
            one.batch(batch)
            for observer in whole.values():
                with torch.enable_grad():
                    observer.see(model, batch, loss)
    if not one.number:
        raise DataError("the data is empty: give an iterable with at least one batch")
    return {
        name: watch.stats({need: whole[need].result(name) for need in needs[name] if need in whole})
        for name, watch in watches.items()
    }


@dataclass
class _Pass:
    """The model's run over the data: hooks note the calls of a batch, observers see them.

    Attributes:
        model: the model.
        watches: by the weight's name.
        loss: see `collect`.
        number: batches that are over.
        current: the batch.
        calls: whose output is of interest; replaced when an activation function takes it.
    """

    model: nn.Module
    watches: Mapping[str, _Watch]
    loss: Loss | None
    number: int = 0
    current: Any = None
    calls: dict[int, tuple[_Watch, Call]] = field(default_factory=dict)

    @contextmanager
    def running(self) -> Iterator[_Pass]:
        """Sets the hooks for as long as the context lasts, the model in eval mode."""
        self.follow = Follow(self._activated)
        with ExitStack() as stack:
            stack.enter_context(_evaluating(self.model))
            for watch in self.watches.values():
                for path in dict.fromkeys(path for path, _ in watch.weight.owners):
                    module = self.model.get_submodule(path)
                    if watch.layers or watch.activations:
                        handle = module.register_forward_hook(self._hook(watch, path), with_kwargs=True)
                        stack.callback(handle.remove)
                    if watch.inputs:
                        # First of all hooks: it sees what a quantizer in front of the layer hasn't touched yet.
                        before = self._before(watch, path)
                        handle = module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
                        stack.callback(handle.remove)
            yield self

    def batch(self, batch: Any) -> None:
        """Runs the model on one batch."""
        self.current = batch
        slopes = any("taylor" in watch.activations for watch in self.watches.values())
        if any(watch.layers or watch.activations or watch.inputs for watch in self.watches.values()):
            with torch.set_grad_enabled(slopes):
                if any(watch.activations for watch in self.watches.values()):
                    with self.follow:
                        output = self._called(batch)
                else:
                    output = self._called(batch)
                found = self._slopes(output) if slopes else {}
            for key, (watch, seen) in self.calls.items():
                final = Call(seen.module, seen.input, seen.output.detach(), seen.target, found.get(key))
                for observer in watch.activations.values():
                    with torch.no_grad():
                        observer.see(final)
            self.calls.clear()
        self.number += 1

    def _called(self, batch: Any) -> Any:
        """Calls the model; what it can't take is an error of the data."""
        inputs = inputs_of(batch)
        try:
            return call(self.model, inputs)
        except LilliputError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            shape = f" of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else ""
            text = " ".join(str(error).split())[:200]
            raise DataError(f"batch {self.number}{shape}: the model can't take it: {text}") from error

    def _slopes(self, output: Any) -> dict[int, Tensor]:
        value = (self.loss or cost)(output, target_of(self.current))
        keys = [key for key, (_, seen) in self.calls.items() if seen.output.requires_grad]
        if not keys or not value.requires_grad:
            return {}
        found = torch.autograd.grad(value, [self.calls[key][1].output for key in keys], allow_unused=True)
        outputs = [self.calls[key][1].output for key in keys]
        return {k: torch.zeros_like(o) if g is None else g for k, g, o in zip(keys, found, outputs)}

    def _activated(self, key: int, value: Tensor) -> None:
        watch, seen = self.calls[key]
        self.calls[key] = watch, Call(seen.module, seen.input, value, seen.target)

    def _before(self, watch: _Watch, path: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(value, Tensor) and value.dtype.is_floating_point:
                self._check(value, path)
                for observer in watch.inputs.values():
                    observer.see(value.detach())

        return hook

    def _check(self, value: Tensor, path: str) -> None:
        if not is_finite(value.detach()):
            raise DataError(f"batch {self.number}: what goes into layer '{path}' is NaN or infinite; check the data")

    def _hook(self, watch: _Watch, path: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(value, Tensor) or not isinstance(output, Tensor):
                return
            self._check(value, path)
            target = target_of(self.current)
            with torch.no_grad():
                for observer in watch.layers.values():
                    observer.see(Call(module, value.detach(), output.detach(), target))
            if watch.activations:
                key = len(self.calls)
                self.calls[key] = watch, Call(module, value.detach(), output, target)
                self.follow.watch(output, key)

        return hook


def _watches(model: nn.Module, needs: Mapping[str, frozenset[str]]) -> dict[str, _Watch]:
    found = {weight.name: weight for weight in weights(model)}
    watches = {}
    for name, wanted in needs.items():
        if name not in found:
            raise DataError(f"no weight '{name}' in the model to collect anything for")
        watch = watches[name] = _Watch(found[name])
        modules = [model.get_submodule(path) for path, _ in watch.weight.owners]
        layer = watch.weight.kind != "vector" and all(isinstance(module, Layer) for module in modules)
        for need in sorted(wanted):
            if need in OF_MODELS:
                continue
            if need in OF_INPUTS:
                watch.inputs[need] = OF_INPUTS[need]()
                continue
            if need not in OF_LAYERS and need not in OF_ACTIVATIONS:
                known = ", ".join((*OF_LAYERS, *OF_ACTIVATIONS, *OF_INPUTS, *OF_MODELS))
                raise DataError(f"nothing is known of a need '{need}'; there is {known}")
            if not layer:
                watch.missing[need] = (
                    f"needs '{need}', which only linear and convolution layers have, not this {watch.weight.kind}; "
                    "restrict the rule by match or layers"
                )
            elif need in OF_LAYERS:
                watch.layers[need] = OF_LAYERS[need]()
            else:
                watch.activations[need] = OF_ACTIVATIONS[need]()
    return watches


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


@contextmanager
def _requiring(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Lets parameters require gradients for as long as the context lasts."""
    fixed = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in fixed:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in fixed:
            parameter.requires_grad_(False)


def _batches(data: Any) -> Iterator[Any]:
    if isinstance(data, Tensor):
        return iter([data])
    try:
        return iter(data)
    except TypeError:
        raise DataError(f"data must be an iterable of batches, not {type(data).__name__}") from None
