"""Random search: many masks are drawn, each is tried on the model, the best is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.stats import needed
from lilliput.observe.gradients import Evaluate
from lilliput.prune.sparse import Sparse, pattern_of

NAME = "prune/random_search"


@dataclass(frozen=True)
class RandomSearch(Sparse):
    """Keeps of `candidates` random masks the one of least cost, without retraining (Anwar & Sung 2016, 1610.09639).

    The pattern sets what a mask removes: filters, kernels, single weights. The cost is that of the model on a few
    batches with this weight masked: the loss where there are targets, else how far the outputs move. `"particle"` is
    the evolutionary variant (Anwar, Hwang & Sung 2015, 1512.08571): a generation of masks is weighted by exp(-cost),
    drawn from systematically, and disturbed, `generations` times, with the same number of trials in all.

    Attributes:
        candidates: masks tried; more never give a worse one.
        variant: `"random"` or `"particle"`.
        generations: of particles.
        seed: of the draws.
    """

    pattern: str = "filter"
    candidates: int = 64
    variant: Literal["random", "particle"] = "random"
    generations: int = 4
    seed: int = 0

    needs = frozenset({"evaluate"})
    nested = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(NAME, "candidates", self.candidates, 1, 1_000_000)
        check_range(NAME, "generations", self.generations, 1, 10_000)

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the random numbers by which the best mask was made, of the weight's shape."""
        evaluate: Evaluate = needed(stats, "evaluate", NAME)
        source = torch.Generator().manual_seed(self.seed)
        return self.best(weight, evaluate, source)[0]

    def best(self, weight: Tensor, evaluate: Evaluate, source: torch.Generator) -> tuple[Tensor, float]:
        """Returns the best scores and the cost of their mask."""
        rounds = self.generations if self.variant == "particle" else 1
        size = max(1, self.candidates // rounds)
        best, least = torch.rand(weight.shape, generator=source), math.inf
        particles = [best, *(torch.rand(weight.shape, generator=source) for _ in range(size - 1))]
        for number in range(rounds):
            costs = [self._cost(scores, weight, evaluate) for scores in particles]
            place = min(range(len(costs)), key=costs.__getitem__)
            if costs[place] < least:
                best, least = particles[place], costs[place]
            if number + 1 < rounds:
                width = 0.5 * (1 - (number + 1) / rounds)
                drawn = resampled(costs, float(torch.rand((), generator=source)))
                particles = [particles[i] + width * torch.randn(weight.shape, generator=source) for i in drawn]
        return best, least

    def _cost(self, scores: Tensor, weight: Tensor, evaluate: Evaluate) -> float:
        mask = pattern_of(self.pattern).select(scores, self.sparsity) & (weight != 0)
        found = evaluate(weight * mask)
        return found if math.isfinite(found) else math.inf

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsity 50 %, few candidates."""
        return (cls(sparsity=0.5, candidates=4),)


def resampled(costs: list[float], start: float) -> list[int]:
    """Draws as many places as there are, by weights exp(-cost), at even distances (systematic resampling).

    Args:
        costs: of the particles; infinite ones are never drawn unless all are.
        start: 0 <= start < 1.

    >>> resampled([0.0, 0.0, 50.0, 50.0], 0.5)
    [0, 0, 1, 1]
    """
    low = min(costs)
    weights = [math.exp(low - cost) if math.isfinite(low) else 1.0 for cost in costs]
    step = sum(weights) / len(weights)
    drawn, place, reached = [], 0, weights[0]
    for number in range(len(costs)):
        while reached < (number + start) * step and place < len(costs) - 1:
            place += 1
            reached += weights[place]
        drawn.append(place)
    return drawn
