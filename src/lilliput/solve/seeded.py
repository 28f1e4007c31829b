"""Sparse ternary tensors that a seed makes, by whole-number arithmetic alone: the same everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from lilliput.solve.hashing import xxh32


def ternary(shape: tuple[int, ...], seed: int, kept: int, again: bool = False) -> Tensor:
    """Returns a tensor of -1, 0 and 1, of which so many are not 0.

    Of n elements, row-major, those are kept whose XXH32 of (number, 0) is smallest, of equals the first; or, with
    `again`, the j-th that is drawn is the XXH32 of (j, 0) modulo n, and a later one overrules an earlier. The j-th,
    by rising hashes or as drawn, is 1 if the XXH32 of (j, 1) is 2^31 or more, else -1.

    Args:
        shape: any.
        seed: 0 to 2^32 - 1.
        kept: how many are drawn, at most n.
        again: draw with replacement, so that fewer may be kept.

    Returns:
        int8, of the shape.

    Raises:
        ValueError: if `kept` is negative or above n.

    >>> ternary((2, 3), seed=1, kept=3).tolist()
    [[0, -1, 0], [-1, -1, 0]]
    """
    size = torch.Size(shape).numel()
    if not 0 <= kept <= size:
        raise ValueError(f"{kept} elements of {size} can't be kept")
    result = torch.zeros(size, dtype=torch.int8)
    drawn = torch.arange(kept)
    zero, one = torch.tensor(0), torch.tensor(1)
    signs = torch.where(xxh32(drawn, one, seed) >= 2**31, 1, -1).to(torch.int8)
    if not again:
        result[xxh32(torch.arange(size), zero, seed).argsort(stable=True)[:kept]] = signs
        return result.reshape(shape)
    places = xxh32(drawn, zero, seed) % max(size, 1)
    # Which of several equal places torch fills last is not said: each place takes the largest j that draws it.
    last = torch.full((size,), -1).scatter_reduce(0, places, drawn, "amax")
    result[last >= 0] = signs[last[last >= 0]]
    return result.reshape(shape)
