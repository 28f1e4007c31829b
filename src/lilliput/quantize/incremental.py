"""Incremental quantization (INQ): a part of the weights becomes powers of two and stays, the rest is trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.quantize.power_of_two import EXPONENTS, codes_near, powers
from lilliput.solve.rounding import exponent_near
from lilliput.solve.selection import largest

NAME = "quantize/incremental"
FREE = -128
"""Code of a weight that isn't quantized yet."""


@dataclass(frozen=True)
class Incremental(WeightMethod):
    """The nearest of 0 and +-2^n2 .. 2^n1, n1 = floor(log2(4 max|w| / 3)), n2 = n1 + 1 - 2^(bits-2), for a part of w.

    Zhou et al. 2017 (arXiv 1702.03044). One of the `bits` tells zero from the rest. What was quantized keeps its code
    while the rest is trained (its gradient is masked); the schedule `quantize/portions` raises the portion in steps,
    1 at the end. n1 is that of the weight when it was first packed. At a midpoint the larger power is taken.

    Attributes:
        bits: 2 to 8.
        portion: part of the weights that is quantized, 0 to 1.
        partition: which come first: those of the largest magnitude (`"magnitude"`, the paper's better way) or
            `"random"` ones.
        seed: of the random ones.

    >>> w0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1])
    >>> Incremental.unpack(Incremental(bits=3).pack(w0))
    tensor([ 1.0000, -0.5000,  0.5000, -0.5000,  0.0000])
    """

    bits: int = 5
    portion: float = 1.0
    partition: Literal["magnitude", "random"] = "magnitude"
    seed: int = 0

    keeps_zeros = True
    training = "through"
    frozen = ("codes",)
    exact = True
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 2, 8)
        check_range(NAME, "portion", self.portion, 0, 1)
        check_range(NAME, "seed", self.seed, 0, 2**63, open_high=True)
        if self.partition not in {"magnitude", "random"}:
            raise MethodError(f"{NAME}: no partition '{self.partition}'; there are magnitude, random")

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `codes` (int8, dense; see `powers`; -128 where not yet quantized) and `values`, the others.

        Args:
            weight: any shape.
            stats: not used.
            prior: the weight packed before: its codes and n1 stay, as far as it has the same bits.

        Raises:
            MethodError: if a weight isn't finite.
        """
        latent = weight.detach()
        check_weight(latent, NAME)
        top, codes = _start(latent)
        if prior is not None and prior.settings.get("bits") == self.bits and prior.shape == tuple(weight.shape):
            top, codes = int(prior.settings["top"]), prior.tensor("codes")
        free = codes == FREE
        more = round(self.portion * latent.numel()) - int((~free).sum())
        if more > 0:
            chosen = largest(self._scores(latent).masked_fill(~free, -torch.inf), more)
            near = codes_near(latent, top, 2 ** (self.bits - 2)).to(torch.int8)
            codes, free = torch.where(chosen, near, codes), free & ~chosen
        parts = {"codes": codes, "values": weight[free]}
        return Packed(NAME, tuple(weight.shape), weight.dtype, parts, {"top": top, "bits": self.bits})

    def _scores(self, latent: Tensor) -> Tensor:
        if self.partition == "magnitude":
            return latent.abs()
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(latent.shape, generator=generator).to(latent.device)

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the powers of two, and the values where there is none yet; differentiable in these."""
        codes = packed.tensor("codes", shape=packed.shape, integer=True)
        values = packed.tensor("values", integer=False)
        top = packed.settings.get("top")
        if codes.dtype != torch.int8 or type(top) is not int or abs(top) > EXPONENTS:
            raise MethodError(f"{NAME}: codes of {codes.dtype}, top = {top}")
        free = codes == FREE
        if values.shape != (int(torch.count_nonzero(free)),) or values.dtype != packed.dtype:
            raise MethodError(f"{NAME}: values of {values.dtype} {tuple(values.shape)} of {packed.dtype}")
        return powers(codes.masked_fill(free, 0), top).to(packed.dtype).masked_scatter(free, values)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes from the codes, and the values that lie in what stays."""
        codes = packed.tensor("codes")
        free = codes == FREE
        stays = torch.zeros_like(free).index_fill_(axis, kept, True)[free].nonzero().flatten()
        parts = {"codes": codes.index_select(axis, kept), "values": take(packed.parts["values"], 0, stays)}
        return replace(packed, shape=cut_shape(packed, axis, kept), parts=parts)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """3 to 5 bits."""
        return tuple(cls(bits=bits) for bits in (3, 4, 5))


def _start(latent: Tensor) -> tuple[int, Tensor]:
    """n1, and codes of which none is set."""
    biggest = latent.abs().max() if latent.numel() else latent.new_zeros(())
    top = int(exponent_near(biggest, "linear")) if float(biggest) else 0
    # 2^top must be a number of the dtype: weights next to its largest are rounded down.
    most = math.frexp(torch.finfo(latent.dtype).max)[1] - 1
    return min(max(top, -EXPONENTS), most, EXPONENTS), torch.full_like(latent, FREE, dtype=torch.int8)
