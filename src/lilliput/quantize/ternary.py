"""Ternary weights: -a, 0 or a, the threshold by the rule of TWN or exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.uniform import Uniform, filters, on_grid

NAME = "quantize/ternary"


@dataclass(frozen=True)
class Ternary(WeightMethod):
    """w ~ a t, t in {-1, 0, 1}: t = sign(w) where |w| > d, and a = mean of those |w|.

    Li, Zhang and Liu 2016 (arXiv 1605.04711): for a given d this a is best, and the best d maximises
    (sum_{|w|>d} |w|)^2 / #{|w|>d}; their rule is d = 0.7 mean|w|. `exact` finds the best by sorting. The gradient
    passes straight through.

    Attributes:
        threshold: `"exact"` or `"rule"`.
        factor: of the rule.
        per: one a and d per tensor or per row (first axis).

    >>> packed = Ternary(per="tensor").pack(torch.tensor([0.9, -0.74, 0.1, 0.0]))
    >>> packed.parts["codes"].tolist(), [round(a, 4) for a in packed.parts["scale"].tolist()]
    ([1, -1, 0, 0], [0.82])
    """

    threshold: Literal["exact", "rule"] = "exact"
    factor: float = 0.7
    per: Literal["tensor", "row"] = "row"

    into = ("scale",)
    keeps_zeros = True
    exact = True
    searched = False

    def __post_init__(self) -> None:
        if self.threshold not in {"exact", "rule"}:
            raise MethodError(f"{NAME}: no threshold '{self.threshold}'; there are exact, rule")
        check_range(NAME, "factor", self.factor, 0, 10)
        if self.per not in {"tensor", "row"}:
            raise MethodError(f"{NAME}: no per = '{self.per}'; there are tensor, row")

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`: codes -1, 0, 1, one scale a tensor or row.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        per, rows = filters(weight, self.per)
        magnitude = rows.double().abs()
        if self.threshold == "exact":
            live = best_live(magnitude)
        else:
            live = magnitude > self.factor * magnitude.sum(1, keepdim=True) / max(rows.shape[1], 1)
        scale = (magnitude * live).sum(1) / live.sum(1).clamp(min=1)
        return on_grid(weight, torch.sign(rows) * live, scale.to(rows.dtype), per)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """The rule, the best threshold for all, and the best for each row."""
        return cls("rule", per="tensor"), cls(per="tensor"), cls()


def best_live(magnitude: Tensor) -> Tensor:
    """Returns which entries of each row the best ternary form keeps: the k largest of argmax_k (their sum)^2 / k.

    Args:
        magnitude: rows of |w|, float64.

    >>> best_live(torch.tensor([[3.0, 1.0, 2.9, 0.0]]))
    tensor([[ True, False,  True, False]])
    """
    if not magnitude.numel():
        return torch.zeros_like(magnitude, dtype=torch.bool)
    # In units of the largest: the square of a sum may be larger than any float64 where weights are as large as can be.
    top = magnitude.amax(1, keepdim=True)
    unit = magnitude / torch.where(top > 0, top, 1)
    ordered = unit.sort(1, descending=True).values
    count = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
    place = (ordered.cumsum(1).square() / count).argmax(1, keepdim=True)
    return (unit >= ordered.gather(1, place)) & (unit > 0)
