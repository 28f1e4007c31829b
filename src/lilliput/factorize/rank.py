"""Which rank: by energy, break-even, a fixed ratio, variational Bayes, or one budget over all layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.errors import BudgetError, MethodError, NotWorthwhile
from lilliput.core.packed import Packed
from lilliput.solve.knapsack import knapsack

RULES = ("energy", "ratio", "evbmf")
"""How a method may choose a rank that isn't given."""

TOGETHER = "budget"
"""The rule by which the ranks of all weights of a rule of the recipe are chosen at once."""

PRECISE = 1 << 22
"""Matrices of at most so many numbers are decomposed in float64."""


def precise(weight: Tensor) -> Tensor:
    """Returns a weight in the type in which it is decomposed: float64, or float32 where that would take too long."""
    return weight.to(torch.float64 if weight.numel() <= PRECISE else torch.promote_types(weight.dtype, torch.float32))


def packed_as(
    method: str, weight: Tensor, factors: dict[str, Tensor], settings: dict[str, Any] | None = None
) -> Packed:
    """Returns the factors of a weight as its packed form, each in the weight's dtype and contiguous.

    Args:
        method: path of the method.
        weight: the weight, for its shape and dtype.
        factors: by the name of the part, any shape.
        settings: of the form.
    """
    parts: dict[str, Tensor | Packed] = {name: part.to(weight.dtype).contiguous() for name, part in factors.items()}
    return Packed(method, tuple(weight.shape), weight.dtype, parts, settings or {})


def check_rule(method: str, rule: str, known: tuple[str, ...] = RULES) -> None:
    """Raises MethodError unless the rule is one of those known."""
    if rule not in known:
        raise MethodError(f"{method}: rule = '{rule}' is none of {', '.join(known)}")


def check_smaller(method: str, numbers: int, weight: Tensor, what: str, force: bool) -> None:
    """Raises NotWorthwhile if the factors hold more numbers than the weight.

    Args:
        method: for the message.
        numbers: of all factors together.
        weight: the weight.
        what: the ranks and what they are of, in words.
        force: don't.
    """
    if numbers > weight.numel() and not force:
        raise NotWorthwhile(f"{method}: {what} holds {numbers} numbers, the weight {weight.numel()}")


def rank_for_energy(values: Tensor, energy: float) -> int:
    """Returns the smallest k >= 1 with sum_{i<=k} s_i^2 >= energy * sum s_i^2.

    Args:
        values: singular values in descending order.
        energy: part of the sum of the squares, 0 < energy <= 1.

    >>> rank_for_energy(torch.tensor([4.0, 2.0, 1.0]), 0.9)
    2
    """
    squares = values.double().square()
    total = float(squares.sum())
    if not total:
        return min(1, len(values))
    reached = squares.cumsum(0) >= energy * total * (1 - 1e-12)
    return int(reached.to(torch.int8).argmax()) + 1


def break_even(rows: int, columns: int) -> int:
    """Returns the largest rank whose two factors hold fewer numbers than the matrix: r (m + n) < m n.

    Of a k x k convolution as (C k) x (k N) this is r < C N k / (C + N).

    >>> break_even(100, 100), break_even(2, 2)
    (49, 0)
    """
    return max(rows * columns - 1, 0) // max(rows + columns, 1)


def rank_for_ratio(rows: int, columns: int, ratio: float) -> int:
    """Returns floor(ratio m n / (m + n)), at least 1: the factors hold this part of the numbers.

    >>> rank_for_ratio(100, 300, 0.2)
    15
    """
    return max(1, math.floor(ratio * rows * columns / max(rows + columns, 1) * (1 + 1e-12)))


def rank_by(rule: str, values: Tensor, shape: tuple[int, int], energy: float, ratio: float) -> int:
    """Returns the rank of a matrix by a rule, between 1 and its smaller side (0 of an empty matrix).

    Args:
        rule: one of `RULES`; `TOGETHER` for one matrix alone is the ratio.
        values: its singular values in descending order.
        shape: (rows, columns).
        energy: see `rank_for_energy`.
        ratio: see `rank_for_ratio`.
    """
    if rule == "energy":
        return rank_for_energy(values, energy)
    found = evbmf(values, shape).rank if rule == "evbmf" else rank_for_ratio(*shape, ratio)
    return min(max(found, 1), len(values))


