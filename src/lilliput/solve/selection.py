"""The mask of the largest of many scores, without sorting them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput.solve.buckets import SORTED, Integers, keys

PIECE = 1 << 16
HALF = 16
"""A float32's key is 32 bits: the upper half is counted first, then the lower half where it matters."""


def largest(scores: Tensor, count: int) -> Tensor:
    """Marks the largest scores; of equal ones the first in row-major order.

    Up to 2^18 scores are sorted. More, if float32 on the CPU, are counted by the bits of their keys in two passes,
    which takes a few MB besides the mask, where a sort takes four times the scores' own memory.

    Args:
        scores: floating-point tensor of any shape, no NaN; -inf is the smallest.
        count: how many to mark, 0 to the number of scores.

    Returns:
        Bool tensor of the scores' shape and device, with exactly `count` set.

    >>> largest(torch.tensor([[3.0, 1.0], [2.0, 3.0]]), 3)
    tensor([[ True, False],
            [ True,  True]])
    """
    if scores.numel() <= SORTED or scores.dtype != torch.float32 or scores.device.type != "cpu":
        order = torch.argsort(scores.flatten(), descending=True, stable=True)
        marked = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        marked[order[:count]] = True
        return marked.reshape(scores.shape)
    flat = scores.detach().reshape(-1).numpy()
    if not count:
        return torch.zeros(scores.shape, dtype=torch.bool)
    key, ties = _threshold(flat, count)
    mask = np.empty(len(flat), dtype=np.bool_)
    for start in range(0, len(flat), PIECE):
        part = keys(flat[start : start + PIECE])
        mask[start : start + PIECE] = part > key
        if ties:
            first = np.flatnonzero(part == key)[:ties]
            mask[start + first] = True
            ties -= len(first)
    return torch.from_numpy(mask).reshape(scores.shape)


def picked(values: Tensor, mask: Tensor) -> Tensor:
    """Returns values[mask] in row-major order, piece by piece: a mask picks by indices of eight bytes an axis.

    >>> picked(torch.tensor([[3.0, 1.0], [2.0, 3.0]]), torch.tensor([[True, False], [True, False]]))
    tensor([3., 2.])
    """
    if values.numel() <= SORTED:
        return values[mask]
    if values.requires_grad:
        return values[mask]
    found = torch.empty(int(torch.count_nonzero(mask)), dtype=values.dtype, device=values.device)
    at = 0
    for piece, kept in zip(torch.split(values.reshape(-1), SORTED), torch.split(mask.reshape(-1), SORTED)):
        part = piece[kept]
        found[at : at + len(part)] = part
        at += len(part)
    return found


def _threshold(flat: NDArray[np.float32], count: int) -> tuple[int, int]:
    """Key of the `count`-th largest score, and how many with just this key belong to the largest."""
    high, count = _bin_of((key >> HALF for key in _chunks(flat)), count)
    within = (key[key >> HALF == high] & ((1 << HALF) - 1) for key in _chunks(flat))
    low, count = _bin_of(within, count)
    return (high << HALF) + low, count


def _bin_of(numbers: Iterator[Integers], count: int) -> tuple[int, int]:
    """The number that is the `count`-th largest of many in 0 .. 2^16 - 1, and its place among its equals, from 1."""
    bins = sum((np.bincount(part, minlength=1 << HALF) for part in numbers), np.zeros(1 << HALF, dtype=np.int64))
    above = np.cumsum(bins[::-1])[::-1] - bins
    number = int(np.flatnonzero(above < count)[0])
    return number, count - int(above[number])


def _chunks(flat: NDArray[np.float32]) -> Iterator[Integers]:
    for start in range(0, len(flat), PIECE):
        yield keys(flat[start : start + PIECE])
