"""Values with counts, as a histogram or each once: extremes, quantiles, and the histogram of their magnitudes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lilliput.core.checks import is_finite
from lilliput.core.errors import MethodError


def checked(method: str, values: Tensor, counts: Tensor | None) -> Tensor | None:
    """Returns the counts as (rows, n), float64, or None.

    Raises:
        MethodError: values or counts of the wrong shape, that aren't finite, or counts below zero.
    """
    if values.ndim != 2 or not values.dtype.is_floating_point:
        raise MethodError(f"{method}: values must be floating-point rows, not {values.dtype} of {tuple(values.shape)}")
    if not is_finite(values):
        raise MethodError(f"{method}: values are NaN or infinite; check the data")
    if counts is None:
        return None
    if counts.shape not in {values.shape, values.shape[1:]}:
        raise MethodError(f"{method}: counts of shape {tuple(counts.shape)} for values of {tuple(values.shape)}")
    if not is_finite(counts.double()) or bool((counts < 0).any()):
        raise MethodError(f"{method}: counts are negative, NaN or infinite")
    return counts.double().expand(values.shape)


def ends(values: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the least value or 0 and the largest or 0 of each row, among those that were seen.

    >>> ends(torch.tensor([[1.0, -2.0, 5.0]]), torch.tensor([[1.0, 2.0, 0.0]]))
    (tensor([-2.]), tensor([1.]))
    """
    if not values.numel():
        return values.new_zeros(len(values)), values.new_zeros(len(values))
    seen = values if counts is None else torch.where(counts > 0, values, 0)
    low, high = seen.aminmax(dim=1)
    return low.clamp(max=0), high.clamp(min=0)


def clipped(values: Tensor, counts: Tensor | None, threshold: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Returns the range -threshold..threshold, for an affine grid no wider than the values are.

    Args:
        values: (rows, n).
        counts: (rows, n) or None.
        threshold: (rows,), not negative.
        symmetric: whether the grid is.
    """
    limit = threshold.to(values.dtype)
    if symmetric:
        return -limit, limit
    low, high = ends(values, counts)
    return torch.maximum(low, -limit), torch.minimum(high, limit)


def one_sided(values: Tensor, counts: Tensor | None) -> bool:
    """Whether no value that was seen is below zero."""
    return not bool((ends(values, counts)[0] < 0).any())


def without_zeros(values: Tensor, counts: Tensor | None, zeros: int) -> Tensor:
    """Returns how often each value was seen, exact zeros not at all, (rows, n), float64.

    Args:
        values: (rows, n); those of a histogram ascend and are the middles of its bins.
        counts: (rows, n), float64, or None if each value counts once.
        zeros: exact zeros that a histogram holds, in the bin above zero.

    >>> without_zeros(torch.tensor([[0.0, 2.0]]), None, 0)
    tensor([[0., 1.]], dtype=torch.float64)
    """
    if counts is None:
        return (values != 0).double()
    if not zeros:
        return counts
    place = torch.where(values[0] >= 0, values[0], torch.inf).argmin()
    return counts.index_add(1, place[None], -counts.new_full((len(counts), 1), zeros)).clamp(min=0)


def quantile(values: Tensor, counts: Tensor | None, part: float) -> Tensor:
    """Returns the least value of each row up to which at least this part of what was seen lies, (rows,).

    Args:
        values: (rows, n), n > 0.
        counts: (rows, n) or None.
        part: 0..1.

    >>> quantile(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), None, 0.5)
    tensor([2.])
    """
    if counts is None:
        number = max(1, math.ceil(part * values.shape[1] * (1 - 1e-12)))
        return torch.kthvalue(values, min(number, values.shape[1]), dim=1).values
    order = values.argsort(1)
    reached = counts.gather(1, order).cumsum(1)
    # A hair less, so that 0.1 * 10 counts as one of ten.
    wanted = part * reached[:, -1:] * (1 - 1e-12)
    place = (reached < wanted.clamp(min=1e-300)).sum(1, keepdim=True).clamp(max=values.shape[1] - 1)
    return values.gather(1, order).gather(1, place)[:, 0]


def magnitudes(values: Tensor, counts: Tensor | None, bins: int, zeros: bool = True) -> tuple[Tensor, Tensor]:
    """Returns the histogram of |value| over 0..max|value| for each row.

    Values with counts that lie at equal distances are the bins of a histogram: the mass of each is spread over its
    width, so that bins of another width don't get two of them here and three there.

    Args:
        values: (rows, n).
        counts: (rows, n) or None.
        bins: how many.
        zeros: whether values that are exactly zero count.

    Returns:
        (rows, bins), float64, and max|value|, (rows,), float64.

    >>> magnitudes(torch.tensor([[0.0, 0.3, -1.0]]), None, 2)
    (tensor([[2., 1.]], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    rows = len(values)
    if not values.numel():
        return torch.zeros(rows, bins, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
    low, high = ends(values, counts)
    peak = torch.maximum(-low, high).double()
    width = None if counts is None else bin_width(values)
    if width is not None and counts is not None and values.shape[1] < 64 * bins:
        peak = torch.where(peak > 0, peak + width / 2, peak)
        return torch.stack([_folded(v, c, width, p / bins, bins) for v, c, p in zip(values, counts, peak)]), peak
    size = values.abs().double()
    index = (size / torch.where(peak > 0, peak, 1)[:, None] * bins).long().clamp_(max=bins - 1)
    index += torch.arange(rows, device=values.device)[:, None] * bins
    weight = torch.ones_like(size) if counts is None else counts.clone()
    if not zeros:
        weight[size == 0] = 0
    found = torch.bincount(index.flatten(), weights=weight.flatten(), minlength=rows * bins)
    return found.reshape(rows, bins), peak


def bin_width(values: Tensor) -> float | None:
    """Returns the distance of values that ascend in equal steps, the same in all rows; None if they don't.

    >>> bin_width(torch.tensor([[0.5, 1.5, 2.5]])), bin_width(torch.tensor([[0.5, 1.5, 4.0]]))
    (1.0, None)
    """
    steps = values.double().diff(dim=1)
    if not steps.numel():
        return None
    least, most = (float(end) for end in steps.aminmax())
    reach = float(values.abs().max()) * torch.finfo(values.dtype).eps * 4
    return (least + most) / 2 if least > 0 and most - least <= 1e-6 * most + reach else None


def _folded(values: Tensor, counts: Tensor, width: float, step: Tensor, bins: int) -> Tensor:
    """The mass of |x| in each bin, where the mass of each value is spread evenly around it."""
    edges = np.append(values.double().numpy() - width / 2, float(values[-1]) + width / 2)
    reached = np.append(0.0, counts.numpy().cumsum())
    places = np.arange(bins + 1) * float(step)
    return torch.from_numpy(np.diff(np.interp(places, edges, reached) - np.interp(-places, edges, reached)))
