"""Small whole numbers as bytes: as many digits of one base to a word as fit."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def word(base: int) -> tuple[int, int]:
    """Returns (bytes of a word, digits in it) with the fewest bits a digit; the shorter word of equals.

    >>> word(3), word(9), word(256)
    ((1, 5), (2, 5), (1, 1))
    """
    best = (8, 1)
    for width in (1, 2, 4, 8):
        most, count = 2 ** min(8 * width, 63), 0
        while base ** (count + 1) <= most:
            count += 1
        if count and width * best[1] <= best[0] * count and (best == (8, 1) or width * best[1] < best[0] * count):
            best = width, count
    return best


def packed_length(count: int, base: int) -> int:
    """Returns the bytes that so many digits take."""
    width, digits = word(base)
    return -(-count // digits) * width


def pack_digits(digits: Tensor, base: int) -> Tensor:
    """Returns digits as bytes, uint8.

    Args:
        digits: integers 0 .. base - 1, one axis.
        base: 2 to 2^16.

    >>> pack_digits(torch.tensor([2, 1, 0, 0, 0, 2]), 3)
    tensor([5, 2], dtype=torch.uint8)
    """
    width, count = word(base)
    rows = torch.nn.functional.pad(digits.long(), (0, -len(digits) % count)).reshape(-1, count)
    value = torch.zeros(len(rows), dtype=torch.int64, device=digits.device)
    for place in reversed(range(count)):
        value = value * base + rows[:, place]
    return value.view(torch.uint8).reshape(-1, 8)[:, :width].flatten()


def unpack_digits(data: Tensor, base: int, count: int) -> Tensor:
    """Returns the first `count` digits of what `pack_digits` gave, int64.

    >>> unpack_digits(torch.tensor([5, 2], dtype=torch.uint8), 3, 6).tolist()
    [2, 1, 0, 0, 0, 2]
    """
    width, digits = word(base)
    wide = torch.nn.functional.pad(data.reshape(-1, width), (0, 8 - width)).contiguous()
    value = wide.view(torch.int64).flatten()
    out = torch.empty(len(value), digits, dtype=torch.int64, device=data.device)
    for place in range(digits):
        out[:, place] = value % base
        value = value.div(base, rounding_mode="floor")
    return out.flatten()[:count]