@dataclass(frozen=True, eq=False)
class Evbmf:
    """What empirical variational Bayes finds in a matrix.

    Attributes:
        rank: singular values that stand out of the noise; 0 of pure noise.
        noise: standard deviation of the noise.
        values: the shrunk singular values, `rank` of them.
    """

    rank: int
    noise: float
    values: Tensor


def evbmf(values: Tensor, shape: tuple[int, int]) -> Evbmf:
    """Finds the rank and the noise of Y = low rank + Gaussian noise, analytically but for a search of one number.

    Nakajima, Sugiyama, Babacan and Tomioka 2013 (JMLR 14): with L <= M the sides, a = L / M and x_h = s_h^2 / (M v),
    the noise v minimises sum_{x_h <= x} (x_h - log x_h) + sum_{x_h > x} (x_h - t + log((t + 1) / x_h) +
    a log(t / a + 1)), where t(x_h) = (x_h - 1 - a + sqrt((x_h - 1 - a)^2 - 4 a)) / 2 and x = (1 + b)(1 + a / b) with
    b = 2.5129 sqrt(a). Those s_h > sqrt(M v x) are kept. Multiplying Y by a number changes the noise alone.

    Args:
        values: all singular values of Y, in descending order.
        shape: (rows, columns) of Y.

    >>> evbmf(torch.tensor([10.0, 1.1, 1.0, 0.9]), (4, 16)).rank
    1
    """
    low, high = min(shape), max(shape)
    s = values.double().cpu().numpy()
    scale = float(s[0]) if len(s) else 0.0
    if not scale:
        return Evbmf(0, 0.0, values[:0])
    squares = (s / scale) ** 2
    alpha = low / high
    tau_bar = 2.5129 * math.sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)
    edge = min(math.ceil(low / (1 + alpha)) - 1, len(s) - 1)
    lower = max(squares[edge] / (high * x_bar), squares[edge:].mean() / high)
    upper = squares.sum() / (low * high)
    variance = _noise(squares, alpha, high, x_bar, (max(lower, upper * 1e-12), upper))
    rank = int((squares > high * variance * x_bar).sum())
    kept, rest = squares[:rank], (low + high) * variance
    inside = (1 - rest / kept) ** 2 - 4 * low * high * variance**2 / kept**2
    shrunk = 0.5 * np.sqrt(kept) * (1 - rest / kept + np.sqrt(np.maximum(inside, 0)))
    return Evbmf(rank, math.sqrt(variance) * scale, values.new_tensor(shrunk * scale))


def _noise(
    squares: np.ndarray[tuple[int], np.dtype[np.float64]],
    alpha: float,
    high: int,
    x_bar: float,
    bounds: tuple[float, float],
) -> float:
    """Returns the variance that minimises the free energy: the best of a grid, then finer grids around it."""

    def energy(variance: float) -> float:
        x = np.maximum(squares / (high * variance), 1e-300)
        small, large = x[x <= x_bar], x[x > x_bar]
        tau = 0.5 * (large - 1 - alpha + np.sqrt(np.maximum((large - 1 - alpha) ** 2 - 4 * alpha, 0)))
        kept = large - tau + np.log((tau + 1) / large) + alpha * np.log(tau / alpha + 1)
        return float((small - np.log(small)).sum() + kept.sum())

    start, end = (math.log(bound) for bound in bounds)
    if not start < end:
        return bounds[1]
    for _ in range(6):
        grid = np.linspace(start, end, 65)
        best = int(np.argmin([energy(math.exp(place)) for place in grid]))
        start, end = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 64)])
    return math.exp((start + end) / 2)


@dataclass(frozen=True)
class Ranks:
    """Ranks of all layers under one budget.

    Attributes:
        ranks: by name; 0 keeps the layer dense.
        cost: what they cost together.
        loss: sum of the layers' losses.
    """

    ranks: dict[str, int]
    cost: int
    loss: float


Spectrum = tuple[Tensor, tuple[int, int]]
"""Singular values of a matrix (of a layer's weight, or of its outputs) in descending order, and the matrix's shape."""


