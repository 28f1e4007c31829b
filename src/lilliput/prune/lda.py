"""Discriminant analysis: channels whose activations don't tell the classes apart are removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.stats import needed
from lilliput.observe.outputs import Peaks, over_filters
from lilliput.prune.sparse import Sparse

NAME = "prune/lda"


@dataclass(frozen=True)
class LDA(Sparse):
    """Scores a channel by the part of its variance that lies between the classes (Tian et al. 2017, arXiv 1704.06305).

    x is the largest activation of the channel's map, s_w^2 its variance within the classes, s_b^2 between them:
    ICC = s_b^2 / (s_b^2 + s_w^2). The paper scores the last convolution alone, and finds what earlier layers give to
    the channels kept there; a score for each layer by itself, as here, is an extension.

    Attributes:
        estimator: `"anova"` as above, the R^2 of a one-way analysis of variance; `"icc1"` for (MSB - MSW) /
            (MSB + (k - 1) MSW), with k the mean number of examples of a class, which is 0 in the mean for a channel
            that knows nothing of the classes.

    >>> from lilliput.core.stats import Stats
    >>> means, squares = torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[2.0], [2.0]]).double()
    >>> peaks = Peaks(torch.tensor([2, 2]), means, squares)
    >>> LDA().score(torch.ones(1, 1), Stats({"peaks": peaks}))
    tensor([[0.5000]])
    """

    pattern: str = "filter"
    estimator: Literal["anova", "icc1"] = "anova"

    needs = frozenset({"peaks"})

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the scores, of the weight's shape: each channel's in equal parts.

        Raises:
            MethodError: there are no stats, or of fewer than two classes, or one example a class.
        """
        peaks: Peaks = needed(stats, "peaks", NAME)
        present = peaks.counts > 0
        counts = peaks.counts[present].double()
        classes, total = len(counts), float(counts.sum())
        if classes < 2 or total <= classes:
            raise MethodError(f"{NAME}: {int(total)} examples of {classes} classes; give more data, of two at least")
        means, within = peaks.means[present], peaks.squares[present].sum(0)
        overall = (counts[:, None] * means).sum(0) / total
        between = (counts[:, None] * (means - overall).square()).sum(0)
        if self.estimator == "icc1":
            large, small = between / (classes - 1), within / (total - classes)
            top, bottom = large - small, large + (total / classes - 1) * small
        else:
            top, bottom = between, between + within
        return over_filters(torch.where(bottom > 0, top / bottom, 0.0), weight, NAME)

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsity 50 %."""
        return (cls(sparsity=0.5),)
