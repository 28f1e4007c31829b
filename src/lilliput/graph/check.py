"""Checks a node against its operator's schema: names, arity, types, ranges and references to earlier nodes only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lilliput.core.errors import FileError
from lilliput.graph.ir import InputRef, Node, NodeRef, TensorRef
from lilliput.graph.operators import Operator, Parameter, operators

# What a node gives: one kind, or one for each result of a tuple.
Kind = str | tuple[str, ...]

LONGEST_LIST = 65_536
LONGEST_STRING = 256
# Here a plain number, or a size, may stand for a tensor of no dimensions.
_TENSOR_OR_NUMBER = frozenset({"other", "value", "exponent"})


def check_node(node: Node, kinds: Sequence[Kind]) -> Kind:
    """Checks one node.

    Args:
        node: the node, whose index is `len(kinds)`.
        kinds: what each earlier node gives.

    Returns:
        What this node gives.

    Raises:
        FileError: an unknown operator, or an argument that its schema doesn't take.
    """
    where = f"graph: node {len(kinds)}"
    operator = operators().get(node.operator)
    if operator is None:
        raise FileError(f"{where}: operator {node.operator[:80]!r} is not on the list of allowed ones")
    where = f"{where} ({node.operator})"
    bound = bind(operator, node.args, node.kwargs, where)
    if node.operator == "item":
        return _item_kind(bound, kinds, where)
    for parameter in operator.parameters:
        if parameter.name in bound and not _fits(bound[parameter.name], parameter, kinds):
            raise FileError(f"{where}: argument {parameter.name!r} is no {_describe(parameter)}")
    refuse = _FORBIDDEN.get(node.operator)
    if refuse is not None and refuse(bound):
        raise FileError(f"{where}: asks for training behaviour, a graph is for inference")
    return operator.results[0] if len(operator.results) == 1 else operator.results


def bind(operator: Operator, args: Sequence[Any], kwargs: Mapping[str, Any], where: str = "graph") -> dict[str, Any]:
    """Gives each argument its name.

    Args:
        operator: whose arguments they are.
        args: positional arguments.
        kwargs: keyword arguments.
        where: begins the message of an error.

    Returns:
        The arguments given, by name; defaults are not filled in.

    Raises:
        FileError: too many, unknown, doubled or missing arguments.
    """
    positional = operator.positional
    if len(args) > len(positional):
        raise FileError(f"{where}: takes {len(positional)} positional arguments, not {len(args)}")
    bound = {parameter.name: value for parameter, value in zip(positional, args, strict=False)}
    names = {parameter.name for parameter in operator.parameters}
    for name, value in kwargs.items():
        if name not in names or name in bound:
            raise FileError(f"{where}: argument {name[:80]!r} is unknown or given twice")
        bound[name] = value
    for parameter in operator.parameters:
        if parameter.required and parameter.name not in bound:
            raise FileError(f"{where}: argument {parameter.name!r} is missing")
    return bound


def _item_kind(bound: Mapping[str, Any], kinds: Sequence[Kind], where: str) -> str:
    values, index = bound["values"], bound["index"]
    if not isinstance(values, NodeRef) or not 0 <= values.index < len(kinds):
        raise FileError(f"{where}: its first argument is no earlier node")
    kind = kinds[values.index]
    if type(index) is not int or index < 0 or (kind == "tensors" and index >= LONGEST_LIST):
        raise FileError(f"{where}: its index is no whole number within range")
    if kind == "tensors":
        return "tensor"
    if isinstance(kind, str) or index >= len(kind):
        raise FileError(f"{where}: takes result {index} of a node that has none such")
    return kind[index]


def _describe(parameter: Parameter) -> str:
    return f"list of {parameter.kind}s" if parameter.many else parameter.kind


def _fits(value: Any, parameter: Parameter, kinds: Sequence[Kind]) -> bool:
    if value is None:
        return parameter.optional or (parameter.kind == "absent" and not parameter.required)
    if not parameter.many:
        return _fits_one(value, parameter, kinds)
    if isinstance(value, tuple):
        return len(value) <= LONGEST_LIST and all(
            (item is None and parameter.optional_items) or _fits_one(item, parameter, kinds) for item in value
        )
    if parameter.kind == "tensor":
        return isinstance(value, NodeRef) and _kind_of(value, kinds) == "tensors"
    return parameter.size is not None and _fits_one(value, parameter, kinds)


def _fits_one(value: Any, parameter: Parameter, kinds: Sequence[Kind]) -> bool:
    kind = parameter.kind
    if isinstance(value, NodeRef | InputRef | TensorRef):
        given = _kind_of(value, kinds)
        if kind == "tensor":
            return given == "tensor" or (given in ("int", "number") and parameter.name in _TENSOR_OR_NUMBER)
        return given == "int" if kind == "int" else kind in ("float", "number") and given in ("int", "number")
    if kind == "tensor":
        return parameter.name in _TENSOR_OR_NUMBER and _LITERALS["number"](value)
    return kind in _LITERALS and _LITERALS[kind](value)


def _kind_of(ref: NodeRef | InputRef | TensorRef, kinds: Sequence[Kind]) -> Kind | None:
    if not isinstance(ref, NodeRef):
        return "tensor"
    return kinds[ref.index] if 0 <= ref.index < len(kinds) else None


def is_int(value: object) -> bool:
    """Says whether a value is a 64-bit whole number and no bool.

    Args:
        value: anything.
    """
    return type(value) is int and -(2**63) <= value < 2**63


_LITERALS: dict[str, Callable[[Any], bool]] = {
    "int": is_int,
    "float": lambda value: type(value) is float or is_int(value),
    "bool": lambda value: type(value) is bool,
    "number": lambda value: type(value) in (float, bool) or is_int(value),
    "str": lambda value: type(value) is str and len(value) <= LONGEST_STRING,
    "dtype": lambda value: isinstance(value, torch.dtype),
}


def _trains_recurrent(bound: Mapping[str, Any]) -> bool:
    return bound["train"] is not False


# Operators that would draw random numbers, or write into their buffers, when told to train.
_FORBIDDEN: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "aten.batch_norm.default": lambda bound: bound["training"] and bound["running_mean"] is not None,
    "aten.instance_norm.default": lambda bound: bound["use_input_stats"] and bound["running_mean"] is not None,
    "aten.scaled_dot_product_attention.default": lambda bound: bool(bound.get("dropout_p", 0.0)),
    "aten.lstm.input": _trains_recurrent,
    "aten.gru.input": _trains_recurrent,
    "aten.rnn_tanh.input": _trains_recurrent,
    "aten.rnn_relu.input": _trains_recurrent,
}
