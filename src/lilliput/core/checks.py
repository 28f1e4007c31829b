"""Checks of weights and settings that every method makes in the same words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lilliput.core.errors import MethodError


def check_weight(weight: Tensor, method: str) -> None:
    """Raises MethodError unless the weight is floating-point and finite.

    Args:
        weight: any shape.
        method: for the message.
    """
    if not weight.dtype.is_floating_point:
        raise MethodError(f"{method}: takes floating-point weights, not {weight.dtype}")
    if not is_finite(weight):
        bad = int((~torch.isfinite(weight)).sum())
        raise MethodError(f"{method}: {bad} of {weight.numel()} weights are NaN or infinite; repair the model first")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; takes no memory, where `torch.isfinite` takes the tensor's own again.

    >>> is_finite(torch.tensor([1.0, float("nan")])), is_finite(torch.empty(0))
    (False, True)
    """
    return not tensor.numel() or all(math.isfinite(float(end)) for end in tensor.aminmax())


def check_range(method: str, name: str, value: float, low: float, high: float, open_high: bool = False) -> None:
    """Raises MethodError unless low <= value <= high (or < high)."""
    if not (low <= value < high if open_high else low <= value <= high):
        raise MethodError(f"{method}: {name} = {value} is outside {low} .. {high}{' (exclusive)' if open_high else ''}")
