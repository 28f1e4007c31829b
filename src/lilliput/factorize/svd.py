"""Truncated singular value decomposition of a weight seen as a matrix: two thin factors in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.factorize import chain
from lilliput.factorize.rank import (
    RULES,
    TOGETHER,
    check_rule,
    check_smaller,
    precise,
    rank_by,
    rank_for_ratio,
    shared_ranks,
)
from lilliput.solve.low_rank import truncated_svd

NAME = "factorize/svd"
VIEWS = ("out", "in", "space")


@dataclass(frozen=True)
class Svd(WeightMethod):
    """W (m x n) ~ U V with U (m x r) and V (r x n), the best approximation of rank r (Eckart and Young 1936).

    A convolution (N, C, kh, kw) is seen as one of three matrices: N x (C kh kw), then it is a convolution to r
    channels and one of extent 1; C x (N kh kw), the same the other way round; or (C kh) x (kw N), a kh x 1 and a
    1 x kw convolution. The singular values are split evenly, U = U_r sqrt(S_r) and V = sqrt(S_r) V_r^T, which
    balances the gradients. The squared error is the sum of the squared singular values left out. The factors hold
    r (m + n) numbers, so that r < m n / (m + n) pays. A rank that is known and small is found in large matrices by
    random projections (Halko, Martinsson and Tropp 2011, arXiv 0909.4061), whose error is a little above the least.

    Attributes:
        rank: number of singular values kept; 0 to go by `rule`.
        energy: keep the fewest singular values with sum s_i^2 >= energy * sum of all, 0 < energy <= 1.
        force: factorize even where the factors hold more numbers than the weight.
        view: `"out"`, `"in"` or `"space"`, see above.
        rule: `"energy"`; `"ratio"`, r = floor(ratio m n / (m + n)); `"evbmf"`, what stands out of the noise; or
            `"budget"`: all weights of the rule together keep `ratio` of their numbers, the sum of their squared
            errors, each over what `"ratio"` would leave of it, as small as can be, by an exact knapsack in which a
            weight may also stay dense.
        ratio: the part of the numbers to be kept, 0 < ratio <= 1.

    >>> packed = Svd(rank=1).pack(torch.ones(4, 5))
    >>> packed.parts["u"].shape, bool(torch.allclose(Svd.unpack(packed), torch.ones(4, 5)))
    (torch.Size([4, 1]), True)
    """

    rank: int = 0
    energy: float = 0.95
    force: bool = False
    view: Literal["out", "in", "space"] = "out"
    rule: Literal["energy", "ratio", "evbmf", "budget"] = "energy"
    ratio: float = 0.5

    into = ("u", "v")
    training = "parts"
    trained = ("u", "v")
    exact = True

    def __post_init__(self) -> None:
        check_range(NAME, "rank", self.rank, 0, 2**31)
        check_range(NAME, "energy", self.energy, 1e-6, 1)
        check_range(NAME, "ratio", self.ratio, 1e-6, 1)
        check_rule(NAME, self.rule, (*RULES, TOGETHER))
        if self.view not in VIEWS:
            raise MethodError(f"{NAME}: view = '{self.view}' is none of {', '.join(VIEWS)}")

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `u` (m x r) and `v` (r x n), in the weight's dtype.

        Raises:
            NotWorthwhile: if the factors would hold more numbers than the weight.
            MethodError: if the weight has fewer than two axes (four, for the view "space"), or isn't finite.
        """
        check_weight(weight, NAME)
        matrix = as_matrix(weight, self.view)
        shape = (matrix.shape[0], matrix.shape[1])
        rank = min(self.rank, *shape) if self.rank else self._rank(matrix)
        check_smaller(NAME, rank * sum(shape), weight, f"rank {rank} of a {shape[0]} x {shape[1]} matrix", self.force)
        left, values, right = truncated_svd(precise(matrix), rank)
        root = values.sqrt()
        return packed_factors(weight, left * root, root[:, None] * right, self.view)

    def _rank(self, matrix: Tensor) -> int:
        shape = (matrix.shape[0], matrix.shape[1])
        if self.rule in ("ratio", TOGETHER):
            return min(rank_for_ratio(*shape, self.ratio), *shape)
        return rank_by(self.rule, torch.linalg.svdvals(precise(matrix)), shape, self.energy, self.ratio)

    @property
    def together(self) -> bool:
        """Whether one weight's rank depends on the others'."""
        return self.rule == TOGETHER and not self.rank

    def allot(self, weights: Mapping[str, Tensor], stats: Mapping[str, Any]) -> dict[str, WeightMethod]:
        """Chooses the ranks of all weights at once."""
        matrices = {name: precise(as_matrix(weight.detach(), self.view)) for name, weight in weights.items()}
        spectra = {n: (torch.linalg.svdvals(matrix), (len(matrix), matrix.shape[1])) for n, matrix in matrices.items()}
        ranks = shared_ranks(NAME, spectra, self.ratio)
        return {name: replace(self, rank=rank, force=False) for name, rank in ranks.items()}

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the product of the factors in the weight's shape."""
        rows, columns = _sizes(packed)
        u, v = packed.tensor("u", integer=False), packed.tensor("v", integer=False)
        if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[0] or (u.shape[0], v.shape[1]) != (rows, columns):
            raise MethodError(f"{NAME}: factors {tuple(u.shape)} and {tuple(v.shape)} don't make {packed.shape}")
        if not u.dtype == v.dtype == packed.dtype or not (u.shape[1] or rows * columns == 0):
            # Rank 0 would make a weight of any size out of nothing; wider factors, one wider than the file declared.
            raise MethodError(
                f"{NAME}: factors {u.dtype} {tuple(u.shape)} and {v.dtype} {tuple(v.shape)} of {packed.dtype}"
            )
        first, last = _axes(_view(packed), len(packed.shape))
        order = (*first, *last)
        product = (u @ v).reshape([packed.shape[axis] for axis in order])
        # Contiguous, since what is computed with a weight depends on its layout in the last bit.
        return product.permute([order.index(axis) for axis in range(len(order))]).contiguous().to(packed.dtype)

    @staticmethod
    def layers(packed: Packed, layer: nn.Module) -> nn.Sequential:
        """Returns the two layers that do what `layer` does with the unpacked weight.

        Args:
            packed: by this method, its parts tensors.
            layer: linear, or a convolution; its bias goes to the last of the two. One of several groups needs the
                view "out": the first layer gives r channels for each group, all by the same filters.

        Raises:
            MethodError: if the layer is of another kind or shape.
        """
        view, made = _view(packed), layer
        chain.check_layer(packed, layer, grouped=view == "out")
        Svd.unpack(packed)
        u, v = packed.tensor("u"), packed.tensor("v")
        bias: Any = layer.bias
        if isinstance(made, nn.Linear):
            first, last = (v, u) if view == "out" else (u.T, v.T)
            return nn.Sequential(chain.linear(first), chain.linear(last, bias))
        assert isinstance(made, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        out, channels, *window = packed.shape
        axes = range(len(window))
        if view == "out":
            groups = made.groups
            wide = v.reshape(-1, channels, *window).repeat(groups, *[1] * (len(window) + 1))
            return nn.Sequential(
                chain.convolution(wide, made, axes, groups=groups), chain.pointwise(u, made, bias, groups=groups)
            )
        if view == "in":
            wide = v.reshape(-1, out, *window).transpose(0, 1)
            return nn.Sequential(chain.pointwise(u.T, made), chain.convolution(wide, made, axes, bias=bias))
        down = u.reshape(channels, window[0], 1, -1).permute(3, 0, 1, 2)
        across = v.reshape(-1, 1, window[1], out).permute(3, 0, 1, 2)
        return nn.Sequential(chain.convolution(down, made, (0,)), chain.convolution(across, made, (1,), bias=bias))

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes those rows of `u`, or columns of `v`, that belong to the indices which stay."""
        shape = cut_shape(packed, axis, kept)
        first, last = _axes(_view(packed), len(packed.shape))
        part, axes, own = ("u", first, 0) if axis in first else ("v", last, 1)
        sizes = [packed.shape[a] for a in axes]
        places = torch.arange(torch.Size(sizes).numel(), device=kept.device).reshape(sizes)
        wanted = places.index_select(axes.index(axis), kept).flatten()
        return replace(packed.with_parts(**{part: take(packed.parts[part], own, wanted)}), shape=shape)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """Energies from 80 % to 99 %."""
        return tuple(cls(energy=energy) for energy in (0.8, 0.9, 0.95, 0.99))


def packed_factors(weight: Tensor, u: Tensor, v: Tensor, view: str) -> Packed:
    """Returns the packed form of a weight ~ u v, (m x r) and (r x n) of its matrix in this view."""
    parts = {"u": u.to(weight.dtype).contiguous(), "v": v.to(weight.dtype).contiguous()}
    return Packed(NAME, tuple(weight.shape), weight.dtype, parts, {} if view == "out" else {"view": view})


def as_matrix(weight: Tensor, view: str) -> Tensor:
    """Returns a weight as the matrix of this view.

    Raises:
        MethodError: if it has too few axes.

    >>> as_matrix(torch.zeros(8, 4, 3, 5), "space").shape
    torch.Size([12, 40])
    """
    if weight.ndim < 2 or (view == "space" and weight.ndim != 4):
        what = "four axes for the view 'space'" if view == "space" else "two or more axes"
        raise MethodError(f"{NAME}: needs a weight of {what}, not of shape {tuple(weight.shape)}")
    first, last = _axes(view, weight.ndim)
    sizes = [torch.Size([weight.shape[axis] for axis in axes]).numel() for axes in (first, last)]
    return weight.permute(*first, *last).reshape(sizes)


def _axes(view: str, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The weight's axes that are the matrix's rows, and those that are its columns."""
    if view == "space":
        return (1, 2), (3, 0)
    return ((0,), tuple(range(1, count))) if view == "out" else ((1,), (0, *range(2, count)))


def _view(packed: Packed) -> str:
    view = packed.settings.get("view", "out")
    if view not in VIEWS:
        raise MethodError(f"{NAME}: view = {view!r} is none of {', '.join(VIEWS)}")
    return str(view)


def _sizes(packed: Packed) -> tuple[int, int]:
    view = _view(packed)
    if len(packed.shape) < 2 or (view == "space" and len(packed.shape) != 4):
        raise MethodError(f"{NAME}: shape {packed.shape} is no matrix")
    first, last = _axes(view, len(packed.shape))
    rows, columns = (torch.Size([packed.shape[axis] for axis in axes]).numel() for axes in (first, last))
    return rows, columns
