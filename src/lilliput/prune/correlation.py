"""Correlation: connections between neurons that go together are kept, and some of the others with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.stats import needed
from lilliput.observe import correlation as observed
from lilliput.prune.sparse import Sparse

NAME = "prune/correlation"


@dataclass(frozen=True)
class Correlation(Sparse):
    """Keeps connections by the correlation r of the two neurons that they join (Sun, Wang & Tang 2016, 1512.01891).

    Positive and negative r are ranked apart by |r|, each list is cut into a stronger and a weaker half. Of what is kept
    of a list, `strong` comes at random from the stronger half, the rest from the weaker: weak correlations are
    complementary. When a half is used up the other gives more. In a convolution |r| is averaged over places.

    Attributes:
        strong: part that the stronger half gives; 1 takes it whole first.
        seed: of the random choice.

    >>> from lilliput.core.stats import Stats
    >>> stats = Stats({"correlation": observed.Correlation(torch.tensor([[0.9, 0.8, 0.1, 0.2]]), 10)})
    >>> Correlation(sparsity=0.5, strong=1.0).mask(torch.ones(1, 4), stats)
    tensor([[ True,  True, False, False]])
    """

    strong: float = 0.75
    seed: int = 0

    needs = frozenset({"correlation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(NAME, "strong", self.strong, 0.5, 1.0)

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns -S, with S the part kept of a list from which on the connection is among those kept.

        Raises:
            MethodError: there are no stats, of one example only, or of another layer.
        """
        found: observed.Correlation = needed(stats, "correlation", NAME)
        if found.count < 2:
            raise MethodError(f"{NAME}: one example has no correlation; give more data")
        if found.matrix.numel() != weight.numel():
            raise MethodError(f"{NAME}: correlations of shape {tuple(found.matrix.shape)} are of another layer")
        values = found.matrix.flatten()
        entry = torch.empty_like(values)
        source = torch.Generator().manual_seed(self.seed)
        for members in ((values >= 0).nonzero().flatten(), (values < 0).nonzero().flatten()):
            order = members[values[members].abs().argsort(descending=True, stable=True)]
            entry[order] = self._entries(len(order), source).to(entry)
        return -entry.to(torch.promote_types(weight.dtype, torch.float32)).reshape(weight.shape)

    def _entries(self, count: int, source: torch.Generator) -> Tensor:
        """For a list sorted by |r|: the part S kept of it from which on each member is kept."""
        upper = (count + 1) // 2
        strong = torch.randperm(upper, generator=source).double()
        weak = torch.randperm(count - upper, generator=source).double()
        full = upper / (self.strong * max(count, 1))
        by_share = (weak + 1) / max((1 - self.strong) * count, 1e-12)
        after = (weak + 1 + upper) / max(count, 1)
        return torch.cat([(strong + 1) / (self.strong * max(count, 1)), torch.where(by_share <= full, by_share, after)])

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsity 50 %."""
        return (cls(sparsity=0.5),)
