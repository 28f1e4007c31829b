"""Tensor train: a weight of many axes as a chain of small cores, for matrices and convolutions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.factorize.chain import check_layer
from lilliput.factorize.rank import check_smaller, precise, rank_for_energy

NAME = "factorize/tensor_train"
SIZES = re.compile(r"[1-9]\d{0,8}(x[1-9]\d{0,8}){0,31}")


@dataclass(frozen=True)
class TensorTrain(WeightMethod):
    """W[(i_1 .. i_d), (j_1 .. j_d)] = G_1[i_1, j_1] ... G_d[i_d, j_d], products of r_{k-1} x r_k matrices.

    Novikov et al. 2015 (arXiv 1509.06569), found by TT-SVD (Oseledets 2011): a sequence of truncated SVDs with a
    squared error of at most the sum of all squared singular values left out. With m = prod m_k rows and n = prod n_k
    columns, the first index the slowest, it holds sum r_{k-1} m_k n_k r_k numbers. A convolution has one more core in
    front, G_0[y x] of size 1 x r (Garipov et al. 2016, arXiv 1611.03214). With ranks 1 it is a Kronecker product.

    Attributes:
        rank: largest rank r_k; 0 for any.
        energy: at most this part of the squared weights is lost in all SVDs together, 1 - energy; 0 < energy <= 1.
        cores: d, where the axes are split here: as evenly as their prime factors let them.
        rows: m_1 x .. x m_d, such as `"4x4x4"`, in place of an even split.
        columns: n_1 x .. x n_d likewise.
        force: factorize even where the cores hold more numbers than the weight.

    >>> packed = TensorTrain(rank=1, cores=2).pack(torch.ones(6, 4))
    >>> packed.settings, packed.parts["cores"].shape
    ({'rows': '3x2', 'columns': '2x2', 'ranks': '1x1x1'}, torch.Size([10]))
    """

    rank: int = 8
    energy: float = 1.0
    cores: int = 3
    rows: str = ""
    columns: str = ""
    force: bool = False

    into = ("cores",)
    training = "parts"
    trained = ("cores",)

    def __post_init__(self) -> None:
        check_range(NAME, "rank", self.rank, 0, 2**31)
        check_range(NAME, "energy", self.energy, 1e-6, 1)
        check_range(NAME, "cores", self.cores, 1, 32)
        for text in (self.rows, self.columns):
            if text:
                _sizes(text)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `cores`, all cores one after the other, each (r_{k-1}, m_k, n_k, r_k), in the weight's dtype.

        Raises:
            NotWorthwhile: if the cores would hold more numbers than the weight.
            MethodError: if the weight has fewer than two axes, isn't finite, or `rows` or `columns` don't fit it.
        """
        check_weight(weight, NAME)
        if weight.ndim < 2 or not weight.numel():
            raise MethodError(f"{NAME}: needs a weight of two or more axes, not of shape {tuple(weight.shape)}")
        rows = _sizes(self.rows) if self.rows else even(weight.shape[0], self.cores)
        columns = _sizes(self.columns) if self.columns else even(weight.shape[1], self.cores)
        if (math.prod(rows), math.prod(columns)) != tuple(weight.shape[:2]) or len(rows) != len(columns):
            raise MethodError(
                f"{NAME}: rows {_text(rows)} and columns {_text(columns)} don't make {tuple(weight.shape)}"
            )
        cores = train(*unfolded(precise(weight), rows, columns), self.rank, self.energy)
        numbers = sum(core.numel() for core in cores)
        ranks = [1, *(core.shape[-1] for core in cores)]
        check_smaller(NAME, numbers, weight, f"ranks {_text(ranks)} of {tuple(weight.shape)}", self.force)
        parts = {"cores": torch.cat([core.flatten() for core in cores]).to(weight.dtype)}
        settings = {"rows": _text(rows), "columns": _text(columns), "ranks": _text(ranks)}
        return Packed(NAME, tuple(weight.shape), weight.dtype, parts, settings)

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the product of the cores in the weight's shape."""
        front, cores = _checked(packed)
        value = cores[0].new_ones(1, 1) if front is None else front
        for core in cores:
            value = (value @ core.flatten(1)).reshape(-1, core.shape[3])
        sizes = [size for core in cores for size in core.shape[1:3]]
        count = len(cores)
        value = value.reshape(-1, *sizes)
        value = value.permute(*range(1, 2 * count, 2), *range(2, 2 * count + 1, 2), 0)
        return value.reshape(packed.shape).contiguous()

    @staticmethod
    def multiply(packed: Packed, inputs: Tensor) -> Tensor:
        """Returns inputs W^T core by core, without making W.

        Args:
            packed: of a matrix (m, n), its cores a tensor.
            inputs: (..., n).
        """
        front, cores = _checked(packed)
        if front is not None or len(packed.shape) > 2:
            raise MethodError(f"{NAME}: {packed.shape} is a convolution's: use convolve")
        return _contracted(inputs.reshape(-1, 1, packed.shape[1]), cores).reshape(*inputs.shape[:-1], -1)

    @staticmethod
    def convolve(packed: Packed, layer: Any, inputs: Tensor) -> Tensor:
        """Returns what `layer`, a convolution of two dimensions, gives with this weight, without making the weight.

        The r_1 kernels of the first core run on each channel alone, then the other cores mix the channels.

        Args:
            packed: of a weight (N, C, kh, kw), its cores a tensor.
            layer: gives stride, padding, dilation and bias; without groups, padded by zeros.
            inputs: (batch, C, height, width).
        """
        check_layer(packed, layer)
        front, cores = _checked(packed)
        batch, channels = inputs.shape[:2]
        flat = inputs.reshape(batch * channels, 1, *inputs.shape[2:])
        kernel = (inputs.new_ones(1, 1) if front is None else front).T.reshape(-1, 1, *packed.shape[2:])
        maps = functional.conv2d(flat, kernel, None, layer.stride, layer.padding, layer.dilation)
        size = maps.shape[2:]
        state = maps.reshape(batch, channels, len(kernel), -1).permute(0, 3, 2, 1).reshape(-1, len(kernel), channels)
        result = _contracted(state, cores).reshape(batch, -1, packed.shape[0]).transpose(1, 2)
        result = result.reshape(batch, packed.shape[0], *size)
        return result if layer.bias is None else result + layer.bias[:, None, None]

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """Ranks 2, 4 and 8."""
        return tuple(cls(rank=rank) for rank in (2, 4, 8))


