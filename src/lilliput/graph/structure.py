"""Nested inputs and outputs (tuples, lists, dicts, dataclasses) taken apart and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lilliput.core.errors import ModelError
from lilliput.graph.ir import Branch, InputRef, NodeRef, Ref, TensorRef, Tree


class Record(dict[str, Any]):
    """What a dataclass or model output becomes: a dict that can also be read by attribute and by position.

    Example:
        >>> record = Record(logits=1, loss=None)
        >>> record.logits, record[0], record["loss"]
        (1, 1, None)
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return dict.__getitem__(self, name)
        raise AttributeError(name)

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        # Positions count what isn't None, as in transformers' model outputs.
        return tuple(value for value in self.values() if value is not None)[key]


def split(value: Any, leaf: Callable[[Any], Ref | None], path: str = "output") -> Tree:
    """Takes a nested value apart.

    Args:
        value: tensors and plain values in tuples, lists, dicts and dataclasses.
        leaf: turns a tensor (or a symbolic number) into a reference; None for what it doesn't know.
        path: where the value stands, for messages.

    Returns:
        Its structure.

    Raises:
        ModelError: a part that is neither a tensor nor a plain value.
    """
    ref = leaf(value)
    if ref is not None or value is None or type(value) in (bool, int, float, str):
        return value if ref is None else ref
    if isinstance(value, tuple | list):
        children = tuple(split(item, leaf, f"{path}[{index}]") for index, item in enumerate(value))
        return Branch("list" if isinstance(value, list) else "tuple", (), children)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        children = tuple(split(item, leaf, f"{path}[{key!r}]") for key, item in value.items())
        return Branch("dict" if type(value) is dict else "record", tuple(value), children)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        children = tuple(split(item, leaf, f"{path}.{name}") for name, item in fields.items())
        return Branch("record", tuple(fields), children)
    raise ModelError(f"{path} is a {type(value).__name__}, which is neither a tensor nor a plain value or container")


def join(tree: Tree, leaf: Callable[[Ref], Any]) -> Any:
    """Puts a nested value together.

    Args:
        tree: its structure.
        leaf: gives the value of a reference.

    Returns:
        The value, with `Record`s for dataclasses.
    """
    if isinstance(tree, Branch):
        children = [join(child, leaf) for child in tree.children]
        if tree.kind in ("dict", "record"):
            items = zip(tree.keys, children)
            return dict(items) if tree.kind == "dict" else Record(items)
        return children if tree.kind == "list" else tuple(children)
    return leaf(tree) if isinstance(tree, NodeRef | InputRef | TensorRef) else tree


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Lists the tensors of a nested value, depth first.

    Args:
        value: as for `split`; other parts are passed over.

    Returns:
        The tensors.
    """
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
