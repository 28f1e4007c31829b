"""Movement pruning: weights that training moves towards zero are removed, however large they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_weight
from lilliput.core.packed import Packed
from lilliput.prune.sparse import Sparse, mask_of, pattern_of


@dataclass(frozen=True)
class Movement(Sparse):
    """Keeps the weights that have moved away from zero the most since the recipe was attached.

    Sanh et al. 2020 (arXiv 2005.07683) add up -w * dL/dw over the steps of the training. A step of gradient descent
    moves w by -rate * dL/dw, so that this is the sum of w * (movement of w) / rate = (w^2 - w0^2) / (2 rate) up to the
    squares of the steps: the score is w^2 - w0^2 with the weight w0 at the start, and needs no gradient. Attach it with
    a schedule that starts at 0, such as `prune/gradual`: before anything has moved, and without training, the score is
    w^2, the magnitude. As with other criteria what is removed stays removed; the paper's masked weights may come back,
    which is what `prune/surgery` is for.

    >>> start = Movement().pack(torch.tensor([3.0, 1.0]))
    >>> Movement(sparsity=0.5).pack(torch.tensor([2.0, 1.5]), prior=start).parts["values"]
    tensor([1.5000])
    """

    frozen = ("mask", "origin")
    scratch = ("origin",)

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns w^2: without a start there is no movement yet."""
        return moved(weight.detach(), torch.zeros_like(weight))

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs as every pruning method does, and keeps the weight at the start beside, for training alone.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight.detach(), "prune/movement")
        origin = None if prior is None else prior.parts.get("origin")
        if prior is None or not isinstance(origin, Tensor) or self.fulfilled(prior):
            packed = super().pack(weight, stats, prior)
        else:
            alive = mask_of(prior)
            scores = moved(weight.detach(), origin).masked_fill(~alive, -torch.inf)
            kept = pattern_of(self.pattern).select(scores, self.sparsity) & alive
            packed = super().pack(weight, stats, replace(prior, parts={**prior.parts, "mask": kept}))
            packed = replace(packed, parts={"mask": kept, "values": weight[kept]})
        start = origin if isinstance(origin, Tensor) else weight.detach().clone()
        return replace(packed, parts={**packed.parts, "origin": start})


def moved(weight: Tensor, origin: Tensor) -> Tensor:
    """Returns w^2 - w0^2 in float64, exactly where it matters: (w - w0) (w + w0).

    >>> moved(torch.tensor([2.0]), torch.tensor([3.0]))
    tensor([-5.], dtype=torch.float64)
    """
    return (weight.double() - origin.double()) * (weight.double() + origin.double())
