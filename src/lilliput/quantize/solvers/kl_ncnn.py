"""ncnn's ranges: its own variant of the Kullback-Leibler divergence, for tables that agree with its tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.solver import RangeSolver
from lilliput.solve.grid import Grid
from lilliput.solve.sample import checked, clipped, magnitudes, one_sided, without_zeros

NAME = "quantize/solvers/kl_ncnn"
EPSILON = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class KLNcnn(RangeSolver):
    """As `kl`, with levels of fractional width, empty bins filled too, and a constant added instead of normalising.

    ncnn's ncnn2table. The histogram of |x| without exact zeros, normalised. For a threshold of t bins: P = h[:t] with
    what lies beyond added to its last bin; Q spreads the mass of each of L levels of t / L bins evenly over its whole
    width; 10^-4 is added to both, and sum P ln(P / Q) is least for t*. The range ends at (t* + 1/2) bins.

    Attributes:
        bins: of the histogram.

    >>> heavy = torch.cat([torch.linspace(-1, 1, 5001), torch.tensor([100.0])])[None]
    >>> 1 <= float(KLNcnn().span(heavy, Grid(8))[1]) < 20
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
        zeros = getattr(getattr(stats, "values", {}).get("histogram"), "zeros", 0)
        if weight is not None and zeros:
            weight = without_zeros(values, weight, zeros)
        histogram, peak = magnitudes(values, weight, self.bins, zeros=False)
        histogram = histogram / histogram.sum(1, keepdim=True).clamp(min=1e-300)
        levels = min(grid.highest + 1, self.bins // 2)
        if not grid.symmetric and not one_sided(values, weight):
            levels = min(2 ** (grid.bits - 1), self.bins // 2)
        seen = histogram.cpu().numpy()
        found = np.stack([divergence(seen, levels, bins) for bins in range(levels, self.bins)])
        threshold = (torch.from_numpy(found.argmin(0)).to(peak.device) + levels + 0.5) / self.bins * peak
        return clipped(values, weight, threshold, grid.symmetric)


def divergence(histogram: Floats, levels: int, bins: int) -> Floats:
    """Returns sum P ln(P / Q) at a threshold, for each row.

    The mass up to a place, along the levels, is the line between the masses up to their edges: Q of a bin is its
    growth within the bin.

    Args:
        histogram: (rows, all bins), each row summing to 1.
        levels: L.
        bins: the threshold t, at least L.

    >>> float(divergence(np.full((1, 8), 0.125), 2, 8)[0])
    0.0
    """
    rows = len(histogram)
    reached = np.concatenate([np.zeros((rows, 1)), histogram[:, :bins].cumsum(1)], 1)
    places = np.arange(bins + 1.0)
    edges = np.arange(levels + 1) * (bins / levels)
    guessed = np.empty((rows, bins))
    for own, found in zip(reached, guessed):
        found[:] = np.diff(np.interp(places, edges, np.interp(edges, places, own)))
    known = histogram[:, :bins] + EPSILON
    known[:, -1] += histogram[:, bins:].sum(1)
    return np.asarray((known * np.log(known / (np.maximum(guessed, 0) + EPSILON))).sum(1))