def even(size: int, count: int) -> list[int]:
    """Splits a number into factors as even as its primes let them be, from large to small.

    >>> even(24, 3), even(7, 2)
    ([4, 3, 2], [7, 1])
    """
    parts, rest, prime, primes = [1] * count, size, 2, []
    while prime * prime <= rest:
        while rest % prime == 0:
            primes.append(prime)
            rest //= prime
        prime += 1
    for factor in sorted([*primes, rest], reverse=True):
        parts[parts.index(min(parts))] *= factor
    return sorted(parts, reverse=True)


Sizes = list[tuple[int, int]]


def unfolded(weight: Tensor, rows: Sequence[int], columns: Sequence[int]) -> tuple[Tensor, Sizes]:
    """Returns the tensor that TT-SVD is done on, and the sizes (m_k, n_k) of its cores.

    A spatial extent comes first; it has the size (positions, 0).
    """
    count, area = len(rows), weight[0, 0].numel()
    value = weight.reshape(*rows, *columns, area)
    pairs = [axis for k in range(count) for axis in (k, count + k)]
    value = value.permute(2 * count, *pairs).contiguous()
    return value, [*([(area, 0)] if area > 1 else []), *zip(rows, columns)]


def train(rest: Tensor, shapes: Sizes, rank: int, energy: float) -> list[Tensor]:
    """Returns the cores of a tensor by TT-SVD.

    Args:
        rest: of `unfolded`.
        shapes: likewise.
        rank: largest rank; 0 for any.
        energy: part of the squared norm that all truncations together leave.
    """
    steps = max(len(shapes) - 1, 1)
    total = float(rest.square().sum())
    cores, left = [], 1
    for rows, columns in shapes[:-1]:
        matrix = rest.reshape(left * rows * max(columns, 1), -1)
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        kept, own = float(values.double().square().sum()), len(values)
        if energy < 1 and kept:
            own = rank_for_energy(values, min(max(1 - (1 - energy) * total / steps / kept, 1e-6), 1.0))
        # What is zero but for rounding is left out at any energy.
        own = min(own, max(int((values > values[0] * 1e-14).sum()), 1), rank or own)
        cores.append(u[:, :own].reshape(left, rows, *([columns] if columns else []), own))
        rest, left = values[:own, None] * v[:own], own
    rows, columns = shapes[-1]
    cores.append(rest.reshape(left, rows, columns, 1))
    return _balanced(cores)


