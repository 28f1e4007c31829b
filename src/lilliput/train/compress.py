"""`compress` a model at once, without training, and `pack` one that was trained with a recipe attached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.cut import Cut
from lilliput.core.data import first, inputs_of
from lilliput.core.errors import LilliputError, ModelError, NotWorthwhile
from lilliput.core.layers import Weight, weights
from lilliput.core.packed import Packed, pack_steps, unpack
from lilliput.core.recipe import Recipe
from lilliput.file.artifact import Artifact
from lilliput.graph.fold import fold as fold_batch_norms
from lilliput.graph.ir import Graph
from lilliput.graph.trace import trace
from lilliput.train.attach import attachment, packed_weights, plain_copy
from lilliput.train.shrink import shrink


def compress(
    model: nn.Module,
    recipe: Recipe,
    data: Any = None,
    *,
    example: Any = None,
    fold: bool = True,
    stats: Mapping[str, Any] | None = None,
    remove_dead: bool = True,
) -> Artifact:
    """Compresses a trained model at once.

    Args:
        model: any module; it is not changed.
        recipe: what to do with which weight.
        data: any iterable of inputs or (inputs, targets); its first element serves as `example`.
        example: one input (a tensor, tuple, or dict of keywords), which gives the graph its shapes; without data
            and example the file holds no graph.
        fold: fold each BatchNorm into the convolution before it.
        stats: what `observe` collected, by weight name.
        remove_dead: cut away channels that pruning left without input or output.

    Returns:
        The artifact; `save` writes it.

    Raises:
        RecipeError: if a rule fits no weight.
        MethodError: if a method can't take a weight; names the layer.
        ModelError: if a weight isn't finite.

    >>> artifact = compress(nn.Linear(4, 2), Recipe.preset("int8"))
    >>> artifact.weights["weight"].method
    'quantize/uniform'
    """
    recipe.check(weights(model))
    if example is None and data is not None:
        example = inputs_of(first(data))
    work = plain_copy(model).eval()
    check_finite(work)
    facts: dict[str, Any] = {"original": tensor_bytes(model)}
    notes: dict[str, str] = {}
    if fold and example is not None:
        facts["folded"] = _folded(work, example, notes)
    packed: dict[str, Packed | Tensor] = dict(packed_weights(work))
    for weight in weights(work):
        packed[weight.name] = _packed(weight, recipe, (stats or {}).get(weight.name), notes)
    return Draft(work, recipe, packed, facts, notes).finished(example, remove_dead)


def pack(model: nn.Module, *, example: Any = None, remove_dead: bool = True) -> Artifact:
    """Packs a model that was trained with a recipe attached; the model is not changed.

    Args:
        model: a model after `attach`.
        example: one input for the graph; by default the one that `attach` saw.
        remove_dead: cut away channels that pruning left without input or output.

    Returns:
        The artifact: its weights are, bit for bit, those of the attached model in eval mode, but for biases that took
        up what a dead channel gave.

    Raises:
        ModelError: if nothing is attached, or a weight isn't finite.
    """
    state = attachment(model)
    if state is None:
        raise ModelError("nothing is attached to this model; call attach(model, recipe) first, or compress(...)")
    work = plain_copy(model).eval()
    check_finite(work)
    draft = Draft(work, state.recipe, packed_weights(model), {"original": tensor_bytes(work)}, dict(state.notes))
    return draft.finished(state.example if example is None else example, remove_dead)


def _packed(weight: Weight, recipe: Recipe, stats: Any, notes: dict[str, str]) -> Packed | Tensor:
    value = weight.parameter.detach()
    rule = recipe.rule_for(weight)
    if rule is None or not rule.steps:
        return value.clone()
    try:
        return pack_steps(value, rule.steps, stats)
    except NotWorthwhile as reason:
        notes[weight.name] = str(reason)
        return value.clone()
    except LilliputError as error:
        raise type(error)(f"{weight.name} ({weight.kind}, {tuple(value.shape)}): {error}") from None


def _folded(work: nn.Module, example: Any, notes: dict[str, str]) -> int:
    try:
        return len(fold_batch_norms(work, example))
    except ModelError as error:
        notes["BatchNorm"] = f"not folded: {error}"
        return 0


@dataclass
class Draft:
    """An artifact in the making.

    Attributes:
        work: the plain model; its weights become the unpacked ones.
        recipe: what is done.
        packed: parameters and buffers by name.
        facts: measurements.
        notes: what was left as it is, and why.
    """

    work: nn.Module
    recipe: Recipe
    packed: dict[str, Packed | Tensor]
    facts: dict[str, Any]
    notes: dict[str, str]

    def finished(self, example: Any, remove_dead: bool) -> Artifact:
        """Adds cuts, graph, aliases and facts."""
        found = weights(self.work)
        self.facts["error"] = errors(found, self.packed)
        with torch.no_grad():
            for weight in found:
                weight.parameter.copy_(unpack(self.packed[weight.name]))
        cuts: tuple[Cut, ...] = ()
        if remove_dead and example is not None:
            cuts, lines = shrink(self.work, self.packed, self.recipe, example)
            self.notes |= {f"dead channels {number}": line for number, line in enumerate(lines, 1)}
        graph, constants = self._traced(example)
        aliases = {alias: weight.name for weight in found for alias in weight.aliases}
        if self.notes:
            self.facts["notes"] = self.notes
        return Artifact(self.packed, self.recipe, graph, constants, cuts, aliases, self.facts)

    def _traced(self, example: Any) -> tuple[Graph | None, dict[str, Tensor]]:
        if example is None:
            self.notes["graph"] = "none: no data and no example was given; load it into your own model"
            return None, {}
        try:
            return trace(self.work, example)
        except ModelError as error:
            self.notes["graph"] = f"none: {error}; load it into your own model"
            return None, {}


def errors(found: list[Weight], packed: Mapping[str, Packed | Tensor]) -> dict[str, float]:
    """Returns |w - unpacked| / |w| in the Frobenius norm for each packed weight, rounded to three digits."""
    result = {}
    for weight in found:
        part = packed[weight.name]
        if isinstance(part, Packed):
            before = weight.parameter.detach().double()
            size = float(before.norm())
            result[weight.name] = float(f"{float((unpack(part).double() - before).norm()) / (size or 1):.3g}")
    return result


def check_finite(model: nn.Module) -> None:
    """Raises ModelError if a parameter holds NaN or infinity; names it."""
    for name, parameter in model.named_parameters():
        if parameter.dtype.is_floating_point and not bool(torch.isfinite(parameter).all()):
            bad = int((~torch.isfinite(parameter)).sum())
            raise ModelError(
                f"{name}: {bad} of {parameter.numel()} weights are NaN or infinite; repair the model first"
            )


def tensor_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters and persistent buffers, tied ones once."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
