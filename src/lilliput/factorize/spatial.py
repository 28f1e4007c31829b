"""Separable convolutions: k x 1, then 1 x k, in place of k x k, by the closed form of the best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range
from lilliput.core.errors import NotWorthwhile
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.factorize import chain
from lilliput.factorize.rank import check_rule, check_smaller, packed_as, precise, rank_by

NAME = "factorize/spatial"


@dataclass(frozen=True)
class Spatial(WeightMethod):
    """W[n, c] ~ sum_k h[n, k] v[k, c]: K filters kh x 1 over all channels, then N filters 1 x kw over those K.

    The second scheme of Jaderberg, Vedaldi and Zisserman 2014 (arXiv 1405.3866; the first is `spatial_own`), whose
    best filters have the closed form of Tai et al. 2016 (arXiv 1511.06067): the truncated SVD of the matrix
    (C kh) x (kw N), with the singular values left out as the squared error. It holds K (C kh + N kw) numbers.

    Attributes:
        rank: K; 0 to go by `rule`.
        rule: `"energy"`, `"ratio"` or `"evbmf"`, as in `factorize/svd`.
        energy: the part of the squared weights to be kept, 0 < energy <= 1.
        ratio: the part of the numbers to be kept, 0 < ratio <= 1.
        force: factorize even where the factors hold more numbers than the weight.

    >>> kernel = torch.tensor([[[[1.0, 2.0, 3.0]]], [[[2.0, 4.0, 6.0]]]]) * torch.tensor([1.0, 0, -1])[:, None]
    >>> packed = Spatial(rank=1).pack(kernel)
    >>> bool(torch.allclose(Spatial.unpack(packed), kernel)), packed.parts["down"].shape, packed.parts["across"].shape
    (True, torch.Size([1, 1, 3, 1]), torch.Size([2, 1, 1, 3]))
    """

    rank: int = 0
    rule: Literal["energy", "ratio", "evbmf"] = "energy"
    energy: float = 0.95
    ratio: float = 0.5
    force: bool = False

    into = ("down", "across")
    training = "parts"
    trained = ("down", "across")
    exact = True

    def __post_init__(self) -> None:
        check_range(NAME, "rank", self.rank, 0, 2**31)
        check_range(NAME, "energy", self.energy, 1e-6, 1)
        check_range(NAME, "ratio", self.ratio, 1e-6, 1)
        check_rule(NAME, self.rule)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `down` (K, C, kh, 1) and `across` (N, K, 1, kw), weights of convolutions in the weight's dtype.

        Raises:
            NotWorthwhile: if the factors would hold more numbers than the weight.
            MethodError: if the weight hasn't four axes, or isn't finite.
        """
        chain.check_convolution(weight, NAME, planar=True)
        out, channels, high, wide = weight.shape
        matrix = precise(weight).permute(1, 2, 3, 0).reshape(channels * high, wide * out)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        shape = (matrix.shape[0], matrix.shape[1])
        rank = min(self.rank or rank_by(self.rule, values, shape, self.energy, self.ratio), len(values))
        check_smaller(NAME, rank * sum(shape), weight, f"rank {rank} of a {shape[0]} x {shape[1]} matrix", self.force)
        root = values[:rank].sqrt()
        parts = {
            "down": (left[:, :rank] * root).reshape(channels, high, rank).permute(2, 0, 1)[..., None],
            "across": (root[:, None] * right[:rank]).reshape(rank, wide, out).permute(2, 0, 1)[:, :, None],
        }
        return packed_as(NAME, weight, parts)

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the composed kernels in the weight's shape."""
        down, across = _checked(packed)
        out, channels, high, wide = packed.shape
        first = down.permute(1, 2, 0, 3).reshape(channels * high, -1)
        last = across.permute(1, 3, 0, 2).reshape(-1, wide * out)
        return (first @ last).reshape(channels, high, wide, out).permute(3, 0, 1, 2).contiguous()

    @staticmethod
    def layers(packed: Packed, layer: nn.Module) -> nn.Sequential:
        """Returns two convolutions that do what `layer` does, the stride along with each axis; see `chain.in_turn`."""
        down, across = _checked(packed)
        return chain.in_turn(packed, layer, [(down, (0,), 1), (across, (1,), 1)])

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes outputs of `across` or inputs of `down`."""
        if axis > 1:
            raise NotWorthwhile(f"{NAME}: kernels aren't cut")
        name, own = ("across", 0) if axis == 0 else ("down", 1)
        parts = {name: take(packed.parts[name], own, kept)}
        return replace(packed.with_parts(**parts), shape=cut_shape(packed, axis, kept))

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """Energies from 80 % to 95 %."""
        return tuple(cls(energy=energy) for energy in (0.8, 0.9, 0.95))


def _checked(packed: Packed) -> tuple[Tensor, Tensor]:
    down, across = chain.factors(packed, "down", "across")
    if len(packed.shape) != 4:
        raise chain.misfit(packed, down, across)
    out, channels, high, wide = packed.shape
    count = len(down) if down.ndim else 0
    sizes = tuple(down.shape), tuple(across.shape)
    if sizes != ((count, channels, high, 1), (out, count, 1, wide)) or not count:
        raise chain.misfit(packed, down, across)
    return down, across
