"""Tucker-2: a 1 x 1 convolution to fewer channels, a small core convolution, and a 1 x 1 convolution back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range
from lilliput.core.errors import NotWorthwhile
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.factorize import chain
from lilliput.factorize.rank import check_rule, check_smaller, evbmf, packed_as, precise, rank_for_energy
from lilliput.solve.tucker import best, unfoldings

NAME = "factorize/tucker"


@dataclass(frozen=True)
class Tucker(WeightMethod):
    """W[n, c, y, x] ~ sum_ab U[n, a] G[a, b, y, x] V[b, c]: HOSVD, then HOOI sweeps, which never make it worse.

    Kim et al. 2016 (arXiv 1511.06530), who take both ranks by EVBMF. It holds C b + a b kh kw + a N numbers. The first
    1 x 1 convolution runs at the input's resolution, the core has the stride. With one basis alone (Tucker-1, as for
    a first layer of three channels, or a linear one) it is `factorize/svd` with the view `"out"` or `"in"`.

    Attributes:
        rank_out: a; 0 to go by `rule`.
        rank_in: b; 0 to go by `rule`.
        rule: `"energy"` of each unfolding; `"evbmf"`, what stands out of the noise in each; or `"ratio"`, both ranks
            the same part of their axis, so that the numbers are `ratio` of the weight's.
        energy: 0 < energy <= 1.
        ratio: 0 < ratio <= 1.
        weakening: r' = r_max - weakening (r_max - r) of what the rule found, 0 < weakening <= 1.
        sweeps: of HOOI, at most.
        force: factorize even where the factors hold more numbers than the weight.

    >>> packed = Tucker(rank_out=1, rank_in=1).pack(torch.ones(4, 5, 3, 3))
    >>> [tuple(part.shape) for part in packed.parts.values()]
    [(4, 1), (1, 1, 3, 3), (1, 5)]
    """

    rank_out: int = 0
    rank_in: int = 0
    rule: Literal["energy", "ratio", "evbmf"] = "evbmf"
    energy: float = 0.95
    ratio: float = 0.5
    weakening: float = 1.0
    sweeps: int = 10
    force: bool = False

    into = ("out", "core", "in")
    training = "parts"
    trained = ("out", "core", "in")

    def __post_init__(self) -> None:
        for name in ("rank_out", "rank_in"):
            check_range(NAME, name, getattr(self, name), 0, 2**31)
        for name in ("energy", "ratio", "weakening"):
            check_range(NAME, name, getattr(self, name), 1e-6, 1)
        check_range(NAME, "sweeps", self.sweeps, 0, 10**6)
        check_rule(NAME, self.rule)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `out` (N, a), `core` (a, b, ...) and `in` (b, C), in the weight's dtype.

        Raises:
            NotWorthwhile: if the factors would hold more numbers than the weight.
            MethodError: if the weight has fewer than three axes, or isn't finite.
        """
        chain.check_convolution(weight, NAME)
        tensor = precise(weight).flatten(2)
        scale = float(tensor.abs().max()) or 1.0
        tensor = tensor / scale
        a, b = self._ranks(tensor)
        out, channels, area = tensor.shape
        numbers = channels * b + a * b * area + a * out
        check_smaller(NAME, numbers, weight, f"ranks {a} and {b} of {tuple(weight.shape)}", self.force)
        if (a, b) == (out, channels) and not self.force:
            raise NotWorthwhile(f"{NAME}: {tuple(weight.shape)} has full rank in both axes")
        left, right, core = best(tensor, (a, b), self.sweeps)
        # The same norm for all three, as in balanced factors of a product: gradients of one size.
        size = float(core.norm()) * scale
        share = (size / max(math.sqrt(a * b), 1.0)) ** (1 / 3) if size else 1.0
        parts = {
            "out": left * share,
            "core": (core * (scale / share**2)).reshape(a, b, *weight.shape[2:]),
            "in": right.T * share,
        }
        return packed_as(NAME, weight, parts)

    def _ranks(self, tensor: Tensor) -> tuple[int, int]:
        sizes, wanted = tensor.shape[:2], (self.rank_out, self.rank_in)
        if all(wanted):
            return min(wanted[0], sizes[0]), min(wanted[1], sizes[1])
        if self.rule == "ratio":
            part = equal_part(tuple(tensor.shape), self.ratio)
            found = [max(1, math.floor(part * size + 1e-9)) for size in sizes]
        else:
            found = []
            for matrix in unfoldings(tensor):
                values = torch.linalg.svdvals(matrix)
                shape = (matrix.shape[0], matrix.shape[1])
                found.append(
                    evbmf(values, shape).rank if self.rule == "evbmf" else rank_for_energy(values, self.energy)
                )
        weaker = [round(size - self.weakening * (size - rank)) for size, rank in zip(sizes, found)]
        # An unfolding taller than wide has no more vectors than columns.
        most = [min(matrix.shape) for matrix in unfoldings(tensor)]
        ranks = [min(max(given or rank, 1), top) for given, rank, top in zip(wanted, weaker, most)]
        return ranks[0], ranks[1]

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the composed kernels in the weight's shape."""
        left, core, right = _checked(packed)
        (a, b), middle = core.shape[:2], core.flatten(2)
        # The smaller of the two in the middle is never larger than both the core and the weight.
        if len(left) * b <= a * right.shape[1]:
            value = right.T @ (left @ middle.flatten(1)).reshape(len(left), b, -1)
        else:
            value = (left @ (right.T @ middle).flatten(1)).reshape(len(left), right.shape[1], -1)
        return value.reshape(packed.shape)

    @staticmethod
    def layers(packed: Packed, layer: nn.Module) -> nn.Sequential:
        """Returns the three convolutions that do what `layer` does with the unpacked weight; see `chain.in_turn`."""
        left, core, right = _checked(packed)
        return chain.in_turn(packed, layer, [(right, (), 1), (core, range(core.ndim - 2), 1), (left, (), 1)])

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes rows of `out`, columns of `in`, or positions of the core."""
        name, own = {0: ("out", 0), 1: ("in", 1)}.get(axis, ("core", axis))
        parts = {name: take(packed.parts[name], own, kept)}
        return replace(packed.with_parts(**parts), shape=cut_shape(packed, axis, kept))

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """A quarter, half and three quarters of the numbers."""
        return tuple(cls(rule="ratio", ratio=ratio) for ratio in (0.25, 0.5, 0.75))


def equal_part(shape: tuple[int, ...], ratio: float, blocks: int = 1) -> float:
    """Returns t such that ranks t N and t C, split over blocks, hold `ratio` N C S numbers in all.

    t (N^2 + C^2) + t^2 N C S / blocks = ratio N C S.

    Args:
        shape: (N, C, S).
        ratio: see above.
        blocks: of `factorize/block_term`; 1 for Tucker-2.

    >>> round(equal_part((10, 10, 9), 1.0), 3)
    0.895
    """
    out, channels, area = shape
    linear, square = out**2 + channels**2, out * channels * area / blocks
    wanted = ratio * out * channels * area
    return (math.sqrt(linear**2 + 4 * square * wanted) - linear) / (2 * square)


def _checked(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    left, core, right = chain.factors(packed, "out", "core", "in")
    a, b = (*core.shape, 0, 0)[:2]
    sizes = tuple(left.shape), tuple(core.shape), tuple(right.shape)
    wanted = (packed.shape[0], a), (a, b, *packed.shape[2:]), (b, packed.shape[1])
    if sizes != wanted or not a * b:
        raise chain.misfit(packed, left, core, right)
    return left, core, right
