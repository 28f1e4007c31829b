"""Channels that pruning left without input or output are removed from what will be written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.cut import Cut
from lilliput.core.errors import ModelError, NotWorthwhile
from lilliput.core.layers import weights
from lilliput.core.packed import Packed, pack_steps, take
from lilliput.core.recipe import Recipe
from lilliput.graph.cut import Cuts, apply_cuts
from lilliput.graph.dead import find_dead


def shrink(
    work: nn.Module, packed: dict[str, Packed | Tensor], recipe: Recipe, example: Any
) -> tuple[tuple[Cut, ...], list[str]]:
    """Cuts dead channels out of a plain model and of its packed weights, both in place (Han et al. 2015).

    Outputs stay what they were, but for the order of floating-point sums: what a channel without input gave is in the
    next layer's bias now. Weights that stay keep exactly their packed values.

    Args:
        work: the model with its unpacked weights.
        packed: its parameters and buffers by name.
        recipe: by which biases that changed are packed again.
        example: an input of the model.

    Returns:
        The cuts, none if nothing is dead, and what was removed or kept and why, a line each.
    """
    if not _has_empty_channel(work):
        return (), []
    try:
        cuts = find_dead(work, example)
        smaller = _cut(packed, cuts)
    except (ModelError, NotWorthwhile) as reason:
        return (), [f"dead channels kept: {reason}"]
    rules = {weight.name: recipe.rule_for(weight) for weight in weights(work)}
    if cuts.cuts:
        for name, value in cuts.values.items():
            rule = rules.get(name)
            smaller[name] = pack_steps(value, rule.steps) if rule is not None else value
        apply_cuts(work, cuts)
        packed.update(smaller)
    return cuts.cuts, list(cuts.lines)


def _has_empty_channel(model: nn.Module) -> bool:
    """Whether some weight has an output or an input channel of zeros; most models have none, and need no search."""
    for weight in weights(model):
        value = weight.parameter.detach()
        if value.ndim < 2 or not value.numel():
            continue
        live = value != 0
        if not bool(live.flatten(1).any(1).all() and live.transpose(0, 1).flatten(1).any(1).all()):
            return True
    return False


def _cut(packed: dict[str, Packed | Tensor], cuts: Cuts) -> dict[str, Packed | Tensor]:
    smaller: dict[str, Packed | Tensor] = {}
    for cut in cuts.cuts:
        whole = smaller.get(cut.parameter, packed[cut.parameter])
        smaller[cut.parameter] = take(whole, cut.axis, torch.tensor(cut.kept))
    return smaller
