"""Tables of rules: which function writes which operators of our graph for an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lilliput.core.errors import ModelError

F = TypeVar("F", bound=Callable[..., Any])


class Unsupported(ModelError):
    """An operator, or a setting of one, that has no counterpart."""


def rules(table: dict[str, F]) -> Callable[..., Callable[[F], F]]:
    """Returns a decorator that makes a function the rule of some operators.

    A name without an overload means its `default`; `item` and what begins with `sym.` are named as they are.

    Args:
        table: that the rules go to, by the operator's full name.

    >>> table: dict[str, Callable[[], None]] = {}
    >>> @rules(table)("relu", "add.Tensor", "item")
    ... def write() -> None: ...
    >>> list(table)
    ['aten.relu.default', 'aten.add.Tensor', 'item']
    """

    def named(*names: str) -> Callable[[F], F]:
        def register(function: F) -> F:
            for name in names:
                whole = name == "item" or name.startswith("sym.")
                table[name if whole else f"aten.{name}{'' if '.' in name else '.default'}"] = function
            return function

        return register

    return named
