"""Extremely low bits by ADMM: the nearest of 0, +-1, +-2 ... +-2^k times a scale, found exactly, and the splitting."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, unpack
from lilliput.quantize.uniform import Uniform, filters, on_grid

NAME = "quantize/admm"


@dataclass(frozen=True)
class Admm(WeightMethod):
    """min |w - a q|^2 over a > 0 and q in {0, +-1, +-2, +-4 ... +-top}, or in {+-1}.

    Leng et al. 2018 (arXiv 1707.09870), who alternate between a and q, which is a local search. Here exactly: q(a)
    changes only at |w_i| / t_j with the midpoints t between levels; between two of these the best a gives
    |w|^2 - S^2 / N with S = sum |w| |q|, N = sum q^2, both of which cumulative sums over the sorted points give.
    In every set, an exact zero stays zero. `Splitting` does the training.

    Attributes:
        top: the largest level, a power of two from 1 to 64; the paper's sets end at 1, 2 and 4.
        zero: whether 0 is a level; without it `top` must be 1, and an exact zero still stays one.
        projection: `"exact"` or `"alternating"` (the paper's).
        per: one scale per tensor or per row.

    >>> packed = Admm(top=2).pack(torch.tensor([2.1, -0.9, 1.0, 0.1]))
    >>> packed.parts["codes"].tolist()
    [2, -1, 1, 0]
    """

    top: int = 4
    zero: bool = True
    projection: Literal["exact", "alternating"] = "exact"
    per: Literal["tensor", "row"] = "tensor"

    into = ("scale",)
    keeps_zeros = True
    exact = True
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "top", self.top, 1, 64)
        if self.top & (self.top - 1) or (self.top > 1 and not self.zero):
            raise MethodError(f"{NAME}: top = {self.top} must be a power of two, and 1 without zero")
        if self.projection not in {"exact", "alternating"} or self.per not in {"tensor", "row"}:
            raise MethodError(f"{NAME}: no projection '{self.projection}' or per '{self.per}'")

    @property
    def levels(self) -> tuple[int, ...]:
        """The magnitudes, ascending.

        >>> Admm(top=8).levels, Admm(top=1, zero=False).levels
        ((0, 1, 2, 4, 8), (1,))
        """
        powers = tuple(2**power for power in range(self.top.bit_length()))
        return (0, *powers) if self.zero else powers

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        per, rows = filters(weight, self.per)
        work = rows.double()
        top = work.abs().amax(1, keepdim=True) if work.numel() else work.new_zeros(len(work), 1)
        unit = work.abs() / torch.where(top > 0, top, 1)
        find = exact_levels if self.projection == "exact" else alternating_levels
        level = find(unit, self.levels) * (unit > 0)
        scale = (unit * level).sum(1) / level.square().sum(1).clamp(min=1) * top[:, 0]
        return on_grid(weight, level * torch.sign(work), scale.to(rows.dtype), per)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """Three, five, seven and nine levels."""
        return tuple(cls(top=top) for top in (1, 2, 4, 8))


def exact_levels(rows: Tensor, levels: Sequence[int]) -> Tensor:
    """Returns the magnitudes q of the best a q for each row, by a scan over all breakpoints; O(n L log(n L)).

    Args:
        rows: (rows, n) of |w|, float64.
        levels: magnitudes, ascending.
    """
    if len(levels) == 1 or not rows.numel():
        return torch.full_like(rows, float(levels[0]))
    steps = rows.new_tensor([high - low for low, high in itertools.pairwise(levels)])
    squares = rows.new_tensor([high**2 - low**2 for low, high in itertools.pairwise(levels)])
    middles = rows.new_tensor([(high + low) / 2 for low, high in itertools.pairwise(levels)])
    points = (rows[:, :, None] / middles).flatten(1)
    order = points.sort(dim=1, descending=True, stable=True).indices
    gained = (rows[:, :, None] * steps).flatten(1).gather(1, order).cumsum(1)
    size = squares.expand(*rows.shape, -1).flatten(1).gather(1, order).cumsum(1)
    last = (gained.square() / size).argmax(1, keepdim=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return ((rank <= last).reshape(*rows.shape, -1) * steps).sum(2)


def alternating_levels(rows: Tensor, levels: Sequence[int], rounds: int = 20) -> Tensor:
    """Returns magnitudes by turns: the nearest level of |w| / a, then a = |w|.q / q.q, from a = mean|w|."""
    middles = rows.new_tensor([(high + low) / 2 for low, high in itertools.pairwise(levels)])
    table = rows.new_tensor(levels)
    scale = rows.sum(1, keepdim=True) / max(rows.shape[1], 1)
    found = torch.ones_like(rows)
    for _ in range(rounds):
        found = table[torch.bucketize(rows / torch.where(scale > 0, scale, 1), middles, right=True)]
        scale = (rows * found).sum(1, keepdim=True) / found.square().sum(1, keepdim=True).clamp(min=1)
    return found


@dataclass
class Splitting:
    """Training by ADMM: min f(W) subject to W = G, G in the set; scaled dual U.

    L = f(W) + (rho / 2) |W - G + U|^2; add `loss()` to f in each step on W, then call `update()` now and then: G is
    the nearest packed value to W + U, U grows by W - G. In the end `finish()` sets W to G.

    Attributes:
        weights: the parameters that are to become low-bit.
        method: gives the nearest point: any weight method, such as `Admm()`.
        rho: weight of the penalty.

    >>> w = torch.nn.Parameter(torch.tensor([0.9, -0.2]))
    >>> split = Splitting([w], Admm(top=1), rho=0.1)
    >>> split.update()
    >>> split.finish()
    >>> w.detach()
    tensor([0.9000, 0.0000])
    """

    weights: Sequence[Tensor]
    method: WeightMethod
    rho: float = 1e-3
    targets: list[Tensor] = field(init=False)
    duals: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        check_range(NAME, "rho", self.rho, 1e-12, 1e12)
        self.targets = [self._nearest(weight.detach()) for weight in self.weights]
        self.duals = [torch.zeros_like(weight) for weight in self.weights]

    def _nearest(self, weight: Tensor) -> Tensor:
        return unpack(self.method.pack(weight))

    def loss(self) -> Tensor:
        """Returns (rho / 2) sum |W - G + U|^2."""
        terms = [(w - g + u).square().sum() for w, g, u in zip(self.weights, self.targets, self.duals)]
        return torch.stack(terms).sum() * (self.rho / 2)

    def update(self) -> None:
        """Moves G to the nearest point to W + U, then U by W - G."""
        for place, weight in enumerate(self.weights):
            latent = weight.detach()
            self.targets[place] = self._nearest(latent + self.duals[place])
            self.duals[place] = self.duals[place] + latent - self.targets[place]

    def gap(self) -> float:
        """Returns |W - G|, which goes to 0 as ADMM converges."""
        squares = [(w.detach() - g).double().square().sum() for w, g in zip(self.weights, self.targets)]
        return float(torch.stack(squares).sum().sqrt())

    def finish(self) -> None:
        """Sets W to G."""
        with torch.no_grad():
            for weight, target in zip(self.weights, self.targets):
                weight.copy_(target)


def extragradient(
    weights: Sequence[Tensor], gradient: Callable[[], Sequence[Tensor]], predict: float, correct: float
) -> None:
    """Makes one extragradient step: W' = W - predict g(W), then W = W - correct g(W'), in place.

    Args:
        weights: changed in place.
        gradient: returns the gradients at what the weights are now; another batch each time if it likes.
        predict: rate of the look ahead.
        correct: rate of the step.
    """
    before = [weight.detach().clone() for weight in weights]
    for rate in (predict, correct):
        grads = gradient()
        with torch.no_grad():
            for weight, start, grad in zip(weights, before, grads):
                weight.copy_(start - rate * grad)