def budgeted(
    matrices: Mapping[str, Tensor],
    limit: int,
    *,
    places: Mapping[str, int] | None = None,
    importance: Mapping[str, float] | None = None,
) -> Ranks:
    """Chooses the ranks of all layers at once: the least total loss within a limit on numbers or MACs, exactly.

    Args:
        matrices: (m, n) by name, such as `weight.flatten(1)`; whitened ones give losses of outputs.
        limit: on the total cost.
        places: positions that each layer is computed at (height x width of a convolution's output); then the cost is
            MACs. 1 each if not given: then it is numbers.
        importance: factor of each layer's loss; 1 each if not given.

    Raises:
        BudgetError: if even rank 1 everywhere costs more than the limit.
        MethodError: if something is no matrix.

    >>> budgeted({"a": torch.eye(4), "b": torch.ones(10, 10)}, limit=36).ranks
    {'a': 0, 'b': 1}
    """
    spectra: dict[str, Spectrum] = {}
    for name, matrix in matrices.items():
        if matrix.ndim != 2 or not matrix.numel():
            raise MethodError(f"{name}: needs a matrix with weights in it, not one of shape {tuple(matrix.shape)}")
        spectra[name] = torch.linalg.svdvals(precise(matrix)), (matrix.shape[0], matrix.shape[1])
    return ranks_within(spectra, limit, places=places, importance=importance)


def ranks_within(
    spectra: Mapping[str, Spectrum],
    limit: int,
    *,
    places: Mapping[str, int] | None = None,
    importance: Mapping[str, float] | None = None,
) -> Ranks:
    """Chooses the ranks of all layers at once, by their singular values.

    Each layer is a group of the knapsack: ranks r = 1 .. break-even at a cost of r (m + n) times its places, with a
    loss of sum_{i>r} s_i^2 / sum s_i^2 times its importance; or it stays dense at m n, without loss.

    Args:
        spectra: by name.
        limit: on the total cost.
        places: see `budgeted`.
        importance: likewise.

    Raises:
        BudgetError: if even rank 1 everywhere costs more than the limit.
    """
    costs, losses, ranks = [], [], []
    for name, (values, (rows, columns)) in spectra.items():
        squares = values.double().square()
        total = float(squares.sum()) or 1.0
        left = (squares.flip(0).cumsum(0).flip(0) / total).tolist()
        own = range(1, min(break_even(rows, columns), len(squares)) + 1)
        each = (places or {}).get(name, 1)
        factor = (importance or {}).get(name, 1.0)
        costs.append([*(r * (rows + columns) * each for r in own), rows * columns * each])
        losses.append([*((left[r] if r < len(left) else 0.0) * factor for r in own), 0.0])
        ranks.append([*own, 0])
    solution = knapsack(costs, losses, limit)
    if solution is None:
        raise BudgetError(
            f"the limit {limit} is below {sum(map(min, costs))}, which rank 1 (or dense) everywhere costs"
        )
    chosen = {name: own[place] for name, own, place in zip(spectra, ranks, solution.chosen)}
    return Ranks(chosen, int(solution.cost), solution.loss)


def shared_ranks(method: str, spectra: Mapping[str, Spectrum], ratio: float) -> dict[str, int]:
    """Returns the ranks by which all layers together hold `ratio` of their numbers; the full rank keeps one dense.

    Each layer's squared error is measured in what `rank_for_ratio` would leave of it. Relative to the whole it would
    say little where a few directions outweigh the rest: in transformers one can hold 96 % of a layer's outputs, and
    that layer would be left with hardly more than that direction.

    Args:
        method: for the message.
        spectra: by name.
        ratio: 0 < ratio <= 1.

    Raises:
        MethodError: so few numbers are left that rank 1 everywhere is more.
    """
    importance = {}
    for name, (values, shape) in spectra.items():
        squares = values.double().square()
        left = float(squares[rank_for_ratio(*shape, ratio) :].sum())
        # Nothing is left of a layer whose rank is that low: then it is to keep that rank.
        importance[name] = 1 / max(left / (float(squares.sum()) or 1.0), 1e-12)
    limit = int(ratio * sum(rows * columns for _, (rows, columns) in spectra.values()))
    try:
        found = ranks_within(spectra, limit, importance=importance)
    except BudgetError as error:
        raise MethodError(f"{method}: rule = 'budget' with ratio = {ratio}: {error}") from None
    return {name: rank or min(spectra[name][1]) for name, rank in found.ranks.items()}
