"""Collects what the methods of a recipe need, once, before anything is packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lilliput.core.layers import weights
from lilliput.core.recipe import Recipe
from lilliput.observe.collect import collect
from lilliput.train.quantizer import unsuited


def calibrated(model: nn.Module, recipe: Recipe, data: Any, stats: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Returns what every weight's steps need: the stats that are given, and those collected from data.

    Args:
        model: whose weights will be packed; unchanged.
        recipe: what will be done.
        data: any iterable of inputs, (inputs, targets) or dicts; None if there is none: then nothing is collected, and
            a step that needs something says so itself. It isn't touched if no step needs anything.
        stats: stats by weight name; what is there isn't collected again.

    Raises:
        DataError: as `observe.collect.collect`.
    """
    given = dict(stats or {})
    wanted: dict[str, frozenset[str]] = {}
    for weight in weights(model):
        rule = recipe.rule_for(weight)
        needs = frozenset[str]().union(*(step.needs for step in rule.steps)) if rule is not None else frozenset()
        quantizer = rule.activations if rule is not None and weight.kind != "vector" else None
        if quantizer is not None and all(unsuited(model, path) is None for path, _ in weight.owners):
            needs |= quantizer.needs
        if needs and weight.name not in given:
            wanted[weight.name] = needs
    if not wanted or data is None:
        return given
    return given | collect(model, wanted, data)
