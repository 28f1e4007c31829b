"""Dynamic network surgery: weights are removed and put back while the network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.prune.sparse import Sparse, mask_of

NAME = "prune/surgery"


@dataclass(frozen=True)
class Surgery(WeightMethod):
    """Prunes and splices during training (Guo, Yao and Chen 2016, arXiv 1608.04493).

    The network computes with w * T; the gradient reaches all weights, masked ones too, so that a mistake can be
    repaired. At an update of the mask T becomes 0 where |w| <= 0.9 base and 1 where |w| > 1.1 base, and stays between.
    base = max(mean |w| + deviations * std |w|, 0) over the weights that aren't gone, once, when the method is
    attached. In the authors' program each training step updates the mask with probability 1 / (1 + gamma * t); here
    the same number of updates comes at fixed points: of `rounds`, ln(1 + decay * p / until) / ln(1 + decay) at
    progress p, where decay = gamma * T. After `until` the mask is fixed. Call `advance` after each optimizer step, as
    `fit` does. Without training it prunes once, at 0.9 base. A schedule isn't needed.

    Attributes:
        deviations: the authors' c; larger removes more, negative values keep more than half.
        rounds: updates of the mask in all; more than there are steps means: in every step, later in fewer.
        decay: how much rarer updates are in the end: 1 + decay times.
        until: part of the training after which the mask is fixed, 0 < until <= 1.
        over: part of the updates that are over; moved along during training, leave it.

    >>> weight = torch.tensor([0.1, -3.0, 2.0, 0.2])
    >>> Surgery(deviations=0.0).pack(weight).parts["values"]
    tensor([-3.,  2.])
    """

    deviations: float = 1.0
    rounds: int = 1000
    decay: float = 1.4
    until: float = 0.7
    over: float = 1.0

    training = "straight"
    into = ("values",)
    frozen = ("mask",)

    def __post_init__(self) -> None:
        check_range(NAME, "deviations", self.deviations, -1e3, 1e3)
        check_range(NAME, "rounds", self.rounds, 1, 10_000_000)
        check_range(NAME, "decay", self.decay, 1e-6, 1e6)
        check_range(NAME, "until", self.until, 1e-6, 1)
        check_range(NAME, "over", self.over, 0, 1)

    def at(self, progress: float) -> WeightMethod:
        """Returns the setting with that part of the updates over that are due at this point of the training.

        >>> [round(Surgery(decay=1.0, until=1.0, rounds=100).at(p).over, 2) for p in (0.0, 0.5, 1.0)]
        [0.0, 0.58, 1.0]
        """
        part = math.log1p(self.decay * min(progress / self.until, 1.0)) / math.log1p(self.decay)
        return replace(self, over=int(self.rounds * part + 1e-9) / self.rounds)

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs to `mask` and `values`, as every pruning method does; updates the mask if more of it is over.

        Raises:
            MethodError: if a weight isn't finite.
        """
        weight = weight.detach()
        check_weight(weight, NAME)
        mask = torch.ones_like(weight, dtype=torch.bool) if prior is None else mask_of(prior)
        known = {} if prior is None else prior.settings
        base, over = known.get("base"), float(known.get("over", 0.0))
        base = threshold(weight[mask], self.deviations) if base is None else float(base)
        if self.over > over:
            size = weight.abs().double()
            mask = ((size > 0.9 * base) & mask) | (size > 1.1 * base)
        settings = {"base": base, "over": max(self.over, over)}
        return Packed(
            "prune/sparse", tuple(weight.shape), weight.dtype, {"mask": mask, "values": weight[mask]}, settings
        )

    # The very functions of the packed form: by them an earlier mask is known to be one.
    unpack = staticmethod(Sparse.unpack)
    take = staticmethod(Sparse.take)

    def dense(self, packed: Packed) -> Packed:
        """Returns the form with zeros in their places."""
        return replace(packed, parts={"values": self.unpack(packed)})


def threshold(weight: Tensor, deviations: float) -> float:
    """Returns max(mean |w| + deviations * std |w|, 0) over the weights other than zero; 0 without any.

    >>> threshold(torch.tensor([1.0, -3.0, 0.0]), 0.5)
    2.5
    """
    live = weight[weight != 0].abs().double()
    if not live.numel():
        return 0.0
    return max(float(live.mean()) + deviations * float(live.std(correction=0)), 0.0)
