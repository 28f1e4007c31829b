"""Ranges by formula: the best clipping of a Gaussian or Laplace distribution as wide as the values are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.solver import RangeSolver
from lilliput.solve.grid import Grid, in_units
from lilliput.solve.sample import checked, clipped, ends, one_sided, without_zeros

NAME = "quantize/solvers/aciq"
FROM_PEAK = 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4)))
"""sigma = 2 max|x| FROM_PEAK / sqrt(2 ln n), for n values of a Gaussian."""


@dataclass(frozen=True)
class ACIQ(RangeSolver):
    """Clips at alpha(bits) times the width of the distribution (Banner, Nahshan and Soudry 2019, arXiv 1810.05723).

    For a Gaussian of deviation 1 alpha minimises 2 [(1 + a^2) Q(a) - a phi(a)] + a^2 / (3 4^bits), what clipping and
    what rounding cost; for a Laplace distribution of scale 1 it is 2 e^-a + a^2 / (3 4^bits).

    Attributes:
        shape: `"gaussian"`: the deviation is that expected of n values with this max|x|, as ncnn takes it; of
            activations n is the number of one example. `"normal"`: the deviation is sqrt(mean x^2). `"laplace"`: the
            scale is mean|x|. Means are of what isn't zero: where a ReLU was, the zeros tell nothing of the other half.

    >>> [round(clip("gaussian", bits), 4) for bits in (2, 3, 4, 8)]
    [1.7106, 2.1516, 2.5591, 3.924]
    """

    shape: Literal["gaussian", "normal", "laplace"] = "gaussian"

    def __post_init__(self) -> None:
        if self.shape not in {"gaussian", "normal", "laplace"}:
            raise MethodError(f"{NAME}: no shape '{self.shape}'; there are gaussian, normal, laplace")

    def span(
        self, values: Tensor, grid: Grid, counts: Tensor | None = None, stats: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the range, never beyond the values; see `RangeSolver`."""
        weight = checked(NAME, values, counts)
        scaled, unit = in_units(values)
        low, high = ends(scaled, weight)
        peak = torch.maximum(-low, high).double()
        size = scaled.double().abs()
        known = getattr(stats, "values", {}).get("histogram")
        if self.shape == "gaussian":
            number = peak.new_full((len(values),), values.shape[1]) if weight is None else weight.sum(1)
            one = number / getattr(known, "examples", 1)
            width = 2 * FROM_PEAK * peak / (2 * one.clamp(min=2).log()).sqrt()
        else:
            weight = without_zeros(values, weight, getattr(known, "zeros", 0))
            number = weight.sum(1).clamp(min=1)
            power = 2 if self.shape == "normal" else 1
            width = ((size.pow(power) * weight).sum(1) / number).pow(1 / power)
        # Half a distribution in all the codes has steps half as wide.
        bits = grid.bits + (not grid.symmetric and one_sided(values, weight))
        threshold = torch.minimum(width * clip("gaussian" if self.shape == "normal" else self.shape, bits), peak)
        return clipped(values, weight, threshold * unit, grid.symmetric)


@cache
def clip(shape: str, bits: int) -> float:
    """Returns the best clipping for a distribution of deviation (Laplace: scale) 1, by golden section.

    Args:
        shape: `"gaussian"` or `"laplace"`.
        bits: of a code.

    >>> [round(clip("laplace", bits), 2) for bits in (2, 3, 4)]
    [2.83, 3.9, 5.03]
    """

    def cost(a: float) -> float:
        rounding = a * a / (3 * 4.0**bits)
        if shape == "laplace":
            return 2 * math.exp(-a) + rounding
        density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
        return 2 * ((1 + a * a) * math.erfc(a / math.sqrt(2)) / 2 - a * density) + rounding

    low, high, ratio = 0.0, 40.0, (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if cost(left) < cost(right) else (left, high)
    return (low + high) / 2
