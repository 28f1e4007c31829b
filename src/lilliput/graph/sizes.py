"""Sizes that the user's modules keep as attributes (heads, split sizes, widths), found by their values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import nn

from lilliput.core.cut import Resize
from lilliput.graph.atoms import Label
from lilliput.graph.flow import Axes
from lilliput.graph.groups import Analysis, Group
from lilliput.graph.rewrite import Gone, left

# Attributes that commonly hold a width or a count of what is cut.
_NAMES = re.compile(
    r"head|dim|channel|feature|hidden|width|embed|plane|inner|split|d_model|all_head_size|n_state|d_ff|d_inner|"
    r"filters|groups|neurons|units|nb|^c\d*$|^n$|size$"
)
_NEVER = re.compile(
    r"kernel|stride|window|patch|pad|dilation|image|resolution|head_size|head_dim|shift|seq|layer|scale|max_"
)
_PARENTS = 3


def labels_by_class(analysis: Analysis) -> dict[int, list[Label]]:
    """Lists, for each class of atoms, the labels in which it occurs.

    Args:
        analysis: of a model.
    """
    seen: dict[int, Label] = {}

    def add(value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                add(item)
        elif isinstance(value, Axes):
            seen.update({id(label): label for label in value.labels if label is not None})

    for value in [*analysis.flow.values, *analysis.flow.parameters.values()]:
        add(value)
    found: dict[int, list[Label]] = {}
    for label in seen.values():
        for root in np.unique(analysis.classes.root[label]):
            found.setdefault(int(root), []).append(label)
    return found


def resizes(model: nn.Module, group: Group, labels: Iterable[Label], gone: Gone, boldness: int) -> list[Resize]:
    """Guesses which attributes must follow when a group loses channels; a forward pass will tell.

    Args:
        model: before any cut.
        group: which group.
        labels: those in which its atoms occur.
        gone: for each atom whether it is removed.
        boldness: 0: none; 1: attributes whose names speak of a width or count; 2: all that have the value.

    Returns:
        The changes.
    """
    if not boldness:
        return []
    pairs: dict[int, int] = {}
    for label in labels:
        pairs.setdefault(len(label), left(label, len(label), gone))
    found = []
    for path in _holders(group):
        module = model.get_submodule(path)
        if type(module).__module__.startswith("torch.nn") or type(module).__name__ == "Conv1D":
            continue
        for name, value in vars(module).items():
            if name.startswith("_") or name == "training" or not _speaks(name, boldness):
                continue
            change = _change(path, name, value, pairs)
            if change is not None:
                found.append(change)
    return found


def _speaks(name: str, boldness: int) -> bool:
    return boldness > 1 or bool(_NAMES.search(name) and not _NEVER.search(name))


def _holders(group: Group) -> Sequence[str]:
    paths: dict[str, None] = {}
    for member in group.members:
        path = member.parameter.rpartition(".")[0]
        for _ in range(_PARENTS):
            paths[path] = None
            path = path.rpartition(".")[0]
    return list(paths)


def _change(path: str, name: str, value: Any, pairs: dict[int, int]) -> Resize | None:
    many = value if isinstance(value, list | tuple) else (value,)
    if not many or len(many) > 64 or any(type(item) is not int for item in many):
        return None
    old = tuple(many)
    new = tuple(pairs.get(item, item) if item > 1 else item for item in old)
    return Resize(path, name, old, new) if new != old else None
