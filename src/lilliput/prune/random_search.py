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
    batches with this weight masked: the loss where there are targets, else how far the outputs move. Two variants
    evolve the masks over `generations`, with the same number of trials in all. `"particle"` (Anwar, Hwang & Sung 2015,
    1512.08571): a generation is weighted by exp(-cost), drawn from systematically, and disturbed. `"genetic"`: the best
    mask lives on; each other is a child of two, either the better of two drawn at random, which keeps what both keep
    and as much as it may, at random, of what one keeps (crossover); half of the children also keep some units that are
    drawn at random (mutation).

    Attributes:
        candidates: masks tried; more random ones never give a worse one.
        variant: `"random"`, `"particle"` or `"genetic"`.
        generations: of the two that evolve.
        mutation: part of all units that a mutated child is made to keep, 0 to 1.
        seed: of the draws.
    """

    pattern: str = "filter"
    candidates: int = 64
    variant: Literal["random", "particle", "genetic"] = "random"
    generations: int = 4
    mutation: float = 0.1
    seed: int = 0

    needs = frozenset({"evaluate"})
    nested = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(NAME, "candidates", self.candidates, 1, 1_000_000)
        check_range(NAME, "generations", self.generations, 1, 10_000)
        check_range(NAME, "mutation", self.mutation, 0, 1)

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the random numbers by which the best mask was made, of the weight's shape."""
        evaluate: Evaluate = needed(stats, "evaluate", NAME)
        source = torch.Generator().manual_seed(self.seed)
        return self.best(weight, evaluate, source)[0]

    def best(self, weight: Tensor, evaluate: Evaluate, source: torch.Generator) -> tuple[Tensor, float]:
        """Returns the best scores and the cost of their mask."""
        rounds = 1 if self.variant == "random" else self.generations
        size = max(1, self.candidates // rounds)
        best, least = torch.rand(weight.shape, generator=source), math.inf
        drawn = [best, *(torch.rand(weight.shape, generator=source) for _ in range(size - 1))]
        for number in range(rounds):
            costs = [self._cost(scores, weight, evaluate) for scores in drawn]
            place = min(range(len(costs)), key=costs.__getitem__)
            if costs[place] < least:
                best, least = drawn[place], costs[place]
            if number + 1 < rounds and self.variant == "particle":
                width = 0.5 * (1 - (number + 1) / rounds)
                chosen = resampled(costs, float(torch.rand((), generator=source)))
                drawn = [drawn[i] + width * torch.randn(weight.shape, generator=source) for i in chosen]
            elif number + 1 < rounds:
                drawn = [best, *(self._child(drawn, costs, source) for _ in range(size - 1))]
        return best, least

    def _child(self, drawn: list[Tensor], costs: list[float], source: torch.Generator) -> Tensor:
        """Returns scores for a mask made of two: what both keep is above what one keeps, noise decides among equals."""
        select = pattern_of(self.pattern).select
        child = torch.rand(drawn[0].shape, generator=source)
        for _ in range(2):
            pair = torch.randint(len(drawn), (2,), generator=source).tolist()
            child = child + select(drawn[min(pair, key=costs.__getitem__)], self.sparsity)
        if self.mutation and float(torch.rand((), generator=source)) < 0.5:
            forced = select(torch.rand(child.shape, generator=source), 1 - self.mutation)
            child = child + 3.0 * forced
        return child

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
