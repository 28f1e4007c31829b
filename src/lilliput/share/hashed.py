"""HashedNets: a hash function says which shared value a weight is, so that a file holds the values and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, unpack
from lilliput.solve.hashing import xxh32

NAME = "share/hashed"
# Weights that are hashed together: a few integers of eight bytes each exist for each of them.
PIECE = 1 << 18


@dataclass(frozen=True)
class Hashed(WeightMethod):
    """V[i, j] = s(i, j) w[h(i, j)], h into K values and s in {-1, 1}: two hashes of row and column.

    Chen, Wilson, Tyree, Weinberger and Chen 2015 (arXiv 1504.04788): feature hashing of the layer's inputs. h is
    floor(x K / 2^32) of x = XXH32 of the bytes of i and j (32 bits each, the least significant first) with the seed,
    s the top bit of XXH32 with the seed + 1: integers, the same on every machine. The values are trained, dL/dw_k =
    sum over h(i, j) = k of s(i, j) dL/dV[i, j]. As printed the bias is hashed too; here it stays as it is. A weight of
    more axes is the matrix of its first axis by all others; FreshNets' frequencies aren't here.

    Attributes:
        ratio: K in parts of the number of weights.
        k: K itself; 0 goes by `ratio`.
        start: values start at the mean of their weights, the least squared error, or at the first of them: a sample
            of the layer's own initialisation, with its virtual fan-in, to train a network from scratch.
        seed: of the hashes, below 2^32.
        own: the weights of a rule get the seeds seed, seed + 2, ...; then this must be its first step.

    >>> packed = Hashed(k=2).pack(torch.tensor([[1.0, -1.0], [2.0, 0.5]]))
    >>> packed.parts["values"].shape, packed.settings
    (torch.Size([2]), {'seed': 0})
    """

    ratio: float = 0.125
    k: int = 0
    start: Literal["mean", "first"] = "mean"
    seed: int = 0
    own: bool = False

    into = ("values",)
    training = "parts"
    trained = ("values",)
    frozen = ("codes",)
    scratch = ("codes",)
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "ratio", self.ratio, 1e-9, 1)
        check_range(NAME, "k", self.k, 0, 2**31, open_high=True)
        check_range(NAME, "seed", self.seed, 0, 2**32, open_high=True)
        if self.start not in {"mean", "first"}:
            raise MethodError(f"{NAME}: no start '{self.start}'; there are mean, first")

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `values` (K, at least float32) and, for training only, `codes`: s (1 + h), int32, like the weight.

        Args:
            weight: any shape.
            stats: not used.
            prior: the weight hashed before with this seed to as many values: they stay.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        weight = weight.detach()
        count = min(self.k or max(1, round(self.ratio * weight.numel())), max(weight.numel(), 1))
        codes = coded(tuple(weight.shape), count, self.seed, weight.device)
        if prior is not None and prior.shape == tuple(weight.shape) and prior.settings.get("seed") == self.seed:
            values = unpack(prior.parts["values"]).detach()
            if len(values) == count:
                return prior.with_parts(codes=codes, values=values)
        flat, place, sign = weight.reshape(-1).double(), codes.reshape(-1).abs().long() - 1, torch.sign(codes)
        signed = flat * sign.reshape(-1)
        if self.start == "mean":
            total = signed.new_zeros(count).index_add_(0, place, signed)
            values = total / torch.bincount(place, minlength=count).clamp(min=1)
        else:
            order = torch.arange(len(flat), device=flat.device)
            first = order.new_full((count,), len(flat)).scatter_reduce_(0, place, order, "amin")
            values = torch.cat([signed, signed.new_zeros(1)])[first]
        parts = {"values": values.to(torch.promote_types(weight.dtype, torch.float32)), "codes": codes}
        return Packed(NAME, tuple(weight.shape), weight.dtype, parts, {"seed": self.seed})

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Hashes the places again, and looks the values up; differentiable in the values."""
        seed = packed.settings.get("seed")
        values = packed.tensor("values", integer=False)
        if type(seed) is not int or not 0 <= seed < 2**32 or values.ndim != 1 or not 0 < len(values) < 2**31:
            raise MethodError(f"{NAME}: seed = {seed}, values of shape {tuple(values.shape)}")
        if "codes" in packed.parts:
            codes = packed.tensor("codes", shape=packed.shape, integer=True)
            if codes.dtype != torch.int32:
                raise MethodError(f"{NAME}: codes of {codes.dtype}")
        else:
            _check_size(packed.shape, len(values))
            codes = coded(packed.shape, len(values), seed, values.device)
        place = codes.reshape(-1).abs() - 1
        if place.numel():
            low, high = (int(end) for end in place.aminmax())
            if not 0 <= low <= high < len(values):
                raise MethodError(f"{NAME}: codes {low} .. {high} point outside the {len(values)} values")
        found = values.index_select(0, place)
        return torch.where(codes.reshape(-1) < 0, -found, found).reshape(packed.shape).to(packed.dtype)

    @property
    def together(self) -> bool:
        """Whether the weights of a rule get seeds of their own."""
        return self.own

    def allot(self, weights: Mapping[str, Tensor], stats: Mapping[str, Any]) -> dict[str, WeightMethod]:
        """Gives each weight a seed two above the one before."""
        return {name: replace(self, seed=(self.seed + 2 * at) % 2**32) for at, name in enumerate(weights)}

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """1/32, 1/8 and 1/2 of the numbers."""
        return tuple(cls(ratio=ratio) for ratio in (1 / 32, 1 / 8, 1 / 2))


def coded(shape: tuple[int, ...], count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns s(i, j) (1 + h(i, j)) for all weights, int32 of this shape.

    Args:
        shape: of the weight; its first axis is i, all others are j.
        count: K.
        seed: of h; s has the next one.
        device: where.
    """
    size = torch.Size(shape)
    columns = size[1:].numel() if size else 1
    codes = torch.empty(size.numel(), dtype=torch.int32, device=device)
    for begin in range(0, len(codes), PIECE):
        at = torch.arange(begin, min(begin + PIECE, len(codes)), device=device)
        row, column = at // max(columns, 1), at % max(columns, 1)
        place = (xxh32(row, column, seed) * count) >> 32
        negative = xxh32(row, column, (seed + 1) & 0xFFFFFFFF) >> 31
        codes[begin : begin + PIECE] = ((1 + place) * (1 - 2 * negative)).to(torch.int32)
    return codes.reshape(shape)


def _check_size(shape: tuple[int, ...], count: int) -> None:
    """A file that names a seed and a size must not make a reader hash for hours."""
    numel = torch.Size(shape).numel()
    if min(shape, default=0) < 0 or numel > 2**31 or max(shape, default=0) >= 2**32:
        raise MethodError(f"{NAME}: {count} values can't stand for a weight of shape {shape}")
