"""Two INT8 products in one DSP48E2: packing, correction, and how many may be added up (Xilinx WP486)."""

from __future__ import annotations

import torch
from torch import Tensor

from lilliput.core.errors import DeviceError

SHIFT = 18
"""Bits of the lower product's field."""


def multiply(high: Tensor, low: Tensor, shared: Tensor) -> Tensor:
    """Returns what the 27 x 18 multiplier gives: ((high << 18) + low) * shared, both products in one number.

    Args:
        high: signed 8-bit integers.
        low: likewise, of the same shape.
        shared: the operand of both, 8 bits.

    Returns:
        int64, to be added up in the 48-bit accumulator and taken apart by `split`.

    >>> split(multiply(torch.tensor(5), torch.tensor(-7), torch.tensor(3)))
    (tensor(15), tensor(-21))
    """
    return ((high.long() << SHIFT) + low.long()) * shared.long()


def split(product: Tensor) -> tuple[Tensor, Tensor]:
    """Takes a sum of packed products apart: the upper field lacks 1 wherever the lower is negative.

    Args:
        product: int64 sums of `multiply`, of no more terms than `limit` allows.

    Returns:
        Sums of the high and of the low operand's products.
    """
    half = 1 << (SHIFT - 1)
    low = ((product & ((1 << SHIFT) - 1)) ^ half) - half
    return (product >> SHIFT) + (low < 0).long(), low


def limit(one: tuple[int, int], other: tuple[int, int], bits: int = SHIFT) -> int:
    """Returns how many products may be added up before the lower field could overflow.

    Args:
        one: smallest and largest value of an operand.
        other: of the other operand.
        bits: of the field, signed.

    Raises:
        DeviceError: a range is empty.

    >>> limit((-128, 127), (-128, 127)), limit((-127, 127), (-128, 127)), limit((-128, 127), (0, 255))
    (7, 8, 4)
    """
    if one[0] > one[1] or other[0] > other[1]:
        raise DeviceError(f"empty ranges of operands: {one}, {other}")
    ends = [a * b for a in one for b in other]
    largest, half = max(ends), 1 << (bits - 1)
    smallest = min(ends)
    counts = [(half - 1) // largest if largest > 0 else None, half // -smallest if smallest < 0 else None]
    found = [count for count in counts if count is not None]
    return min(found) if found else 1 << 30


def dot(high: Tensor, low: Tensor, shared: Tensor, terms: int = 7) -> tuple[Tensor, Tensor]:
    """Returns two dot products with the same vector, draining the accumulator after so many terms.

    With 7 terms, 7 multipliers do 14 products, and one more adder drains them: 14 / 8 = 1.75 times the work.

    Args:
        high: (..., n), signed 8-bit.
        low: likewise.
        shared: (n,), signed 8-bit.
        terms: between drains; at most what `limit` says.

    >>> dot(torch.tensor([1, 2]), torch.tensor([3, -4]), torch.tensor([5, 6]))
    (tensor(17), tensor(-9))
    """
    products = multiply(high, low, shared)
    sums = [split(part.sum(-1)) for part in torch.split(products, terms, -1)]
    return torch.stack([h for h, _ in sums]).sum(0), torch.stack([x for _, x in sums]).sum(0)
