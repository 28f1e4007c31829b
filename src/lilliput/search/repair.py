"""Plans that hold when they are measured: the size by writing, the drop by the user's metric."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lilliput.core.errors import BudgetError
from lilliput.observe.sensitivity import Progress
from lilliput.search.draft import Draft, Drafter
from lilliput.search.metric import Evaluate, score

CLOSE = 1.005
"""A search for the smallest size ends when it is known within this factor."""

TRIES = 5
"""Times that a plan is made smaller because what `compress` makes of it was larger than it seemed."""


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
    drops: dict[tuple[tuple[int, ...], bool], float] = field(default_factory=dict)

    def drop(self, draft: Draft) -> float:
        """Returns before - after; a plan seen before isn't evaluated again."""
        key = draft.chosen, bool(draft.artifact.cuts)
        if key not in self.drops:
            self.drops[key] = self.before - score(self.evaluate, draft.model())
            if self.progress:
                self.progress("evaluating plans", len(self.drops), 0)
        return self.drops[key]


def for_size(drafter: Drafter, limit: int) -> Draft:
    """Returns the best plan of at most `limit` bytes.

    Raises:
        BudgetError: even the smallest file is larger; names its size.
    """
    room = limit
    for _ in range(TRIES):
        found = drafter.at(room)
        if found is None:
            break
        sure = found.confirmed()
        if sure.size <= limit:
            return sure
        room -= sure.size - limit
    raise out_of_reach(drafter, limit)


def out_of_reach(drafter: Drafter, limit: int) -> BudgetError:
    """Says which size is the smallest."""
    smallest = drafter.smallest_draft().confirmed().size
    return BudgetError(f"no file of {limit:,} bytes can be made; the smallest has {smallest:,}")


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
    room = limit
    for _ in range(TRIES):
        # Where the estimated losses mislead, a plan on other grounds may do.
        tried = drafter.variants(room)
        if not tried:
            raise out_of_reach(drafter, limit)
        passing = next((draft for draft in tried if judge.drop(draft) <= most), None)
        if passing is None:
            break
        sure = passing.confirmed()
        if sure.size <= limit and judge.drop(sure) <= most:
            return sure
        room -= max(sure.size - limit, 1)
    best = min(tried, key=judge.drop)
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
    best = drafter.finest_draft().confirmed()
    low, high = max(drafter.smallest_draft().size - 1, above), best.size
    while len(judge.drops) < evaluations - 1 and high > low * CLOSE:
        # Nearer to the small end: nearly every network can be made many times smaller.
        middle = max(int(low * math.pow(high / low, 0.4)), low + 1)
        draft = drafter.at(middle)
        sure = draft.confirmed() if draft else None
        if sure is not None and judge.drop(sure) <= most:
            best, high = sure, min(sure.size, high - 1)
        else:
            low = middle
    if judge.drop(best) > most:
        raise BudgetError(
            f"no plan loses at most {most:g}: even weights as they are lose {judge.drop(best):.4g} "
            f"(folding BatchNorm rounds anew; or evaluate is random)"
        )
    return best
