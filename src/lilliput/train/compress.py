"""`compress` a model at once, without training, and `pack` one that was trained with a recipe attached."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.activations import Quantized
from lilliput.core.allot import Steps, allotted
from lilliput.core.checks import is_finite
from lilliput.core.data import with_example
from lilliput.core.errors import LilliputError, ModelError, NotWorthwhile
from lilliput.core.layers import Weight, weights
from lilliput.core.packed import Packed, map_leaves, pack_steps, unpack
from lilliput.core.recipe import Recipe
from lilliput.file.artifact import Artifact
from lilliput.graph.cut import Cuts, compose, noted_cuts
from lilliput.graph.fold import absorb
from lilliput.graph.fold import fold as fold_batch_norms
from lilliput.graph.ir import Graph
from lilliput.graph.macs import macs
from lilliput.graph.run import bind_example
from lilliput.graph.trace import trace
from lilliput.train.attach import attachment, packed_buffers, packed_weights, plain_copy, tensor_bytes
from lilliput.train.calibrate import calibrated
from lilliput.train.cut import again, cut_by, cut_lines
from lilliput.train.outputs import planned_outputs
from lilliput.train.passes import quantized_copy, run_after, run_before
from lilliput.train.quantizer import place, planned, quantized, remove
from lilliput.train.shrink import shrink

PIECE = 1 << 16
"""Weights that are compared at a time."""


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
        data: any iterable of inputs, (inputs, targets) or dicts; its first element serves as `example`, and what
            methods need (Gram matrices, ...) is collected from all of it, in one pass.
        example: one input (a tensor, tuple, or dict of keywords), which gives the graph its shapes; without data
            and example the file holds no graph.
        fold: fold each BatchNorm into the convolution before it; the file's graph then does without it.
        stats: what `observe.collect` collected, by weight name; isn't collected again, but for what is cut.
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
    data, example = with_example(data, example)
    work = (plain_copy(model) if example is not None or attachment(model) else _sharing_copy(model)).eval()
    check_finite(work)
    before = quantized(model)  # what training, or a file, put there stays unless the recipe says otherwise
    remove(work)
    facts: dict[str, Any] = {"original": tensor_bytes(model)}
    notes: dict[str, str] = {}
    data = again(data) if recipe.rereads else data
    if recipe.cuts:
        # What was collected for the whole weights doesn't fit what is left of them.
        work, stats = cut_by(work, recipe, example, data, stats)[0], None
    if fold and example is not None:
        facts["folded"] = _folded(work, example, notes)
    if run_before(work, recipe, (data, example), notes):
        stats = None  # what was collected is of other weights
    stats = calibrated(work, recipe, data, stats)
    buffers = packed_buffers(work)
    packed, facts["error"] = _all_packed(work, recipe, stats, notes)
    inputs = before | planned(work, recipe, weights(work), stats, notes)
    inputs |= planned_outputs(model, work, recipe, (data, example), notes)
    _corrected(work, recipe, (data, example), (packed, inputs), notes)
    return Draft(work, recipe, {**packed, **buffers}, facts, notes, inputs).finished(example, remove_dead)


def pack(model: nn.Module, *, example: Any = None, remove_dead: bool = True) -> Artifact:
    """Packs a model that was trained with a recipe attached; the model is not changed.

    Args:
        model: a model after `attach`.
        example: one input for the graph; by default the one that `attach` saw.
        remove_dead: cut away channels that pruning left without input or output.

    Returns:
        The artifact: its weights are, bit for bit, those of the attached model in eval mode, but for biases that took
        up what a dead channel gave. Its facts hold no errors, but that it was `trained`: the weights before `attach`
        are gone, and what training moved is no error of the packing. `Report(artifact, original=...)` tells how far
        each weight is from an original.

    Raises:
        ModelError: if nothing is attached, or a weight isn't finite.
    """
    state = attachment(model)
    if state is None:
        raise ModelError("nothing is attached to this model; call attach(model, recipe) first, or compress(...)")
    work = plain_copy(model).eval()
    check_finite(work)
    facts = {"original": state.original, "trained": True}
    draft = Draft(work, state.recipe, packed_weights(model), facts, dict(state.notes), quantized(model))
    return draft.finished(state.example if example is None else example, remove_dead)


def _corrected(
    work: nn.Module, recipe: Recipe, given: tuple[Any, Any], made: tuple[dict[str, Packed | Tensor], Any], notes: Any
) -> None:
    """Carries out the passes that come after packing; the biases that they change are packed anew."""
    packed, inputs = made
    if not any(one.when == "after" for one in recipe.passes):
        return
    after = quantized_copy(work, packed, inputs)
    before = {weight.name: weight.parameter.clone() for weight in weights(after)}
    run_after(after, recipe, given, notes, work)
    for weight in weights(after):
        if not torch.equal(weight.parameter, before[weight.name]):
            rule = recipe.rule_for(weight)
            packed[weight.name] = _packed(weight, rule.steps if rule is not None else (), None, notes)


def _sharing_copy(model: nn.Module) -> nn.Module:
    """Returns a copy whose parameters are the model's own memory, for reading: a large model isn't there twice."""
    parameters = {
        id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters() if type(p) is nn.Parameter
    }
    return copy.deepcopy(model, dict[int, Any](parameters))


def _all_packed(
    work: nn.Module, recipe: Recipe, stats: Mapping[str, Any], notes: dict[str, str]
) -> tuple[dict[str, Packed | Tensor], dict[str, float]]:
    """Every weight packed by its rule, and the relative errors of those that are."""
    packed: dict[str, Packed | Tensor] = {}
    found = weights(work)
    steps = allotted(recipe, found, lambda weight: weight.parameter, stats)
    errors: dict[str, float] = {}
    # The largest first: while it is in memory more than once, few packed weights are there yet.
    for weight in sorted(found, key=lambda weight: -weight.parameter.numel()):
        packed[weight.name] = _packed(weight, steps.get(weight.name, ()), stats.get(weight.name), notes)
        errors |= relative_errors([weight], packed)
    ordered = {weight.name: packed[weight.name] for weight in found}
    return ordered, {weight.name: errors[weight.name] for weight in found if weight.name in errors}


def _packed(weight: Weight, steps: Steps, stats: Any, notes: dict[str, str]) -> Packed | Tensor:
    value = weight.parameter.detach()
    if not steps:
        return value.clone()
    own = value.untyped_storage().data_ptr()
    try:
        packed = pack_steps(value, steps, stats)
        # A method may give back the weight itself, which is the user's.
        return map_leaves(packed, lambda leaf: leaf.clone() if leaf.untyped_storage().data_ptr() == own else leaf)
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
        inputs: how what goes into layers is quantized, by the layer's path.
    """

    work: nn.Module
    recipe: Recipe
    packed: dict[str, Packed | Tensor]
    facts: dict[str, Any]
    notes: dict[str, str]
    inputs: Mapping[str, Quantized]

    def finished(self, example: Any, remove_dead: bool) -> Artifact:
        """Adds cuts, graph, aliases and facts."""
        found = weights(self.work)
        place(self.work, self.inputs)
        if not self.facts.get("trained") and "error" not in self.facts:
            self.facts["error"] = relative_errors(found, self.packed)
        made = noted_cuts(self.work)
        self.notes |= cut_lines(made)
        if example is not None:
            with torch.no_grad():
                for weight in found:
                    weight.parameter.copy_(unpack(self.packed[weight.name]))
        if remove_dead and example is not None:
            dead, lines = shrink(self.work, self.packed, self.recipe, example)
            made = compose(made, Cuts(dead))
            self.notes |= {f"dead channels {number}": line for number, line in enumerate(lines, 1)}
        graph, constants = self._traced(example)
        if made.macs is not None and graph is not None:
            # For one input, if the example holds several.
            each = bind_example(graph, example)[0].shape[0] if graph.open.startswith("batch") else 1
            counts = {"before": made.macs, "after": macs(self.work, example)}
            self.facts["macs"] = {when: count // each for when, count in counts.items()}
        aliases = {alias: weight.name for weight in found for alias in weight.aliases}
        if self.notes:
            self.facts["notes"] = self.notes
        rest = (made.cuts, made.sizes, aliases, self.facts, self.inputs, made.blocks)
        return Artifact(self.packed, self.recipe, graph, constants, *rest)

    def _traced(self, example: Any) -> tuple[Graph | None, dict[str, Tensor]]:
        if example is None:
            self.notes["graph"] = "none: no data and no example was given; load it into your own model"
            return None, {}
        try:
            graph, constants = trace(self.work, example)
        except ModelError as error:
            self.notes["graph"] = f"none: {error}; load it into your own model"
            return None, {}
        # The user's class keeps its folded BatchNorms; the graph runs faster without them.
        return absorb(graph, self.work.state_dict() | constants), constants


def relative_errors(found: list[Weight], packed: Mapping[str, Packed | Tensor]) -> dict[str, float]:
    """Returns |w - unpacked| / |w| in the Frobenius norm for each packed weight, rounded to three digits."""
    result = {}
    for weight in found:
        part = packed[weight.name]
        if isinstance(part, Packed):
            result[weight.name] = float(f"{_relative_error(weight.parameter.detach(), unpack(part)):.3g}")
    return result


def _relative_error(before: Tensor, after: Tensor) -> float:
    """|after - before| / |before|, summed in float64 a piece at a time; |after| where `before` is zero."""
    total = size = 0.0
    for old, new in zip(torch.split(before.reshape(-1), PIECE), torch.split(after.reshape(-1), PIECE), strict=True):
        size += float(old.double().square().sum())
        total += float((new.double() - old.double()).square().sum())
    return math.sqrt(total / (size or 1.0))


def check_finite(model: nn.Module) -> None:
    """Raises ModelError if a parameter holds NaN or infinity; names it."""
    for name, parameter in model.named_parameters():
        if parameter.dtype.is_floating_point and not is_finite(parameter.detach()):
            bad = int((~torch.isfinite(parameter)).sum())
            raise ModelError(
                f"{name}: {bad} of {parameter.numel()} weights are NaN or infinite; repair the model first"
            )
