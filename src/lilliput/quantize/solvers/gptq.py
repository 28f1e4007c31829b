"""GPTQ: columns are rounded one after the other, and those still to come make up for what the layer's outputs lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.solver import RoundingSolver
from lilliput.core.stats import needed
from lilliput.observe.metric import metrics, metrics_together
from lilliput.solve.inverse_hessian import Place, descend, feedback, inverse_factor
from lilliput.solve.inverse_hessians import descends, feedbacks, inverse_factors
from lilliput.solve.levels import Levels

NAME = "quantize/solvers/gptq"
SMALL = 128
"""Columns of a group up to which all groups are taken together, as those of a depthwise convolution."""


@dataclass(frozen=True)
class GPTQ(RoundingSolver):
    """Minimises |(W - Q) X|^2 of a layer over what its levels allow (Frantar et al. 2022, arXiv 2210.17323).

    With G = X^T X / n, damped, and U^T U = G^-1, column i becomes q, and (w - q) U_ij / U_ii is taken from each later
    column j. Then `passes` of coordinate descent choose each column anew, given all others, which never makes the
    error larger (Behdin et al. 2023, arXiv 2309.01885); they begin at the nearest levels in rows where these are
    better. 0 is the published method. Scales, also those of groups, are
    those of the weight as it was. Inputs that are always zero get the nearest level.

    Linear layers and convolutions (by their unfolded inputs), any levels: a grid's or a codebook's.

    Attributes:
        damping: part of G's mean diagonal that is added to its diagonal.
        order: take the columns by falling G_ii instead of from left to right.
        passes: of coordinate descent afterwards.
        block: columns whose effect on later ones is applied together; only speed depends on it.

    >>> from lilliput.core.stats import Stats
    >>> from lilliput.observe.inputs import Gram
    >>> from lilliput.solve.levels import CodebookLevels
    >>> together = Stats({"gram": Gram(torch.tensor([[[2.0, 1.9], [1.9, 2.0]]]), 9)})
    >>> GPTQ(damping=0).settle(torch.tensor([[0.4, 0.4]]), CodebookLevels(torch.tensor([0.0, 1.0])), together)
    tensor([[0., 1.]])
    """

    damping: float = 0.01
    order: bool = True
    passes: int = 2
    block: int = 128

    needs = frozenset({"gram"})

    def __post_init__(self) -> None:
        check_range(NAME, "damping", self.damping, 0.0, 10.0)
        check_range(NAME, "passes", self.passes, 0, 1000)
        check_range(NAME, "block", self.block, 1, 65536)

    def settle(self, weight: Tensor, levels: Levels, stats: Any = None) -> Tensor:
        """Returns the levels; see `RoundingSolver`."""
        groups, columns = needed(stats, "gram", NAME).matrix.shape[:2]
        if groups > 1 and columns <= SMALL:
            return self._together(weight, levels, metrics_together(weight, stats, NAME))
        found = torch.empty_like(weight)
        for rows, gram in metrics(weight, stats, NAME):
            found[rows] = self._alone(weight[rows], levels, rows, gram)
        return found

    def _alone(self, weight: Tensor, levels: Levels, rows: slice, gram: Tensor) -> Tensor:
        """The levels of one group of rows, by its Gram matrix, which is changed."""
        dead = gram.diagonal() == 0
        gram.diagonal().add_(self.damping * gram.diagonal().mean())
        order = gram.diagonal().argsort(descending=True, stable=True) if self.order else torch.arange(len(gram))
        own, gram = weight[:, order], gram[order][:, order]
        place = _placing(own, levels, rows, order)
        upper = _inverted(lambda one: inverse_factor(one, 0.0), gram)
        solved = feedback(own, upper, place, self.block)
        del upper
        if self.passes:
            near = levels.near(own, rows, order).masked_fill_(own == 0, 0)
            better = _errors(own - near, gram) < _errors(own - solved, gram)
            solved = torch.where(better[:, None], near, solved)
        for _ in range(self.passes):
            before = solved
            solved = descend(own, gram, solved, place, self.block)
            if torch.equal(before, solved):
                break
        found = solved[:, order.argsort()]
        if bool(dead.any()):
            columns = dead.nonzero()[:, 0]
            plain = weight[:, columns]
            found[:, columns] = levels.near(plain, rows, columns).masked_fill_(plain == 0, 0)
        return found

    def _together(self, weight: Tensor, levels: Levels, grams: Tensor) -> Tensor:
        """The levels of many small groups, column by column in all of them; `grams` is changed."""
        groups, columns = grams.shape[:2]
        whole = weight.reshape(groups, -1, columns)
        diagonal = grams.diagonal(dim1=1, dim2=2)
        dead = (diagonal == 0)[:, None].expand(whole.shape)
        diagonal += self.damping * diagonal.mean(1, keepdim=True)
        order = torch.arange(columns).expand(groups, columns)
        if self.order:
            order = diagonal.argsort(dim=1, descending=True, stable=True)
        where = order[:, None].expand(whole.shape)
        own = whole.gather(2, where)
        grams = grams.gather(1, order[:, :, None].expand(grams.shape)).gather(2, order[:, None].expand(grams.shape))
        rows = torch.arange(len(weight)).reshape(groups, -1)
        zero = own == 0

        def place(values: Tensor, column: int) -> Tensor:
            return levels.near(values, rows, where[..., column]).masked_fill_(zero[..., column], 0)

        near = levels.near(own, rows[..., None], where).masked_fill_(zero, 0)
        solved = feedbacks(own, _inverted(inverse_factors, grams), place)
        if self.passes:
            gaps = [((own - one) @ grams * (own - one)).sum(2, dtype=torch.float64) for one in (near, solved)]
            solved = torch.where((gaps[0] < gaps[1])[..., None], near, solved)
        for _ in range(self.passes):
            before = solved
            solved = descends(own, grams, solved, place)
            if torch.equal(before, solved):
                break
        found = torch.empty_like(solved).scatter_(2, where, solved)
        nearest = torch.empty_like(near).scatter_(2, where, near)
        return torch.where(dead, nearest, found).reshape(weight.shape)


def _inverted(invert: Callable[[Tensor], Tensor], gram: Tensor) -> Tensor:
    try:
        return invert(gram)
    except ValueError as error:
        raise MethodError(f"{NAME}: {error}; give more or other calibration data") from None


def _errors(change: Tensor, gram: Tensor) -> Tensor:
    """What a change of the weights does to each row's outputs, (rows,)."""
    return ((change @ gram) * change).sum(1, dtype=torch.float64)


def _placing(weight: Tensor, levels: Levels, rows: slice, order: Tensor) -> Place:
    """The nearest levels of a column; what was zero stays zero."""
    columns = order.tolist()
    zero = (weight == 0).T.contiguous()
    some = zero.any(1).tolist()

    def place(values: Tensor, column: int) -> Tensor:
        placed = levels.near(values, rows, columns[column])
        return placed.masked_fill(zero[column], 0) if some[column] else placed

    return place
