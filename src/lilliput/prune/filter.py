"""The pattern of whole filters: all weights that give one output channel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lilliput.solve import groups


@dataclass(frozen=True)
class Filter:
    """Keeps the filters W[n] whose scores have the largest sums; ceil(sparsity * N) of N are removed, never all.

    Rounding up is what reproduces the counts in the tables of Li et al. 2017 (arXiv 1608.08710). In a linear layer a
    filter is a row. What a removed filter gave, its bias, is folded into the next layer when the file is made.

    >>> import torch
    >>> Filter().select(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), 0.5)
    tensor([[ True,  True],
            [False, False]])
    """

    def select(self, scores: Tensor, sparsity: float) -> Tensor:
        """Returns the mask of the weights to keep; see `core.method.Pattern`."""
        return groups.best(scores, "filter", self._left(tuple(scores.shape), sparsity))

    def fits(self, mask: Tensor, sparsity: float) -> bool:
        """Whether no more groups hold something alive than are to be kept."""
        alive = groups.alive(groups.as_matrix(mask), "filter")
        return alive <= self._left(tuple(mask.shape), sparsity)

    def units(self, scores: Tensor) -> Tensor:
        """Returns the score of each group, the sum over its weights."""
        matrix = groups.as_matrix(scores)
        return groups.sums(matrix, groups.axes_within("filter", matrix.ndim)).flatten()

    def _left(self, shape: tuple[int, ...], sparsity: float) -> int:
        return groups.remaining(groups.group_count(shape, "filter"), sparsity, up=True)
