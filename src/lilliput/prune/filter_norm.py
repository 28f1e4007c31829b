"""Filter norms: filters of small weights are removed whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.stats import needed
from lilliput.observe.sources import Source
from lilliput.prune.sparse import Sparse, mask_of
from lilliput.solve.groups import as_matrix, axes_within
from lilliput.solve.shrinkage import group_norms

NAME = "prune/filter_norm"


@dataclass(frozen=True)
class FilterNorm(Sparse):
    """Keeps the filters of largest norm (Li et al. 2017, arXiv 1608.08710): s_n = sum |W[n]|, or the root of squares.

    `greedy` leaves out the kernels that read a filter which the layer before lost; otherwise each layer is judged by
    itself. Which layer is before is seen as one batch of data runs through the network, so greedy needs data: a layer
    whose inputs are not the outputs of one layer of the rule, through norms, activations, pooling and flattening
    alone (as behind a residual sum, of which nothing is lost with one filter) is judged by itself. Of layers that an
    identity shortcut joins leave out the last, as the paper does (it prunes the first layer of each block alone).
    Sensitive layers get a rule of their own with a smaller sparsity, or without steps; `lilliput sensitivity` finds
    them.

    Attributes:
        norm: 1 or 2.
        greedy: see above.
        lost: inputs that the layer before doesn't give any more; found by `greedy`, leave it.

    >>> FilterNorm(sparsity=0.5).pack(torch.tensor([[1.0, 1.0], [0.0, 1.5]])).parts["values"]
    tensor([1., 1.])
    """

    pattern: str = "filter"
    norm: Literal[1, 2] = 1
    greedy: bool = False
    lost: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in (1, 2):
            raise MethodError(f"{NAME}: norm = {self.norm} must be 1 or 2")
        if self.greedy and self.scope == "global":
            raise MethodError(
                f"{NAME}: greedy goes from layer to layer, scope = 'global' ranks all at once: choose one"
            )
        if self.greedy:
            object.__setattr__(self, "needs", frozenset({"source"}))

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns for each weight the norm of its filter, divided by the number of its weights."""
        matrix = as_matrix(weight.detach())
        if self.lost:
            places = torch.tensor(
                [i for i in self.lost if i < matrix.shape[1]], dtype=torch.int64, device=weight.device
            )
            matrix = matrix.index_fill(1, places, 0)
        axes = axes_within("filter", matrix.ndim)
        precise = matrix.double()
        norms = precise.abs().sum(axes, keepdim=True) if self.norm == 1 else group_norms(precise, axes)
        size = max(matrix[:1].numel(), 1)
        return (norms / size).expand(matrix.shape).reshape(weight.shape).float()

    @property
    def together(self) -> bool:
        """Whether a layer's setting depends on another's."""
        return bool(self.sparsity) and (self.greedy or self.scope == "global")

    def allot(self, weights: Mapping[str, Tensor], stats: Mapping[str, Any]) -> dict[str, WeightMethod]:
        """Goes through the layers as data does; each is told which of its inputs the one before has lost."""
        if not self.greedy:
            return super().allot(weights, stats)
        sources = {name: needed(stats.get(name), "source", NAME) for name in weights}
        steps: dict[str, WeightMethod] = {}
        gone: dict[str, list[int]] = {}
        for name in _in_order(sources):
            source: Source = sources[name]
            channels = gone.get(source.weight or "", [])
            lost = tuple(i for channel in channels for i in range(channel * source.each, (channel + 1) * source.each))
            step = replace(self, greedy=False, lost=lost)
            steps[name] = step
            weight = weights[name]
            kept = mask_of(step.pack(weight)).flatten(1).any(1) if weight.ndim > 1 else torch.ones(0)
            gone[name] = (~kept.bool()).nonzero().flatten().tolist()
        return {name: steps[name] for name in weights}


def _in_order(sources: Mapping[str, Source]) -> list[str]:
    """Names, each behind the one whose outputs it reads if that is among them."""
    order: dict[str, None] = {}
    for name in sources:
        chain: list[str] = []
        at: str | None = name
        while at is not None and at in sources and at not in order and at not in chain:
            chain.append(at)
            at = sources[at].weight
        order |= dict.fromkeys(reversed(chain))
    return list(order)
