"""Quantizers behind layers: what goes into sums, concatenations and pools is put on levels too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.activations import OUT, Quantized
from lilliput.core.checks import is_finite
from lilliput.core.data import call, inputs_of
from lilliput.core.errors import DataError, LilliputError, ModelError
from lilliput.core.layers import weights
from lilliput.core.recipe import Recipe
from lilliput.core.stats import Stats
from lilliput.graph.results import Result, open_results
from lilliput.graph.trace import eval_mode, trace
from lilliput.observe.collect import OF_INPUTS
from lilliput.train.quantizer import GIVES, quantizers


def planned_outputs(
    model: nn.Module, plain: nn.Module, recipe: Recipe, given: tuple[Any, Any], notes: dict[str, str]
) -> dict[str, Quantized]:
    """Returns the quantizers that a recipe asks for behind layers, by the layer's path and `:out`.

    What an activation function behind the layer clips, the quantizer clips itself: its range is that of what is left.

    Args:
        model: one that has the same quantizer already goes on with its numbers.
        plain: the model that the rules see; it may be the same.
        recipe: what to do.
        given: data to calibrate on, which is gone through once, and an example for the graph.
        notes: takes a line if results can't be followed.

    Raises:
        MethodError: calibration saw nothing of a layer, or only zeros; names the layer.
        DataError: what comes out of a layer isn't finite, or there is no data.
    """
    data, example = given
    rules = {weight.name: rule for weight in weights(plain) if (rule := recipe.rule_for(weight)) is not None}
    wanted = {name: rule.outputs for name, rule in rules.items() if rule.outputs is not None}
    if not wanted:
        return {}
    if example is None:
        raise DataError("outputs of layers can't be quantized without data: give data=, or example= for fixed ranges")
    try:
        graph, _ = trace(plain, example, compare=False)
    except ModelError as error:
        notes["outputs"] = f"not quantized: {error}"
        return {}
    inputs = {name for name, rule in rules.items() if rule.activations is not None}
    modules = dict(plain.named_modules(remove_duplicate=False))
    found = [
        (result, method)
        for name, method in wanted.items()
        for result in open_results(graph, {name}, inputs)
        if isinstance(modules.get(result.path), GIVES)
    ]
    present = {path: own for path, _, own in quantizers(model)}
    kept = {r.path + OUT for r, m in found if r.path + OUT in present and present[r.path + OUT].target == m}
    watched = [(r, m) for r, m in found if r.path + OUT not in kept]
    stats = seen_behind(plain, {result: method.needs for result, method in watched}, data)
    planned = {path: Quantized(present[path].target, present[path].numbers) for path in kept}
    return planned | {r.path + OUT: Quantized(m, _observed(r.path, m, stats.get(r))) for r, m in watched}


def _observed(path: str, method: Any, stats: Stats | None) -> dict[str, float]:
    try:
        return dict(method.observe(stats))
    except LilliputError as error:
        raise type(error)(f"{path or 'the model'}: what comes out of it: {error}") from None


def seen_behind(model: nn.Module, needs: Mapping[Result, frozenset[str]], data: Any) -> dict[Result, Stats]:
    """Runs a model over data in eval mode, and collects how the results of layers are spread.

    Args:
        model: any module; unchanged.
        needs: `range` or `histogram`, by the result.
        data: batches; None: nothing is collected.

    Raises:
        DataError: what comes out of a layer isn't finite.
    """
    if data is None or not any(needs.values()):
        return {}
    seen = {result: {need: OF_INPUTS[need]() for need in names} for result, names in needs.items()}

    def hook(result: Result) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, output: Tensor) -> None:
            if not is_finite(output):
                raise DataError(f"what comes out of layer '{result.path}' is NaN or infinite; check the data")
            for observer in seen[result].values():
                observer.see(output.clamp(result.low, result.high))

        return see

    with ExitStack() as stack, eval_mode(model), torch.no_grad():
        for result in needs:
            stack.callback(model.get_submodule(result.path).register_forward_hook(hook(result)).remove)
        for batch in [data] if isinstance(data, Tensor) else data:
            call(model, inputs_of(batch))
    return {
        result: Stats({need: found for need, observer in own.items() if (found := observer.result()) is not None},
                      dict.fromkeys(own, "no batch of the data reached this layer"))
        for result, own in seen.items()
    }  # fmt: skip
