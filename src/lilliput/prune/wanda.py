"""Wanda: weights that are small, times inputs that are small, are removed; each output keeps as many as the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.stats import needed
from lilliput.observe.inputs import Moments
from lilliput.prune.sparse import Sparse

NAME = "prune/wanda"


@dataclass(frozen=True)
class Wanda(Sparse):
    """Scores a weight by |w_ij| * |x_j|, the norm of its input over the calibration data (Sun et al. 2023, 2306.11695).

    It is what `obc` comes to without making up for what is removed, and with a diagonal Hessian. Weights compete
    within their output, as in the paper; then the score is the place among the weights of that output.

    Attributes:
        per: `"output"` to compare within each output (row), `"layer"` within the whole layer.

    >>> from lilliput.observe.collect import collect
    >>> layer = torch.nn.Linear(2, 1)
    >>> stats = collect(layer, {"weight": Wanda.needs}, [torch.tensor([[1.0, 100.0]])])["weight"]
    >>> Wanda(sparsity=0.5).mask(torch.tensor([[3.0, -1.0]]), stats)
    tensor([[False,  True]])
    """

    per: Literal["output", "layer"] = "output"

    needs = frozenset({"inputs"})

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the scores, of the weight's shape.

        Raises:
            MethodError: there are no stats.
        """
        moments: Moments = needed(stats, "inputs", NAME)
        norms = moments.square.sqrt()
        norms = (norms / norms.max().clamp(min=1e-300)).to(torch.promote_types(weight.dtype, torch.float32))
        groups = len(norms)
        scores = weight.abs().to(norms.dtype).reshape(groups, -1, norms.shape[1]) * norms[:, None, :]
        if self.per == "output":
            order = scores.argsort(dim=-1, stable=True, descending=True)
            places = torch.arange(norms.shape[1], 0, -1, device=weight.device).expand_as(order)
            scores = torch.empty_like(scores).scatter_(-1, order, places.to(scores.dtype))
        return scores.reshape(weight.shape)

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsities 70 % and 50 %."""
        return tuple(cls(sparsity=s) for s in (0.7, 0.5))
