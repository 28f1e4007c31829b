"""A recipe's passes over the whole network, before its weights are packed and afterwards."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.activations import Quantized
from lilliput.core.errors import DataError, ModelError
from lilliput.core.layers import weights
from lilliput.core.method import path_of
from lilliput.core.packed import Packed, unpack
from lilliput.core.recipe import Recipe
from lilliput.graph.trace import eval_mode, trace
from lilliput.train.quantizer import place


def run_before(model: nn.Module, recipe: Recipe, given: tuple[Any, Any], notes: dict[str, str]) -> bool:
    """Carries out the passes that come before packing, in place.

    Args:
        model: plain; a copy of the user's.
        recipe: what to do.
        given: data and an example.
        notes: takes a line for each pass.

    Returns:
        Whether there was one.

    Raises:
        DataError: one needs data and there is none.
    """
    return _run(model, recipe, given, notes, None)


def run_after(
    model: nn.Module, recipe: Recipe, given: tuple[Any, Any], notes: dict[str, str], reference: nn.Module
) -> bool:
    """Carries out the passes that come after packing, in place.

    Args:
        model: with packed weights and quantizers; or attached.
        recipe: what to do.
        given: data and an example.
        notes: takes a line for each pass.
        reference: the plain network before that.

    Returns:
        Whether there was one.

    Raises:
        DataError: one needs data and there is none.
    """
    return _run(model, recipe, given, notes, reference)


def _run(
    model: nn.Module, recipe: Recipe, given: tuple[Any, Any], notes: dict[str, str], reference: nn.Module | None
) -> bool:
    data, example = given
    passes = [one for one in recipe.passes if (one.when == "after") == (reference is not None)]
    if not passes:
        return False
    for one in passes:
        if one.needs_data and data is None:
            raise DataError(f"{path_of(one)} needs data: give data=, batches of inputs to calibrate on")
    if example is None:
        raise DataError(
            f"{path_of(passes[0])} needs an example to follow the network's channels: give data= or example="
        )
    try:
        graph, _ = trace(model if reference is None else reference, example, compare=False)
    except ModelError as error:
        notes.update({f"pass {path_of(one)}": f"not done: {error}" for one in passes})
        return False
    with eval_mode(model), torch.no_grad():
        for one in passes:
            notes[f"pass {path_of(one)}"] = "; ".join(one.rewrite(model, graph, data, reference))
    return True


def quantized_copy(
    model: nn.Module, packed: Mapping[str, Packed | Tensor], inputs: Mapping[str, Quantized]
) -> nn.Module:
    """Returns a copy of a plain model with packed weights and quantizers.

    Args:
        model: plain.
        packed: its weights.
        inputs: quantizers by the layer's path.
    """
    made = copy.deepcopy(model)
    with torch.no_grad():
        for weight in weights(made):
            weight.parameter.copy_(unpack(packed[weight.name]))
    place(made, inputs)
    return made


def moved(source: nn.Module, target: nn.Module) -> list[str]:
    """Copies the parameters that differ from one model to another of the same class; returns their names.

    Args:
        source: where they come from.
        target: may have something attached.
    """
    names = []
    wanted = {weight.name: weight.parameter for weight in weights(source)}
    with torch.no_grad():
        for weight in weights(target):
            if not torch.equal(weight.parameter, wanted[weight.name]):
                weight.parameter.copy_(wanted[weight.name])
                names.append(weight.name)
    return names
