"""What goes into a layer, as one tensor: its range, and how its values are spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.stats import needed

HALF = 4096
"""Bins of a histogram on either side of zero."""


@dataclass(frozen=True, eq=False)
class Range:
    """The ends of all values.

    Attributes:
        low: the smallest.
        high: the largest.
        count: values.
        magnitude: mean of |x|.
    """

    low: float
    high: float
    count: int
    magnitude: float


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values in bins of equal width, symmetric around zero; the ends are exact.

    Attributes:
        counts: (2 HALF,), int64; bin i holds start + i width <= x < start + (i + 1) width.
        start: left end of the first bin, -HALF width.
        width: of a bin, a power of two.
        low: the smallest value.
        high: the largest.
        zeros: values that are exactly zero, counted in their bin too.
        examples: how many tensors of a batch were seen, by the first dimension.
    """

    counts: Tensor
    start: float
    width: float
    low: float
    high: float
    zeros: int
    examples: int = 1

    def points(self) -> tuple[Tensor, Tensor]:
        """Returns the centres of the bins between the ends, (1, n), float64, and their counts, (n,).

        >>> one = HistogramOf()
        >>> one.see(torch.tensor([0.0, 0.9, 0.9]))
        >>> values, counts = one.result().points()
        >>> counts[[0, -1]].tolist(), round(float(values[0, -1]), 2)
        ([1, 2], 0.9)
        """
        seen = self.counts.nonzero()[:, 0]
        first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)
        centres = self.start + self.width * (torch.arange(first, last, dtype=torch.float64) + 0.5)
        return centres[None], self.counts[first:last]


class RangeOf:
    """Collects `Range`."""

    def __init__(self) -> None:
        self.low, self.high, self.count, self.total = math.inf, -math.inf, 0, 0.0

    def see(self, value: Tensor) -> None:
        """Takes what goes into one call of the layer."""
        if value.numel():
            low, high = value.aminmax()
            self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
            self.count += value.numel()
            self.total += float(torch.linalg.vector_norm(value, 1, dtype=torch.float64))

    def result(self) -> Range | None:
        """Returns what was seen, or None if nothing was."""
        if not self.count:
            return None
        return Range(self.low, self.high, self.count, self.total / self.count)


class HistogramOf:
    """Collects `Histogram` in one pass: where a batch goes beyond the bins, they double in width, joined by twos."""

    def __init__(self) -> None:
        self.range = RangeOf()
        self.counts: Tensor | None = None
        self.exponent = 0
        self.zeros = 0
        self.examples = 0

    def see(self, value: Tensor) -> None:
        """Takes what goes into one call of the layer."""
        self.range.see(value)
        if not value.numel():
            return
        reach = max(abs(self.range.low), abs(self.range.high))
        # The least power of two above every value, so that none falls on the right end.
        exponent = max(math.frexp(reach)[1], -1000) if reach else -1000
        if self.counts is None:
            self.counts, self.exponent = torch.zeros(2 * HALF, dtype=torch.int64), exponent
        while self.exponent < exponent and bool(self.counts.any()):
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.cat([torch.zeros(HALF // 2, dtype=torch.int64), joined, joined.new_zeros(HALF // 2)])
            self.exponent += 1
        self.exponent = max(self.exponent, exponent)
        scale, flat = 2.0**-self.exponent * HALF, value.detach().flatten()
        # Times a power of two from 1 on float32 is exact, too.
        exact = flat.dtype == torch.float32 and 1 <= scale <= 2.0**100
        places = (flat if exact else flat.double()).mul(scale).floor_().to(torch.int32).add_(HALF)
        self.counts = self.counts + torch.bincount(places.cpu(), minlength=2 * HALF)
        self.zeros += value.numel() - int(value.count_nonzero())
        self.examples += len(value) if value.ndim > 1 else 1

    def result(self) -> Histogram | None:
        """Returns what was seen, or None if nothing was."""
        if self.counts is None:
            return None
        reach = 2.0**self.exponent
        return Histogram(self.counts, -reach, reach / HALF, self.range.low, self.range.high, self.zeros, self.examples)


def ends(stats: Any, method: str) -> tuple[float, float]:
    """Returns the smallest and the largest value that went into a layer.

    Args:
        stats: of the layer, with `range` or `histogram`.
        method: for the message.

    Raises:
        MethodError: nothing was collected, or only zeros, for which no scale can be found.

    >>> from lilliput.core.stats import Stats
    >>> ends(Stats({"range": Range(-1.0, 2.0, 5, 0.5)}), "a quantizer")
    (-1.0, 2.0)
    """
    own = getattr(stats, "values", {})
    found = own["histogram"] if "histogram" in own else needed(stats, "range", method)
    if found.low == found.high == 0:
        raise MethodError(
            f"{method}: what goes into this layer was all zeros in calibration; give other data, "
            "or leave the layer out by a rule of its own"
        )
    return found.low, found.high
