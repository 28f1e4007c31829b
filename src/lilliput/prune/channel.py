"""The pattern of whole input channels: all weights that read one input channel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lilliput.solve import groups


@dataclass(frozen=True)
class Channel:
    """Keeps the inputs W[:, c] whose scores have the largest sums; ceil(sparsity * C) of C are removed, never all.

    An input that nobody reads lets the layer before it lose the filter that makes it (Wen et al. 2016, arXiv
    1608.03665, channel-wise). A vector has one input.

    >>> import torch
    >>> Channel().select(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), 0.5)
    tensor([[ True, False],
            [ True, False]])
    """

    def select(self, scores: Tensor, sparsity: float) -> Tensor:
        """Returns the mask of the weights to keep; see `core.method.Pattern`."""
        return groups.best(scores, "channel", self._left(tuple(scores.shape), sparsity))

    def fits(self, mask: Tensor, sparsity: float) -> bool:
        """Whether no more groups hold something alive than are to be kept."""
        alive = groups.alive(groups.as_matrix(mask), "channel")
        return alive <= self._left(tuple(mask.shape), sparsity)

    def units(self, scores: Tensor) -> Tensor:
        """Returns the score of each group, the sum over its weights."""
        matrix = groups.as_matrix(scores)
        return groups.sums(matrix, groups.axes_within("channel", matrix.ndim)).flatten()

    def _left(self, shape: tuple[int, ...], sparsity: float) -> int:
        return groups.remaining(groups.group_count(shape, "channel"), sparsity, up=True)
