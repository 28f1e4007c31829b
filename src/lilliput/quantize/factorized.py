"""Ternary factors: a matrix as X diag(d) Y^T with X and Y of -1, 0 and 1 (semi-discrete decomposition)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.quantize.ternary import best_live

NAME = "quantize/factorized"


@dataclass(frozen=True)
class Factorized(WeightMethod):
    """W (m x n) ~ X diag(d) Y^T with X (m x k), Y (n x k) ternary and d >= 0, one term after the other.

    Fixed-point factorized networks (Wang and Cheng 2017, arXiv 1611.01972) by the semi-discrete decomposition (Kolda
    and O'Leary 1998): each term maximises (x^T R y)^2 / (|x|^2 |y|^2) over x and y in turns, which is sorting, and
    lowers |R|^2 by just that; d = x^T R y / (|x|^2 |y|^2). A convolution is the matrix out x (in kh kw). While training
    goes on X and Y stay and d is trained.

    Attributes:
        rank: k; 0 goes by `ratio`.
        ratio: k in parts of min(m, n).
        tolerance: the turns end when a round gains less than this part.

    >>> packed = Factorized(rank=1).pack(torch.tensor([[2.0, 0.0, -2.0], [-2.0, 0.0, 2.0]]))
    >>> packed.parts["d"].tolist(), packed.parts["x"].flatten().tolist(), packed.parts["y"].flatten().tolist()
    ([2.0], [1, -1], [1, 0, -1])
    """

    rank: int = 0
    ratio: float = 1.0
    tolerance: float = 0.01

    into = ("d",)
    training = "parts"
    trained = ("d",)
    frozen = ("x", "y")
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "rank", self.rank, 0, 2**20)
        check_range(NAME, "ratio", self.ratio, 1e-6, 64)
        check_range(NAME, "tolerance", self.tolerance, 0, 1)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `x` (int8, m x k), `d` (k) and `y` (int8, n x k).

        Raises:
            MethodError: if the weight has fewer than two axes, or isn't finite.
        """
        check_weight(weight, NAME)
        if weight.ndim < 2 or not weight.numel():
            raise MethodError(f"{NAME}: needs a weight of two or more axes, not of shape {tuple(weight.shape)}")
        matrix = weight.detach().reshape(len(weight), -1).double()
        top = float(matrix.abs().max())
        rank = self.rank or max(1, round(self.ratio * min(matrix.shape)))
        x, d, y = decomposed(matrix / (top or 1.0), rank, self.tolerance)
        d = (d * top).to(torch.promote_types(weight.dtype, torch.float32))
        parts = {"x": x.to(torch.int8), "d": d, "y": y.to(torch.int8)}
        return Packed(NAME, tuple(weight.shape), weight.dtype, parts)

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns X diag(d) Y^T, multiplied in float64."""
        if len(packed.shape) < 2:
            raise MethodError(f"{NAME}: shape {packed.shape} is no matrix")
        rows, columns = packed.shape[0], math.prod(packed.shape[1:])
        x, y = packed.tensor("x", integer=True), packed.tensor("y", integer=True)
        d = packed.tensor("d", integer=False)
        if d.ndim != 1 or not len(d) or x.dtype != torch.int8 or y.dtype != torch.int8:
            raise MethodError(f"{NAME}: factors of {x.dtype} and {y.dtype}, d of shape {tuple(d.shape)}")
        if x.shape != (rows, len(d)) or y.shape != (columns, len(d)):
            raise MethodError(f"{NAME}: factors {tuple(x.shape)} and {tuple(y.shape)} don't make {packed.shape}")
        return ((x.double() * d.double()) @ y.double().T).reshape(packed.shape).to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes rows of `x`, or those rows of `y` that belong to the indices which stay."""
        shape = cut_shape(packed, axis, kept)
        if axis == 0:
            return replace(packed.with_parts(x=take(packed.parts["x"], 0, kept)), shape=shape)
        places = torch.arange(math.prod(packed.shape[1:]), device=kept.device).reshape(packed.shape[1:])
        wanted = places.index_select(axis - 1, kept).flatten()
        return replace(packed.with_parts(y=take(packed.parts["y"], 0, wanted)), shape=shape)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """A half, one and two times as many terms as the smaller side."""
        return tuple(cls(ratio=ratio) for ratio in (0.5, 1.0, 2.0))


def decomposed(matrix: Tensor, rank: int, tolerance: float = 0.01, turns: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Returns X (m x k), d (k) and Y (n x k); fewer than `rank` terms once nothing is left, but one at least.

    Args:
        matrix: m x n, float64.
        rank: most terms.
        tolerance: the turns of a term end when one gains less than this part.
        turns: at most.
    """
    rest = matrix.clone()
    terms: list[tuple[Tensor, float, Tensor]] = []
    for _ in range(rank):
        y = _ternary(rest[rest.square().sum(1).argmax()])
        gained = -1.0
        for _ in range(turns):
            x = _ternary(rest @ y)
            y = _ternary(x @ rest)
            inner, size = float(x @ rest @ y), float(x.square().sum() * y.square().sum())
            value = inner**2 / max(size, 1)
            if value <= gained * (1 + tolerance):
                break
            gained = value
        scale = inner / max(size, 1)
        if terms and not scale:
            break
        terms.append((x, scale, y))
        rest = rest - scale * torch.outer(x, y)
    x, y = torch.stack([x for x, _, _ in terms], 1), torch.stack([y for _, _, y in terms], 1)
    return x, matrix.new_tensor([scale for _, scale, _ in terms]), y


def _ternary(values: Tensor) -> Tensor:
    """The ternary x that maximises (x.values)^2 / |x|^2."""
    return torch.sign(values) * best_live(values.abs()[None])[0]
