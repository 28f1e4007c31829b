"""Random pruning: the baseline that every criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.prune.sparse import Sparse


@dataclass(frozen=True)
class Random(Sparse):
    """Keeps weights, or groups of them by the pattern, at random: the same ones for the same weight and seed.

    Attributes:
        seed: of the random scores.

    >>> weight = torch.ones(4, 5)
    >>> int((Random(sparsity=0.5).pack(weight).parts["mask"]).sum())
    10
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("prune/random", "seed", self.seed, 0, 2**31)

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns uniform random numbers; layers of one shape get different ones, by what they hold."""
        content = (
            weight.detach().double().sum().view(torch.int64) if weight.numel() else torch.zeros((), dtype=torch.int64)
        )
        generator = torch.Generator().manual_seed((int(content) ^ (self.seed * 0x9E3779B97F4A7C15)) % 2**63)
        return torch.rand(weight.shape, generator=generator).to(weight.device)
