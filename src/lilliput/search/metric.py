"""The user's metric: called on copies, and its answer checked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lilliput.core.errors import DataError
from lilliput.train.attach import plain_copy

Evaluate = Callable[[nn.Module], float]


def score(evaluate: Evaluate, model: nn.Module) -> float:
    """Calls the user's metric on a copy of a model, and checks what it gives.

    Raises:
        DataError: it raises, or gives no finite number; says which.
    """
    try:
        with torch.no_grad():
            value = evaluate(plain_copy(model).eval())
    except Exception as error:
        text = str(error).partition("\n")[0]
        raise DataError(f"evaluate(model) raised {type(error).__name__}: {text}") from error
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"evaluate(model) gave {type(value).__name__}, not one number") from None
    if not abs(number) < float("inf"):
        raise DataError(f"evaluate(model) gave {number}; it must be a finite number, higher for a better model")
    return number
