"""Ternary networks (TNN): weights -1, 0, +1, and how a student's neuron is found that agrees with its teacher's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.uniform import Uniform, on_grid

NAME = "quantize/ternary_network"
MOST = 1 << 24
"""Products that exist at a time."""

Search = Literal["grid", "exhaustive", "dichotomic"]
"""How (p, q) are searched for."""

Scored = tuple[float, Any, int, int]
"""Agreement, (p, q), low and high."""

Score = Callable[[Tensor], Scored]
"""Gives the best of some (p, q), (pairs, 2)."""


@dataclass(frozen=True)
class TernaryNetwork(WeightMethod):
    """w -> sign(w) where |w| > threshold, else 0, without any magnitude; straight-through gradient.

    Alemdar et al. 2017 (arXiv 1609.00222). The weights of a student are -1, 0 and +1 already, and are packed exactly;
    `train.student.student` makes one, layer by layer, of a teacher with real weights and ternary activations
    (`quantize/activations/ternary`).

    Attributes:
        threshold: below which a magnitude becomes 0.

    >>> TernaryNetwork.unpack(TernaryNetwork().pack(torch.tensor([0.9, -0.6, 0.2])))
    tensor([ 1., -1.,  0.])
    """

    threshold: float = 0.5

    keeps_zeros = True
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "threshold", self.threshold, 0, 1e30)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`: codes -1, 0 and 1, and a scale of 1.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        codes = torch.sign(weight.detach()) * (weight.detach().abs() > self.threshold)
        return on_grid(weight, codes, weight.new_ones(1).float())

    def confined(self, weight: Tensor) -> Tensor:
        """Returns the weight clipped to -1 .. 1."""
        return weight.clamp(-1, 1)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """The one setting that packs."""
        return (cls(),)


@dataclass(frozen=True, eq=False)
class Neuron:
    """A ternary neuron: +1 where its sum is above `high`, -1 where it is below `low`, else 0.

    Attributes:
        weights: (inputs,), -1, 0 or +1.
        low: whole number, at most `high`.
        high: whole number.
        agreement: mean probability, under the teacher, of what the neuron gives.
    """

    weights: Tensor
    low: int
    high: int
    agreement: float


def thresholds(sums: Tensor, votes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Finds for each column of sums the thresholds that agree best with the votes, by prefix sums.

    Args:
        sums: (samples, candidates), whole numbers.
        votes: (samples, 3): the teacher's probabilities of -1, 0 and +1.

    Returns:
        low, high with low <= high, int64, and the agreement, the sum over the samples, float64; (candidates,) each.

    >>> y = torch.tensor([[-3], [0], [4]])
    >>> low, high, agreement = thresholds(y, torch.eye(3))
    >>> -3 < int(low) <= 0 <= int(high) < 4, float(agreement)
    (True, 3.0)
    """
    start = int(sums.min()) - 1
    size = int(sums.max()) + 1 - start + 1
    count = sums.shape[1]
    places = (sums.long() - start + torch.arange(count) * size).flatten()
    counts = [
        torch.bincount(places, vote.double().repeat_interleave(count), count * size).reshape(count, size)
        for vote in votes.T
    ]
    # below[k] is what lies at places less than k: a place counts as -1 below `low`, as +1 above `high`.
    minus, zero, plus = (torch.nn.functional.pad(value.cumsum(1), (1, 0)) for value in counts)
    first = (minus - zero)[:, :-1]
    second = (zero - plus)[:, 1:] + plus[:, -1:]
    best, low = first.cummax(1)
    agreement, high = (best + second).max(1)
    return low.gather(1, high[:, None])[:, 0] + start, high + start, agreement


