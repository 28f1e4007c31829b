"""ncnn's EQ: ranges for which a layer's outputs point in the same direction as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.solver import RangeSolver
from lilliput.core.stats import needed
from lilliput.observe.inputs import Gram
from lilliput.solve.grid import Grid, in_units, out_of_units
from lilliput.solve.sample import checked, ends

NAME = "quantize/solvers/easy"


@dataclass(frozen=True)
class Easy(RangeSolver):
    """Tries ranges from half to twice the steps of the whole one, and takes that of the largest cosine of the outputs.

    ncnn's ncnn2table with method EQ: for each output channel the scale is multiplied by 1/2 .. 2 in `steps` steps, and
    cos(W x, Q(W) x) decides. Over all inputs x together it is w G q / sqrt(w G w q G q) with the Gram matrix G of
    what goes into the layer. For weights with one scale a row, or a tensor; the scale of an activation is found
    likewise by `matched`, with W^T W in the place of G.

    Attributes:
        steps: scales that are tried.

    >>> from lilliput.core.stats import Stats
    >>> weight = torch.tensor([[1.0, 0.3, 0.3, 0.3]])
    >>> counted = Stats({"gram": Gram(torch.diag(torch.tensor([0.01, 1.0, 1.0, 1.0]))[None], 9)})
    >>> low, high = Easy().span(weight, Grid(2), stats=counted)
    >>> 0.5 <= float(high) < 0.6  # the first input hardly matters, so its weight is clipped for the others' sake
    True
    """

    steps: int = 100

    needs = frozenset({"gram"})

    def __post_init__(self) -> None:
        check_range(NAME, "steps", self.steps, 2, 10_000)

    def span(
        self, values: Tensor, grid: Grid, counts: Tensor | None = None, stats: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the range; see `RangeSolver`.

        Raises:
            MethodError: for a histogram; without stats; with scales of groups.
        """
        checked(NAME, values, None)
        gram: Gram = needed(stats, "gram", NAME)
        if counts is not None:
            raise MethodError(f"{NAME}: looks at a layer's outputs, which a histogram doesn't tell; take kl or mse")
        groups, columns = gram.matrix.shape[:2]
        if values.shape[1] != columns and (len(values) != 1 or values.shape[1] % columns):
            raise MethodError(
                f"{NAME}: rows of {values.shape[1]} weights where the layer has {columns} inputs: it finds one scale "
                "a row or a tensor, and needs the Gram matrix of this layer"
            )
        scaled, unit = in_units(values)
        rows = scaled.reshape(groups, -1, columns)
        size = torch.linalg.vector_norm(gram.matrix.double(), dim=(1, 2), keepdim=True)
        metric = (gram.matrix.double() / size.clamp(min=1e-300)).to(rows.dtype)
        low, high = matched(
            rows, metric, grid, together=len(values) == 1 and rows.shape[:2] != (1, 1), steps=self.steps
        )
        return out_of_units(low, unit, values.dtype), out_of_units(high, unit, values.dtype)


def matched(
    rows: Tensor, metric: Tensor, grid: Grid, together: bool = False, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Returns the ranges for which sum v M q(v) / sqrt(sum v M v * sum q(v) M q(v)) is largest.

    Args:
        rows: v, (groups, rows, columns): of weights, or samples of an input.
        metric: M, (groups, columns, columns), symmetric, positive semidefinite: the Gram matrix of the inputs, or
            W^T W for samples.
        grid: the codes.
        together: one range for all rows, instead of one for each.
        steps: factors from 1/2 to 2 that are tried, beside 1.

    Returns:
        low and high, (groups * rows,), or (1,) if together.
    """

    def summed(found: Tensor) -> Tensor:
        return found.sum().reshape(1) if together else found.flatten()

    def product(one: Tensor, other: Tensor) -> Tensor:
        return summed((one.double() * other.double()).sum(-1))

    flat = rows.reshape(1, -1) if together else rows.reshape(-1, rows.shape[-1])
    low, high = ends(flat, None)
    if grid.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    seen = rows @ metric
    own = product(rows, seen)
    best, most = torch.ones_like(high), torch.full(high.shape, -torch.inf, dtype=torch.float64)
    for factor in [1.0, *torch.linspace(0.5, 2, steps).tolist()]:
        scale, zero = grid.step(low / factor, high / factor)
        found = grid.near(flat, scale[:, None], zero[:, None]).reshape(rows.shape)
        cosine = product(seen, found) / (own * product(found @ metric, found)).clamp(min=1e-300).sqrt()
        better = cosine > most
        best, most = torch.where(better, factor, best), torch.where(better, cosine, most)
    return low / best, high / best
