"""Plans that hold when they are measured: the size by writing, the drop by the user's metric."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lilliput.core.errors import BudgetError
from lilliput.observe.sensitivity import Progress
from lilliput.search.draft import Draft, Drafter
from lilliput.search.losses import WeightErrors
from lilliput.search.metric import Evaluate, score

CLOSE = 1.005
"""A search for the smallest size ends when it is known within this factor."""


@dataclass(eq=False)
class Judge:
    """Measures how much worse than the uncompressed model a plan does.

    Attributes:
        evaluate: the user's metric.
        before: what it gives for the uncompressed model.
        progress: told of each evaluation.
        drops: what was measured, by the choice.
    """

    evaluate: Evaluate
    before: float
    progress: Progress | None = None
    drops: dict[tuple[int, ...], float] = field(default_factory=dict)

    def drop(self, draft: Draft) -> float:
        """Returns before - after; a plan seen before isn't evaluated again."""
        if draft.chosen not in self.drops:
            self.drops[draft.chosen] = self.before - score(self.evaluate, draft.model())
            if self.progress:
                self.progress("evaluating plans", len(self.drops), 0)
        return self.drops[draft.chosen]


def for_size(drafter: Drafter, limit: int) -> Draft:
    """Returns the best plan of at most `limit` bytes.

    Raises:
        BudgetError: even the smallest file is larger; names its size.
    """
    found = drafter.at(limit)
    if found is None:
        raise BudgetError(f"no file of {limit:,} bytes can be made; the smallest has {drafter.smallest_draft().size:,}")
    return found


def for_drop(drafter: Drafter, judge: Judge, most: float, limit: int | None, evaluations: int) -> Draft:
    """Returns a plan that loses at most `most` of the metric, measured.

    Args:
        drafter: makes plans.
        judge: measures them.
        most: the largest drop.
        limit: the largest file; None for the smallest that the drop allows.
        evaluations: of the metric, at most.

    Raises:
        BudgetError: no such plan was found; names the smallest size at this drop and the drop at this size.
    """
    if limit is None:
        return smallest(drafter, judge, most, evaluations)
    first = for_size(drafter, limit)
    if judge.drop(first) <= most:
        return first
    # The losses were estimated layer by layer; a plan on other grounds may do where their sum misleads.
    second = Drafter(drafter.space, WeightErrors(drafter.space), drafter.name).at(limit)
    best = min([first] + ([second] if second else []), key=judge.drop)
    if judge.drop(best) <= most:
        return best
    nearest = smallest(drafter, judge, most, evaluations, above=limit)
    raise BudgetError(
        f"no plan of {limit:,} bytes loses at most {most:g}: the best loses {judge.drop(best):.4g} at "
        f"{best.size:,} bytes; a loss of {most:g} takes {nearest.size:,} bytes"
    )


def smallest(drafter: Drafter, judge: Judge, most: float, evaluations: int, above: int = 0) -> Draft:
    """Returns the smallest plan found that loses at most `most`: bisection over the logarithm of the size.

    Args:
        drafter: makes plans.
        judge: measures them.
        most: the largest drop.
        evaluations: of the metric, at most.
        above: a size that is known to be too small.

    Raises:
        BudgetError: even the uncompressed weights, written and loaded, lose more; names how much.
    """
    best = drafter.finest_draft()
    low, high = max(drafter.smallest_draft().size - 1, above), best.size
    for _ in range(evaluations - 1):
        if high <= low * CLOSE:
            break
        # Nearer to the small end: nearly every network can be made many times smaller.
        draft = drafter.at(max(int(low * math.pow(high / low, 0.4)), low + 1))
        if draft is not None and judge.drop(draft) <= most:
            best, high = draft, draft.size
        else:
            low = max(low + 1, int(low * math.pow(high / low, 0.4)))
    if judge.drop(best) > most:
        raise BudgetError(
            f"no plan loses at most {most:g}: even weights as they are lose {judge.drop(best):.4g} "
            f"(evaluate may be random, or differ between two calls)"
        )
    return best
