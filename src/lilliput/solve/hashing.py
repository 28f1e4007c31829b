"""XXH32 of pairs of numbers, in integers that are the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

PRIMES = (2654435761, 2246822519, 3266489917, 668265263, 374761393)
MASK = 0xFFFFFFFF


def xxh32(first: Tensor, second: Tensor, seed: int) -> Tensor:
    """Returns XXH32 (Collet, xxHash specification 0.1.1) of the 8 bytes of two numbers, little-endian.

    Args:
        first: int64, 0 to 2^32 - 1.
        second: likewise, of a shape that broadcasts with it.
        seed: 0 to 2^32 - 1.

    Returns:
        int64, 0 to 2^32 - 1.

    >>> hex(int(xxh32(torch.tensor(0x64636261), torch.tensor(0x68676665), 0)))  # the bytes of "abcdefgh"
    '0xbb3c6bb'
    """
    value = torch.full_like(first + second, (seed + PRIMES[4] + 8) & MASK)
    for word in (first, second):
        value = (value + _times(word, PRIMES[2])) & MASK
        value = _times(((value << 17) | (value >> 15)) & MASK, PRIMES[3])
    value = _times(value ^ (value >> 15), PRIMES[1])
    value = _times(value ^ (value >> 13), PRIMES[2])
    return value ^ (value >> 16)


def _times(value: Tensor, factor: int) -> Tensor:
    """The low 32 bits of a product, by halves of the factor, so that nothing leaves 63 bits."""
    high, low = factor >> 16, factor & 0xFFFF
    return (value * low + (((value * high) & 0xFFFF) << 16)) & MASK
