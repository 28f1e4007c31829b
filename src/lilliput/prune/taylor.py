"""The Taylor criterion: channels without which the cost would change least, by its slope; and the oracle for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.stats import needed
from lilliput.observe import outputs
from lilliput.observe.gradients import Evaluate
from lilliput.prune.sparse import Sparse

NAME = "prune/taylor"


@dataclass(frozen=True)
class Taylor(Sparse):
    """Scores a channel by |mean over places of dC/dz * z|, for each example, averaged (Molchanov et al. 2017).

    z is the map after the activation function. Scores of a layer are scaled to length 1, so that layers can be ranked
    together; then `macs` times the multiplications of one map is subtracted: costly layers lose more. With `oracle` a
    channel's score is what the criterion approximates, the change of the cost with the channel's weights at zero,
    measured on a few batches: one run of the model for each channel.

    Attributes:
        normalize: scale each layer's scores to length 1.
        macs: cost of a million multiplications, in units of the scores; the paper has about 1e-3.
        oracle: measure instead of estimating. The layer's bias stays as it is.

    >>> from lilliput.core.stats import Stats
    >>> stats = Stats({"taylor": outputs.Taylor(torch.tensor([3.0, 4.0]), 10, 1)})
    >>> Taylor().channels(stats)
    tensor([0.6000, 0.8000])
    """

    pattern: str = "filter"
    normalize: bool = True
    macs: float = 0.0
    oracle: bool = False

    needs = frozenset({"taylor"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(NAME, "macs", self.macs, 0.0, 1e6)
        if self.oracle:
            object.__setattr__(self, "needs", frozenset({"taylor", "evaluate"}))

    def channels(self, stats: Any) -> Tensor:
        """Returns the score of each output channel by the slope, (channels,)."""
        found: outputs.Taylor = needed(stats, "taylor", NAME)
        return self._finished(found.change, found.macs)

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the scores, of the weight's shape: each channel's in equal parts."""
        if not self.oracle:
            return outputs.over_filters(self.channels(stats), weight, NAME)
        found: outputs.Taylor = needed(stats, "taylor", NAME)
        measured = changes_without(weight, needed(stats, "evaluate", NAME)).abs()
        return outputs.over_filters(self._finished(measured, found.macs), weight, NAME)

    def _finished(self, change: Tensor, macs: int) -> Tensor:
        if not bool(change.isfinite().all()):
            raise MethodError(f"{NAME}: gradients aren't finite; check the loss and the data")
        length = torch.linalg.vector_norm(change)
        return (change / length if self.normalize and length > 0 else change) - self.macs * 1e-6 * macs

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsity 50 %."""
        return (cls(sparsity=0.5),)


def changes_without(weight: Tensor, evaluate: Evaluate) -> Tensor:
    """Returns by how much the cost changes with the weights of each output channel at zero, (channels,), float64."""
    before = evaluate(weight)
    found = []
    for channel in range(weight.shape[0]):
        without = weight.detach().clone()
        without[channel] = 0
        found.append(evaluate(without) - before)
    return torch.tensor(found, dtype=torch.float64)
