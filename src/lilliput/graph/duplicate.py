"""Modules copied as `copy.deepcopy` does, without its detours: most of what a module holds is plain or empty."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import cache
from typing import Any

from torch import nn

_PLAIN = frozenset({int, float, bool, str, type(None)})
_EMPTY = frozenset({OrderedDict, dict, set, list})


def copied(model: nn.Module, known: dict[int, Any]) -> nn.Module:
    """Copies a module with all that it holds.

    Args:
        model: any module.
        known: what stands for objects of these identities, as parameters, instead of a copy; entries are added.

    Returns:
        What `copy.deepcopy(model, known)` gives.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> twin = copied(model, {id(model[0].weight): model[0].weight})
        >>> twin[0].weight is model[0].weight, twin[0].bias is model[0].bias, twin[0] is model[0]
        (True, False, False)
    """
    if id(model) in known:
        return known[id(model)]  # type: ignore[no-any-return]
    kind = type(model)
    # A class is hashable, whatever mypy makes of the hash of its objects.
    if not _usual(kind):  # type: ignore[arg-type]
        return copy.deepcopy(model, known)
    made = nn.Module.__new__(kind)
    known[id(model)] = made
    own: dict[str, Any] = {}
    for name, value in vars(model).items():
        own[name] = _copied(value, known)
    vars(made).update(own)
    return made


@cache
def _usual(kind: Any) -> bool:
    """Whether a class leaves it to `nn.Module` how it is copied; torch's own only add what older files lack."""
    special = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__new__")
    usual = all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in special)
    of_torch = kind.__setstate__.__module__.startswith("torch.nn.modules.") and not issubclass(kind, nn.RNNBase)
    return usual and of_torch and not hasattr(kind, "__slots__")


def _copied(value: Any, known: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _PLAIN or (kind is tuple and all(type(item) in _PLAIN for item in value)):
        return value
    if id(value) in known:
        return known[id(value)]
    if kind in _EMPTY and not value:
        known[id(value)] = made = kind()
        return made
    if kind is dict:
        twin: dict[Any, Any] = {}
        known[id(value)] = twin
        for key, item in value.items():
            twin[key if isinstance(key, str) else copy.deepcopy(key, known)] = _copied(item, known)
        return twin
    if isinstance(value, nn.Module):
        return copied(value, known)
    return copy.deepcopy(value, known)
