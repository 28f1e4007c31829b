"""A layer's Gram matrix as the metric of its weights: checked against the weight, group by group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.stats import needed
from lilliput.observe.inputs import Gram


def metrics(weight: Tensor, stats: Any, method: str) -> Iterator[tuple[slice, Tensor]]:
    """Yields the rows of each group of a layer and the Gram matrix of what goes into it, of the weight's dtype.

    Args:
        weight: (rows, columns).
        stats: what was collected for it; must hold `gram`.
        method: for the message.

    Raises:
        MethodError: no Gram matrix, one of another layer, one that isn't finite, or nothing but zeros.

    >>> from lilliput.core.stats import Stats
    >>> stats = Stats({"gram": Gram(torch.eye(3)[None], 5)})
    >>> [(rows, gram.shape) for rows, gram in metrics(torch.ones(2, 3), stats, "me")]
    [(slice(0, 2, None), torch.Size([3, 3]))]
    """
    matrices, peak = _checked(weight, stats, method)
    each = weight.shape[0] // len(matrices)
    for group, matrix in enumerate(matrices):
        yield slice(group * each, (group + 1) * each), (matrix.double() / peak).to(weight.dtype)


def metrics_together(weight: Tensor, stats: Any, method: str) -> Tensor:
    """Returns what `metrics` yields, (groups, columns, columns); for small ones.

    Raises:
        MethodError: as `metrics`.
    """
    matrices, peak = _checked(weight, stats, method)
    return (matrices.double() / peak).to(weight.dtype)


def _checked(weight: Tensor, stats: Any, method: str) -> tuple[Tensor, float]:
    """The Gram matrices as they were collected, and their largest number: in units of it no product overflows."""
    gram: Gram = needed(stats, "gram", method)
    groups, columns = gram.matrix.shape[:2]
    if weight.ndim != 2 or weight.shape[1] != columns or weight.shape[0] % groups:
        raise MethodError(
            f"{method}: calibrated for {groups} x {columns} inputs, which isn't this weight of {tuple(weight.shape)}"
        )
    peak = float(gram.matrix.diagonal(dim1=1, dim2=2).amax()) if columns else 0.0
    if columns and not 0 < peak < torch.inf:
        what = "zero" if peak == 0 else "NaN or infinite"
        raise MethodError(f"{method}: all that the data puts into this layer is {what}; calibrate on other data")
    return gram.matrix, peak
