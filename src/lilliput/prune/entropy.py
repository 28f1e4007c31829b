"""Entropy of pooled activations: channels that say much the same for every input are removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.stats import needed
from lilliput.observe.outputs import over_filters
from lilliput.prune.sparse import Sparse

NAME = "prune/entropy"


@dataclass(frozen=True)
class Entropy(Sparse):
    """Scores a channel by H = -sum p log p of its pooled activation over the examples (Luo & Wu 2017, 1706.05791).

    The activation is averaged over the places of each example's map, the values of a channel are sorted into bins of
    equal width between its smallest and its largest.

    Attributes:
        bins: how many.

    >>> entropies(torch.tensor([[0.0, 5.0], [1.0, 5.0]]), 2)
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """

    pattern: str = "filter"
    bins: int = 100

    needs = frozenset({"pooled"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(NAME, "bins", self.bins, 2, 1_000_000)

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the scores in nats, of the weight's shape: each channel's in equal parts.

        Raises:
            MethodError: there are no stats, or of one example only.
        """
        pooled: Tensor = needed(stats, "pooled", NAME)
        if len(pooled) < 2:
            raise MethodError(f"{NAME}: one example has no distribution; give more data")
        return over_filters(entropies(pooled, self.bins), weight, NAME)

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsity 50 %."""
        return (cls(sparsity=0.5),)


def entropies(values: Tensor, bins: int) -> Tensor:
    """Returns the entropy of each column's histogram in nats; 0 for a constant column.

    Args:
        values: (examples, channels).
        bins: of equal width from the smallest to the largest value, the last with both its ends.
    """
    wide = values.double()
    low, high = wide.amin(0), wide.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    place = ((wide - low) / width * bins).long().clamp_(0, bins - 1)
    counts = torch.zeros(bins, wide.shape[1], dtype=torch.float64, device=values.device)
    counts.scatter_add_(0, place, torch.ones_like(wide))
    found: Tensor = torch.special.entr(counts / len(values)).sum(0)
    return found
