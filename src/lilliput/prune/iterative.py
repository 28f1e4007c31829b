"""The iterative schedule: prune a little, train, prune more; each round keeps the same part of what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lilliput.core.checks import check_range


@dataclass(frozen=True)
class Iterative:
    """Reaches a target sparsity s in `rounds` equal steps of the density: 1 - (1 - s)^(r / rounds) after round r.

    Han et al. 2015 (arXiv 1506.02626) prune and retrain in rounds; one round right away is one-shot pruning. The
    rounds are spread over the first `until` of the training, the first at its very start.

    Attributes:
        rounds: number of rounds, at least 1.
        until: part of the training after which the target is reached, 0 < until <= 1.
    """

    rounds: int = 4
    until: float = 0.7

    def __post_init__(self) -> None:
        check_range("prune/iterative", "rounds", self.rounds, 1, 10_000)
        check_range("prune/iterative", "until", self.until, 0.0, 1.0)

    def advance(self, method: Any, progress: float) -> Any:
        """Returns the method with the sparsity (or quality) of this point of the training.

        Args:
            method: a pruning step with its final setting; any other step is returned as it is.
            progress: part of the training that is over, 0 to 1.
        """
        if not hasattr(method, "sparsity"):
            return method
        part = 1.0 if self.until == 0 else min(progress / self.until, 1.0)
        done = min(1 + int(part * (self.rounds - 1) + 1e-9), self.rounds)
        if done == self.rounds:
            return method
        if getattr(method, "quality", 0):
            return replace(method, quality=method.quality * done / self.rounds)
        return replace(method, sparsity=1 - (1 - method.sparsity) ** (done / self.rounds))
