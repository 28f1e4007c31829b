"""TensorRT's ranges: the clipping that keeps most of what a histogram tells, by the Kullback-Leibler divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.solver import RangeSolver
from lilliput.solve.grid import Grid
from lilliput.solve.sample import checked, clipped, magnitudes, one_sided

NAME = "quantize/solvers/kl"
EPSILON = 1e-9


@dataclass(frozen=True)
class KL(RangeSolver):
    """Chooses the i of the histogram h of |x| whose first i bins, in few levels, diverge least from the clipped h.

    P = h[:i] with all that lies beyond added to its last bin; Q = h[:i] merged to L = 2^(bits-1) levels (2^bits if no
    value is negative and the grid is affine), each level's mass spread evenly over its bins that aren't empty; both
    are normalised, KL(P | Q) = sum P ln(P / Q) is least for i*, and the range ends at (i* + 1/2) bins (Migacz 2017,
    8-bit inference with TensorRT, GTC). Where the last bin is empty but something lies beyond, its Q counts as 10^-9.
    The first bin counts as the second, as in NVIDIA's own tools: the zeros that a ReLU leaves cost nothing at any
    scale, but as a peak in one bin of a wide level they would diverge so much that half of the rest was clipped. Other
    values that are seen again and again (pixels, what a layer makes of a plain background) would do the same, and where
    there are few values a range that holds none but one would not diverge at all: so h is smoothed first, each bin
    spread over the 128th part of the bins around it.

    Meant for activations, whose histogram has one row; each row takes some milliseconds.

    Attributes:
        bins: of the histogram, more than there are levels.

    >>> heavy = torch.cat([torch.linspace(-1, 1, 5001), torch.tensor([100.0])])[None]
    >>> low, high = KL().span(heavy, Grid(8))
    >>> 1 <= float(high) < 20
    True
    """

    bins: int = 2048

    def __post_init__(self) -> None:
        check_range(NAME, "bins", self.bins, 16, 1 << 16)

    def span(
        self, values: Tensor, grid: Grid, counts: Tensor | None = None, stats: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the range; see `RangeSolver`."""
        weight = checked(NAME, values, counts)
        histogram, peak = magnitudes(values, weight, self.bins)
        histogram[:, 0] = histogram[:, 1]
        histogram = smooth(histogram, self.bins // 256)
        levels = min(grid.highest + 1, self.bins)
        if not grid.symmetric and not one_sided(values, weight):
            levels = min(2 ** (grid.bits - 1), self.bins)
        best = torch.stack([divergences(row, levels).argmin() for row in histogram]) if len(histogram) else peak
        threshold = ((best + levels + 0.5) / self.bins).clamp(max=1) * peak
        return clipped(values, weight, threshold, grid.symmetric)


def smooth(histogram: Tensor, reach: int) -> Tensor:
    """Spreads each bin's mass evenly over itself and the bins beside it; none is lost at the ends.

    Args:
        histogram: (rows, bins), float64.
        reach: bins on either side.

    >>> smooth(torch.tensor([[0.0, 0.0, 6.0, 0.0, 2.0]], dtype=torch.float64), 1)
    tensor([[0., 2., 2., 3., 1.]], dtype=torch.float64)
    """
    bins = histogram.shape[1]
    own = torch.arange(bins, device=histogram.device)
    first, beyond = (own - reach).clamp(min=0), (own + reach + 1).clamp(max=bins)
    part = histogram / (beyond - first)
    changes = histogram.new_zeros(len(histogram), bins + 1)
    changes.index_add_(1, first, part).index_add_(1, beyond, -part)
    # By rounding something may be left of nothing, where no bin within reach holds anything.
    filled = torch.nn.functional.max_pool1d((histogram > 0).double(), 2 * reach + 1, 1, reach) > 0
    return torch.where(filled, changes.cumsum(1)[:, :bins].clamp(min=0), 0)


def divergences(histogram: Tensor, levels: int) -> Tensor:
    """Returns KL(P | Q) for each i from `levels` to the number of bins.

    All from cumulative sums: within a level Q is the same in every bin that isn't empty, so that
    sum P ln(P / Q) = sum P ln P - sum over levels of their P times ln of their Q.

    Args:
        histogram: (bins,), float64, not negative.
        levels: how many there will be, at most as many as bins.

    >>> divergences(torch.ones(4, dtype=torch.float64), 2)[-1]
    tensor(0., dtype=torch.float64)
    """
    bins = len(histogram)
    total = float(histogram.sum())
    ends = torch.arange(levels, bins + 1)
    edges = -(-(torch.arange(levels + 1)[None] * ends[:, None]) // levels)  # the first bin of each level
    mass, filled = _running(histogram), _running((histogram > 0).double())
    own = mass[edges[:, 1:]] - mass[edges[:, :-1]]
    count = filled[edges[:, 1:]] - filled[edges[:, :-1]]
    inside = mass[ends]
    tail = total - inside
    last = histogram[ends - 1]
    height = own / count.clamp(min=1)
    beyond = torch.where(last > 0, height[:, -1], EPSILON * inside)
    spread = (own * _ln(height)).sum(1) + tail * _ln(beyond)
    entropy = _running(histogram * _ln(histogram))[ends - 1] + (last + tail) * _ln(last + tail)
    found: Tensor = (entropy - spread) / max(total, 1e-300) - math.log(max(total, 1e-300)) + _ln(inside)
    # Where nothing lies within, all of it lies beyond.
    return torch.where(inside > 0, found.clamp(min=0), torch.inf)


def _running(values: Tensor) -> Tensor:
    """Cumulative sums that begin with 0."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _ln(values: Tensor) -> Tensor:
    """The logarithm, 0 for 0."""
    return torch.where(values > 0, values, 1).log()
