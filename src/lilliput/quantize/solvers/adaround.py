"""AdaRound: whether each weight is rounded down or up is trained, so that the layer's outputs stay what they were."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.solver import RoundingSolver
from lilliput.observe.metric import metrics
from lilliput.solve.levels import Levels

NAME = "quantize/solvers/adaround"
ZETA, GAMMA = 1.1, -0.1
"""How far the sigmoid is stretched, so that 0 and 1 are reached."""


@dataclass(frozen=True)
class AdaRound(RoundingSolver):
    """Minimises |(W - Q) X|^2 + sum of rounding penalties by Adam (Nagel et al. 2020, arXiv 2004.10568).

    Q = below + h(V) (above - below) with the two levels around each weight and h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1),
    which starts where Q = W. The penalty strength * sum (1 - |2 h - 1|^b) pushes each h to 0 or 1, b falling from 20 to
    2 after the first fifth. The error is taken from the Gram matrix of the inputs, so that each step sees all the
    data, and a tenth of the paper's 10,000 steps is enough; it is counted in units of the weights' mean step^2 times
    the mean diagonal of G, so that `strength` means the same for every layer. A row for which rounding to nearest is
    better keeps it.

    Attributes:
        iterations: steps of Adam.
        rate: of learning.
        strength: of the penalty.

    >>> from lilliput.core.stats import Stats
    >>> from lilliput.observe.inputs import Gram
    >>> from lilliput.solve.levels import CodebookLevels
    >>> together = Stats({"gram": Gram(torch.tensor([[[2.0, 1.9], [1.9, 2.0]]]), 9)})
    >>> AdaRound().settle(torch.tensor([[0.4, 0.3]]), CodebookLevels(torch.tensor([0.0, 1.0])), together)
    tensor([[1., 0.]])
    """

    iterations: int = 1000
    rate: float = 0.02
    strength: float = 0.01

    needs = frozenset({"gram"})

    def __post_init__(self) -> None:
        check_range(NAME, "iterations", self.iterations, 1, 1_000_000)
        check_range(NAME, "rate", self.rate, 1e-6, 10.0)
        check_range(NAME, "strength", self.strength, 0.0, 1e6)

    def settle(self, weight: Tensor, levels: Levels, stats: Any = None) -> Tensor:
        """Returns the levels; see `RoundingSolver`."""
        found = torch.empty_like(weight)
        everything = slice(None)
        for rows, gram in metrics(weight, stats, NAME):
            own = weight[rows]
            below, above = levels.around(own, rows, everything)
            near = levels.near(own, rows, everything)
            zero = own == 0
            below, above, near = (side.masked_fill(zero, 0) for side in (below, above, near))
            up = self._up(own, below, above, gram)
            placed = torch.where(up, above, below)
            better = _error(own - placed, gram) < _error(own - near, gram)
            found[rows] = torch.where(better[:, None], placed, near)
        return found

    def _up(self, weight: Tensor, below: Tensor, above: Tensor, gram: Tensor) -> Tensor:
        """Which weights are rounded up."""
        step = above - below
        live = step > 0
        unit = float(step.square().mean() * gram.diagonal().mean()) or 1.0
        part = torch.where(live, (weight - below) / torch.where(live, step, 1), 0).clamp(0, 1)
        value = -(((ZETA - GAMMA) / (part - GAMMA)) - 1).log()
        mean, square = torch.zeros_like(value), torch.zeros_like(value)
        for number in range(1, self.iterations + 1):
            sigmoid = value.sigmoid()
            h = (sigmoid * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
            slope = ((below + h * step - weight) @ gram) * step * (2 / unit)
            progress = (number / self.iterations - 0.2) / 0.8
            if progress > 0:
                power = 2 + 9 * (1 + math.cos(progress * math.pi))
                off = 2 * h - 1
                slope -= 2 * self.strength * power * off.sign() * off.abs().pow(power - 1)
            slope *= (ZETA - GAMMA) * sigmoid * (1 - sigmoid) * ((h > 0) & (h < 1))
            mean.lerp_(slope, 0.1)
            square.lerp_(slope.square(), 0.001)
            ahead = mean / (1 - 0.9**number)
            value -= self.rate * ahead / ((square / (1 - 0.999**number)).sqrt() + 1e-8)
        return (value > 0) & live


def _error(change: Tensor, gram: Tensor) -> Tensor:
    """What a change of the weights does to each row's outputs, (rows,)."""
    return ((change @ gram) * change).sum(1, dtype=torch.float64)