def neuron(weights: Tensor, inputs: Tensor, votes: Tensor, search: Search = "grid") -> Neuron:
    """Finds a ternary neuron that agrees with a teacher's: its p largest weights +1, its q most negative -1, rest 0.

    The score of (p, q), with the best thresholds for it, is the expected agreement under the teacher's random output
    (Alemdar et al. 2017). Exhaustive: all pairs. Grid: every sqrt-th p and q, then all pairs around the best one.
    Dichotomic: p by thirds, and for each p tried q by thirds, as if the score had one summit, then all pairs within
    2 log2 of their numbers around. At least one weight of either sign stays, where there is one.

    Args:
        weights: the teacher's, (inputs,).
        inputs: what the student's neuron sees, (samples, inputs), whole numbers.
        votes: (samples, 3), the teacher's probabilities of -1, 0 and +1.
        search: see above.

    Raises:
        MethodError: shapes that don't fit, inputs that are no whole numbers, no sample, or an unknown search.
    """
    if search not in SEARCHES:
        raise MethodError(f"{NAME}: no search '{search}'; there are {', '.join(SEARCHES)}")
    if inputs.ndim != 2 or inputs.shape[1:] != weights.shape or votes.shape != (len(inputs), 3) or not len(inputs):
        raise MethodError(
            f"{NAME}: inputs {tuple(inputs.shape)} and votes {tuple(votes.shape)} for {len(weights)} weights"
        )
    if not torch.equal(inputs, inputs.round()):
        raise MethodError(f"{NAME}: a student's inputs must be whole numbers; put a ternary quantizer in front of it")
    order = weights.double().argsort(descending=True, stable=True)
    positive = order[: int((weights > 0).sum())]
    negative = order.flip(0)[: int((weights < 0).sum())]
    above, below = (_sums(inputs, side) for side in (positive, negative))

    def scored(pairs: Tensor) -> Scored:
        found: list[Scored] = []
        for part in torch.split(pairs, max(1, MOST // len(inputs))):
            low, high, agreement = thresholds(above[:, part[:, 0]] - below[:, part[:, 1]], votes)
            at = int(agreement.argmax())
            found.append((float(agreement[at]), tuple(part[at].tolist()), int(low[at]), int(high[at])))
        return max(found, key=lambda item: item[0])

    ranges = [range(int(len(side) > 0), len(side) + 1) for side in (positive, negative)]
    agreement, (p, q), low, high = SEARCHES[search](scored, ranges)
    kept = torch.zeros_like(weights)
    kept[positive[:p]], kept[negative[:q]] = 1, -1
    return Neuron(kept, low, high, agreement / len(inputs))


def _exhaustive(scored: Score, ranges: list[range]) -> Scored:
    return scored(torch.cartesian_prod(*(torch.tensor(list(one)) for one in ranges)))


def _around(scored: Score, ranges: list[range], best: Scored, widths: list[int]) -> Scored:
    """The best of all pairs that are no further than `widths` from one, and of that one."""
    near = [range(max(r[0], at - w), min(r[-1], at + w) + 1) for r, at, w in zip(ranges, best[1], widths)]
    return max(best, _exhaustive(scored, near), key=lambda item: item[0])


def _grid(scored: Score, ranges: list[range]) -> Scored:
    steps = [max(1, round(one[-1] ** 0.5)) for one in ranges]
    ends = [torch.tensor(sorted({*one[::step], one[-1]})) for one, step in zip(ranges, steps)]
    best = scored(torch.cartesian_prod(*ends))
    return best if max(steps) == 1 else _around(scored, ranges, best, steps)


def _dichotomic(scored: Score, ranges: list[range]) -> Scored:
    def of(p: int) -> Scored:
        return _thirds(lambda q: scored(torch.tensor([[p, q]])), ranges[1])

    best = _thirds(of, ranges[0])
    return _around(scored, ranges, best, [math.ceil(2 * math.log2(len(one) + 1)) for one in ranges])


def _thirds(score: Callable[[int], Scored], places: range) -> Scored:
    """The best of what is tried where two places divide what is left by three, and the third by the worse goes."""
    tried: dict[int, Scored] = {}

    def at(place: int) -> Scored:
        if place not in tried:
            tried[place] = score(place)
        return tried[place]

    low, high = places[0], places[-1]
    while high - low > 2:
        third = (high - low) // 3
        if at(low + third)[0] < at(high - third)[0]:
            low += third
        else:
            high -= third
    return max((*tried.values(), *(at(place) for place in range(low, high + 1))), key=lambda item: item[0])


SEARCHES: dict[str, Callable[[Score, list[range]], Scored]] = {
    "grid": _grid,
    "exhaustive": _exhaustive,
    "dichotomic": _dichotomic,
}


def _sums(inputs: Tensor, order: Tensor) -> Tensor:
    """Sums of the first 0, 1, 2 ... inputs in this order: (samples, order + 1), int64."""
    return torch.nn.functional.pad(inputs[:, order].long().cumsum(1), (1, 0))
