"""The gradual schedule: sparsity rises by a cubic, fast while there is much that isn't needed, slowly in the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError

LEAST = 1e-9
"""Stands for no sparsity: a pattern with a sparsity of its own would take 0 for its own."""


@dataclass(frozen=True)
class Gradual:
    """Moves the sparsity to the target s: s + (initial - s) * (1 - (progress - begin) / (until - begin))^3.

    Zhu and Gupta 2017 (arXiv 1710.01878). The mask changes in `rounds` steps of equal length.

    Attributes:
        initial: sparsity before `begin`.
        begin: part of the training before anything more is removed.
        until: part of the training after which the target is reached, begin < until <= 1.
        rounds: in how many steps.

    >>> from lilliput.prune.magnitude import Magnitude
    >>> [round(Gradual(until=1.0).advance(Magnitude(sparsity=0.8), p).sparsity, 3) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.463, 0.7, 0.8]
    """

    initial: float = 0.0
    begin: float = 0.0
    until: float = 0.7
    rounds: int = 100

    def __post_init__(self) -> None:
        check_range("prune/gradual", "initial", self.initial, 0, 1, open_high=True)
        check_range("prune/gradual", "begin", self.begin, 0, 1)
        check_range("prune/gradual", "until", self.until, 0, 1)
        check_range("prune/gradual", "rounds", self.rounds, 1, 1_000_000)
        if self.begin >= self.until:
            raise MethodError(f"prune/gradual: begin = {self.begin} must be smaller than until = {self.until}")

    def advance(self, method: Any, progress: float) -> Any:
        """Returns the method with the sparsity (or quality) of this point of the training.

        Args:
            method: a pruning step with its final setting; any other step is returned as it is.
            progress: part of the training that is over, 0 to 1.
        """
        part = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        part = int(part * self.rounds + 1e-9) / self.rounds
        if part == 1 or (not getattr(method, "sparsity", 0.0) and not getattr(method, "quality", 0.0)):
            return method
        if getattr(method, "quality", 0.0):
            return replace(method, quality=method.quality * max(1 - (1 - part) ** 3, LEAST))
        start = min(self.initial, method.sparsity)
        return replace(method, sparsity=max(method.sparsity + (start - method.sparsity) * (1 - part) ** 3, LEAST))
