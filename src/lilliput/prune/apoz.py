"""Average percentage of zeros: channels that are silent most of the time are removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed
from lilliput.core.stats import needed
from lilliput.observe.outputs import Outputs, over_filters
from lilliput.prune.sparse import Sparse

NAME = "prune/apoz"


@dataclass(frozen=True)
class APoZ(Sparse):
    """Scores a channel by 1 - APoZ, the part of its activations that aren't exactly 0 (Hu et al. 2016, 1607.03250).

    Counted over all examples and places, after the activation function; it discriminates only after a ReLU. Either a
    `sparsity` or the paper's rule, which removes channels whose APoZ is above the layer's mean by so many standard
    deviations.

    Attributes:
        deviations: 0 to prune by sparsity; the paper has 1.

    >>> from lilliput.core.stats import Stats
    >>> import torch
    >>> stats = Stats({"outputs": Outputs(4, torch.tensor([4, 1]), torch.zeros(2), torch.zeros(2))})
    >>> APoZ().score(torch.ones(2, 1), stats).flatten()
    tensor([0.0000, 0.7500])
    """

    pattern: str = "filter"
    deviations: float = 0.0

    needs = frozenset({"outputs"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(NAME, "deviations", self.deviations, 0.0, 100.0)
        if self.deviations and self.sparsity:
            raise MethodError(f"{NAME}: give a sparsity or deviations, not both")

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the scores, of the weight's shape: each channel's in equal parts."""
        found: Outputs = needed(stats, "outputs", NAME)
        return over_filters(1 - found.zeros.double() / found.count, weight, NAME)

    def mask(self, weight: Tensor, stats: Any = None, alive: Tensor | None = None) -> Tensor:
        """Returns which weights are kept; see the class."""
        if not self.deviations:
            return super().mask(weight, stats, alive)
        alive = weight != 0 if alive is None else alive
        zeros = 1 - self.score(weight, stats).flatten(1).double().sum(1)
        limit = zeros.mean() + self.deviations * zeros.std(correction=0)
        keep = (zeros <= limit + 1e-12).reshape(-1, *[1] * (weight.ndim - 1))
        return alive & keep

    def fulfilled(self, prior: Packed) -> bool:
        """By deviations: a mask stays as it was first made."""
        return bool(self.deviations) or super().fulfilled(prior)

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsity 50 %."""
        return (cls(sparsity=0.5),)