def _balanced(cores: list[Tensor]) -> list[Tensor]:
    """Gives all cores numbers of the same mean size, so that no rounding hits one alone."""
    means = [float(core.square().mean().sqrt()) for core in cores]
    if not all(means):
        return cores
    level = math.exp(sum(map(math.log, means)) / len(means))
    return [core * (level / mean) for core, mean in zip(cores, means)]


def _contracted(state: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Contracts (batch, r_0, n_1 .. n_d) with each core in turn; returns (batch, m_1 .. m_d)."""
    batch = len(state)
    for core in cores:
        left, columns = core.shape[0], core.shape[2]
        state = state.reshape(-1, left, columns, state.numel() // max(len(state) * left * columns, 1))
        state = torch.einsum("blcs,lrcq->brqs", state, core).flatten(0, 1)
    return state.reshape(batch, -1)


def _sizes(text: object) -> list[int]:
    if not isinstance(text, str) or not SIZES.fullmatch(text):
        raise MethodError(f"{NAME}: sizes {text!r} must be numbers with x between them, such as 4x4x8")
    return [int(word) for word in text.split("x")]


def _text(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _checked(packed: Packed) -> tuple[Tensor | None, list[Tensor]]:
    """Returns the spatial core (positions, r) or None, and the others (r, m, n, r')."""
    if len(packed.shape) < 2 or 0 in packed.shape:
        raise MethodError(f"{NAME}: shape {packed.shape} is no matrix's or convolution's")
    rows, columns, ranks = (_sizes(packed.settings.get(name)) for name in ("rows", "columns", "ranks"))
    area = math.prod(packed.shape[2:])
    sizes = [*([area] if area > 1 else []), *(m * n for m, n in zip(rows, columns))]
    fits = (math.prod(rows), math.prod(columns)) == packed.shape[:2] and len(rows) == len(columns)
    if not fits or len(ranks) != len(sizes) + 1 or (ranks[0], ranks[-1]) != (1, 1):
        raise MethodError(f"{NAME}: cores of sizes {sizes} and ranks {ranks} don't make {packed.shape}")
    for place, rank in enumerate(ranks):
        if rank > min(math.prod(sizes[:place]), math.prod(sizes[place:])):
            # A larger rank is never needed, and would take more memory than the weight.
            raise MethodError(f"{NAME}: rank {rank} is more than {packed.shape} can use")
    counts = [left * size * right for left, size, right in zip(ranks, sizes, ranks[1:])]
    flat = packed.tensor("cores", shape=(sum(counts),), integer=False)
    if flat.dtype != packed.dtype:
        raise MethodError(f"{NAME}: cores {flat.dtype} of {packed.dtype}")
    pieces = list(torch.split(flat, counts))
    front = pieces.pop(0).reshape(area, ranks[1]) if area > 1 else None
    own = ranks[1:] if area > 1 else ranks
    shapes = zip(pieces, own, rows, columns, own[1:])
    return front, [piece.reshape(left, m, n, right) for piece, left, m, n, right in shapes]
