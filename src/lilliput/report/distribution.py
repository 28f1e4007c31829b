"""How a weight's values are spread: a small histogram, the part of zeros, and the kurtosis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 32
"""Bars of a histogram."""
REACH = 5.0
"""A histogram reaches to the largest magnitude, but no further than so many standard deviations."""


@dataclass(frozen=True)
class Distribution:
    """The values of one weight.

    Attributes:
        limit: the histogram covers -limit .. limit; what lies outside is counted in the first and last bar.
        counts: how many values other than zero lie in each of the `BINS` bars.
        zeros: part of the values that are exactly zero, 0 to 1.
        deviation: standard deviation.
        kurtosis: E[(w - mean)^4] / deviation^4, 3 for a normal distribution; None where all values are equal.
    """

    limit: float
    counts: tuple[int, ...]
    zeros: float
    deviation: float
    kurtosis: float | None


def distribution(values: Tensor, limit: float | None = None) -> Distribution | None:
    """Measures how values are spread.

    Args:
        values: any shape, floating point.
        limit: how far the histogram shall reach, so that two can be laid over one another; None: as `reach` says.

    Returns:
        The distribution, or None where there is none: no value, one that isn't finite, or integers.

    >>> spread = distribution(torch.tensor([-1.0, 0.0, 0.0, 1.0]))
    >>> spread.zeros, spread.kurtosis, sum(spread.counts)
    (0.5, 2.0, 2)
    """
    if not values.numel() or not values.dtype.is_floating_point or not bool(torch.isfinite(values).all()):
        return None
    flat = values.detach().flatten().cpu().double()
    limit = reach(flat) if limit is None else limit
    # In units of the largest, so that nothing overflows; rounding leaves a tiny variance where all values are equal.
    peak = float(flat.abs().max()) or 1.0
    centred = (flat - flat.mean()) / peak
    variance = float(centred.square().mean())
    live = flat[flat != 0]
    counts = torch.histc(live.clamp(-limit, limit), BINS, -limit, limit) if limit else torch.zeros(BINS)
    return Distribution(
        limit=limit,
        counts=tuple(int(count) for count in counts.tolist()),
        zeros=1 - live.numel() / flat.numel(),
        deviation=peak * math.sqrt(variance),
        kurtosis=float(centred.pow(4).mean()) / variance**2 if variance > 1e-24 else None,
    )


def reach(values: Tensor) -> float:
    """Returns how far a histogram should reach: min(max|w|, 5 standard deviations around zero)."""
    if not values.numel():
        return 0.0
    flat = values.detach().double()
    return min(float(flat.abs().max()), REACH * math.sqrt(float(flat.square().mean())))
