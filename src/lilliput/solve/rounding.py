"""Roundings that methods share: ties, random rounding, signs without zero, powers of two."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["half_even", "half_away", "floor", "stochastic"]
"""How a number between two integers is rounded; `stochastic` is floor(x + u) with u uniform, so that E = x."""


def rounded(values: Tensor, how: Rounding = "half_even") -> Tensor:
    """Rounds to integers.

    Args:
        values: floating-point, any shape.
        how: `"half_even"` (as torch and numpy do), `"half_away"` from zero (as C does), `"floor"` or `"stochastic"`,
            which draws from torch's global generator.

    Returns:
        The same dtype and shape.

    >>> x = torch.tensor([0.5, 1.5, -0.5, 2.4])
    >>> rounded(x).tolist(), rounded(x, "half_away").tolist(), rounded(x, "floor").tolist()
    ([0.0, 2.0, -0.0, 2.0], [1.0, 2.0, -1.0, 2.0], [0.0, 1.0, -1.0, 2.0])
    """
    if how == "half_even":
        return torch.round(values)
    if how == "half_away":
        # Not floor(|x| + 1/2), which the addition rounds up for the float just below 1/2.
        whole = values.trunc()
        return whole + torch.sign(values) * ((values - whole).abs() >= 0.5)
    if how == "floor":
        return torch.floor(values)
    return torch.floor(values + torch.rand_like(values))


def signs(values: Tensor) -> Tensor:
    """Returns +1 where a value is 0 or more, else -1, in the values' dtype; `torch.sign(0)` is 0.

    >>> signs(torch.tensor([-2.0, 0.0, 3.0])).tolist()
    [-1.0, 1.0, 1.0]
    """
    return torch.where(values >= 0, 1, -1).to(values.dtype)


def exponent_near(values: Tensor, midpoint: Literal["linear", "log"]) -> Tensor:
    """Returns the exponent e of the power of two next to |value|, int64; for 0 that of the smallest float64.

    * `linear`: 2^e is nearest in value, from 3/2 2^e on it is 2^(e+1) (INQ, ShiftCNN).
    * `log`: e = round(log2 |value|), from sqrt(2) 2^e on it is 2^(e+1) (BinaryNet's AP2, Ristretto).

    >>> x = torch.tensor([1.45, 1.5, 0.9])
    >>> exponent_near(x, "linear").tolist(), exponent_near(x, "log").tolist()
    ([0, 1, 0], [1, 1, 0])
    """
    mantissa, exponent = torch.frexp(values.double().abs())
    tie = 0.75 if midpoint == "linear" else 0.5**0.5
    lowest = torch.full_like(exponent, -1074)
    return torch.where(mantissa > 0, exponent - 1 + (mantissa >= tie), lowest).long()


def ceil_log2(value: float) -> int:
    """Returns ceil(log2 value) without the rounding of a logarithm; value > 0.

    >>> ceil_log2(1.0), ceil_log2(0.9), ceil_log2(1.1), ceil_log2(0.5)
    (0, 0, 1, -1)
    """
    mantissa, exponent = torch.frexp(torch.tensor(value, dtype=torch.float64))
    return int(exponent) - (float(mantissa) == 0.5)
