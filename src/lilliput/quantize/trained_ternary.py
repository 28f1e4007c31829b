"""Trained ternary weights (TTQ): -n, 0 or p, both trained beside the latent weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.solve.selection import largest

NAME = "quantize/trained_ternary"


@dataclass(frozen=True)
class TrainedTernary(WeightMethod):
    """w_t = p where w > d, -n where w < -d, else 0; d = threshold max|w|, or such that a part `sparsity` is 0.

    Zhu, Han, Mao and Dally 2017 (arXiv 1612.01064). Gradients, g being that of w_t: dL/dp = sum_{w > d} g,
    dL/dn = -sum_{w < -d} g (the printed formula lacks the sign), dL/dw = p g, g, n g where w_t is p, 0, -n.

    Attributes:
        threshold: part of the largest magnitude.
        sparsity: part of the weights that are 0; 0 goes by the threshold.
        start: p and n begin as the means of their weights, which is the least squared error, or as 1 (the paper).

    >>> packed = TrainedTernary().pack(torch.tensor([0.9, 0.7, -0.4, 0.01]))
    >>> TrainedTernary.unpack(packed)
    tensor([ 0.8000,  0.8000, -0.4000,  0.0000])
    """

    threshold: float = 0.05
    sparsity: float = 0.0
    start: Literal["means", "one"] = "means"

    keeps_zeros = True
    trained = ("positive", "negative")
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "threshold", self.threshold, 0, 1, open_high=True)
        check_range(NAME, "sparsity", self.sparsity, 0, 1, open_high=True)
        if self.start not in {"means", "one"}:
            raise MethodError(f"{NAME}: no start '{self.start}'; there are means, one")

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `codes` (-1, 0, 1), `positive` and `negative` (one float each).

        Args:
            weight: any shape.
            stats: not used.
            prior: hands over `positive` and `negative`.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        codes = self.codes(weight.detach())
        if prior is not None and set(self.trained) <= prior.parts.keys():
            scales = {name: prior.tensor(name).detach() for name in self.trained}
        else:
            work = weight.detach().double()
            dtype = torch.promote_types(weight.dtype, torch.float32)
            scales = {n: self._scale(work, codes == s).to(dtype) for n, s in (("positive", 1), ("negative", -1))}
        return Packed(NAME, tuple(weight.shape), weight.dtype, {"codes": codes, **scales})

    def codes(self, weight: Tensor) -> Tensor:
        """Returns which weights are p (1), 0 and -n (-1), int8."""
        magnitude = weight.abs()
        if self.sparsity:
            live = largest(magnitude, weight.numel() - round(self.sparsity * weight.numel()))
        elif weight.numel():
            live = magnitude > self.threshold * magnitude.max()
        else:
            live = torch.ones_like(weight, dtype=torch.bool)
        return (torch.sign(weight) * live).to(torch.int8)

    def _scale(self, work: Tensor, members: Tensor) -> Tensor:
        if self.start == "one":
            return work.new_ones(1)
        return ((work.abs() * members).sum() / members.sum().clamp(min=1)).reshape(1)

    def gradient(self, weight: Tensor, packed: Packed, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the gradients of the latent weight, `positive` and `negative`."""
        codes = packed.tensor("codes")
        above, below = codes > 0, codes < 0
        p, n = packed.tensor("positive"), packed.tensor("negative")
        factor = torch.where(above, p, torch.where(below, n, 1)).reshape(grad.shape)
        parts = {
            "positive": (grad * above).sum(dtype=p.dtype).reshape(1),
            "negative": -(grad * below).sum(dtype=n.dtype).reshape(1),
        }
        return (grad * factor).to(grad.dtype), parts

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Looks up -negative, 0 or positive."""
        codes = packed.tensor("codes", shape=packed.shape, integer=True)
        p = packed.tensor("positive", shape=(1,), integer=False)
        n = packed.tensor("negative", shape=(1,), integer=False)
        if codes.dtype != torch.int8:
            raise MethodError(f"{NAME}: codes of {codes.dtype}")
        value = torch.where(codes > 0, p, torch.where(codes < 0, -n, 0))
        return value.reshape(packed.shape).to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes from the codes."""
        cut = packed.with_parts(codes=take(packed.parts["codes"], axis, kept))
        return replace(cut, shape=cut_shape(packed, axis, kept))

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """The paper's threshold."""
        return (cls(),)
