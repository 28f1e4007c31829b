"""CP: a convolution as a sum of R products of vectors, one for each axis: four thin layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.factorize import chain
from lilliput.factorize.rank import check_smaller, packed_as, precise
from lilliput.solve import alternating

NAME = "factorize/cp"


@dataclass(frozen=True)
class Cp(WeightMethod):
    """W[n, c, y, x] ~ sum_r A[n, r] B[c, r] Y[y, r] X[x, r]: 1 x 1, depthwise k x 1, depthwise 1 x k, 1 x 1.

    Lebedev et al. 2015 (arXiv 1412.6553). It holds R (N + C + kh + kw) numbers. With `"three"` both spatial axes are
    one, W ~ sum_r A[n, r] B[c, r] K[y x, r], a depthwise k x k convolution in the middle, R (N + C + kh kw) numbers.
    Fitted by alternating least squares from the singular vectors and from random starts.

    For large R no best approximation need exist: terms grow and cancel one another, and fine-tuning explodes. So the
    sensitivity of the factors is then lowered as far as the squared error doesn't grow by more than `growth` of itself
    (error-preserving correction, Phan et al. 2020, arXiv 2008.05441). Train with a small rate all the same.

    Attributes:
        rank: R; 0 to go by `ratio`.
        form: `"four"` or `"three"` layers.
        ratio: the part of the numbers to be kept, 0 < ratio <= 1.
        growth: see above; 0 for no correction.
        sweeps: of alternating least squares.
        restarts: random starts.
        force: factorize even where the factors hold more numbers than the weight.
        degeneracy: most that the terms' squared norms may add up to, over the weight's; where they have grown further,
            cancelling one another, the weight is kept as it is.

    >>> packed = Cp(rank=1).pack(torch.ones(6, 5, 3, 3))
    >>> bool(torch.allclose(Cp.unpack(packed), torch.ones(6, 5, 3, 3))), sum(p.numel() for p in packed.parts.values())
    (True, 17)
    """

    rank: int = 0
    form: Literal["four", "three"] = "four"
    ratio: float = 0.5
    growth: float = 0.02
    sweeps: int = 30
    restarts: int = 1
    force: bool = False
    degeneracy: float = 1e3

    into = ("out", "in", "space")
    training = "parts"
    trained = ("out", "in", "space")

    def __post_init__(self) -> None:
        check_range(NAME, "rank", self.rank, 0, 2**31)
        check_range(NAME, "ratio", self.ratio, 1e-6, 1)
        check_range(NAME, "growth", self.growth, 0, 1e6)
        check_range(NAME, "sweeps", self.sweeps, 1, 10**6)
        check_range(NAME, "restarts", self.restarts, 0, 10**4)
        check_range(NAME, "degeneracy", self.degeneracy, 1, 1e30)
        if self.form not in {"four", "three"}:
            raise MethodError(f"{NAME}: form = '{self.form}' is neither four nor three")

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `out` (N, R), `in` (C, R) and `space`, in the weight's dtype.

        `space` is (kh + kw, R), the vertical vectors above the horizontal ones; with `"three"` it is (kh kw, R).

        Raises:
            NotWorthwhile: if the factors would hold more numbers than the weight, or the terms diverge.
            MethodError: if the weight has fewer than three axes, or isn't finite.
        """
        chain.check_convolution(weight, NAME)
        tensor = precise(weight)
        tensor = (tensor if self.form == "four" else tensor.flatten(2))[None]
        each = sum(tensor.shape[1:])
        rank = self.rank or max(1, math.floor(self.ratio * weight.numel() / each))
        rank = min(rank, weight.numel() // max(tensor.shape[1:]))
        check_smaller(NAME, rank * each, weight, f"{rank} terms of {tuple(weight.shape)}", self.force)
        factors = alternating.cp(tensor, rank, sweeps=self.sweeps, restarts=self.restarts)
        if self.growth:
            factors = alternating.steadied(tensor, factors, self.growth)
        grown = float(alternating.degeneracy(factors, tensor))
        if not grown <= self.degeneracy:
            raise NotWorthwhile(
                f"{NAME}: {rank} terms of {tuple(weight.shape)} diverge, their squares are {grown:.3g} times the "
                "weight's; take fewer, or raise growth"
            )
        first, second, *space = (factor[0] for factor in factors)
        parts = {"out": first, "in": second, "space": torch.cat(space)}
        return packed_as(NAME, weight, parts, {"form": self.form})

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the sum of the terms in the weight's shape."""
        first, second, space = _checked(packed)
        value = first.new_zeros(len(first), len(second) * torch.Size(packed.shape[2:]).numel())
        # So many terms at a time that what is in between is no larger than the weight.
        for terms in zip(*(torch.split(factor, max(len(first), 1), 1) for factor in (first, second, *space))):
            rest = alternating.khatri_rao([factor[None] for factor in terms[1:]])[0]
            value = value + terms[0] @ rest.T
        return value.reshape(packed.shape)

    @staticmethod
    def layers(packed: Packed, layer: nn.Module) -> nn.Sequential:
        """Returns the four (or three) convolutions that do what `layer` does; see `chain.in_turn`."""
        first, second, space = _checked(packed)
        window, terms = packed.shape[2:], first.shape[1]
        middle: list[chain.Link] = []
        for axis, factor in enumerate(space):
            whole = len(space) != len(window)
            shape = window if whole else [size if own == axis else 1 for own, size in enumerate(window)]
            axes = range(len(window)) if whole else (axis,)
            middle.append((factor.T.reshape(terms, 1, *shape), axes, terms))
        return chain.in_turn(packed, layer, [(second.T, (), 1), *middle, (first, (), 1)])

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes rows of `out` or of `in`."""
        if axis > 1:
            raise NotWorthwhile(f"{NAME}: kernels aren't cut")
        name = ("out", "in")[axis]
        parts = {name: take(packed.parts[name], 0, kept)}
        return replace(packed.with_parts(**parts), shape=cut_shape(packed, axis, kept))

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """An eighth, a quarter and half of the numbers."""
        return tuple(cls(ratio=ratio) for ratio in (0.125, 0.25, 0.5))


def _checked(packed: Packed) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    form = packed.settings.get("form")
    if form not in {"four", "three"}:
        raise MethodError(f"{NAME}: form = {form!r} is neither four nor three")
    first, second, space = chain.factors(packed, "out", "in", "space")
    window = list(packed.shape[2:]) if form == "four" else [torch.Size(packed.shape[2:]).numel()]
    terms = first.shape[1] if first.ndim == 2 else 0
    sizes = tuple(first.shape), tuple(second.shape), tuple(space.shape)
    if sizes != ((packed.shape[0], terms), (packed.shape[1], terms), (sum(window), terms)) or not terms:
        raise chain.misfit(packed, first, second, space)
    return first, second, tuple(torch.split(space, window))
