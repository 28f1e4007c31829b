"""The pattern of kernel shapes: one place of the window of one input, for all outputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lilliput.solve import groups


@dataclass(frozen=True)
class KernelShape:
    """Keeps the columns W[:, c, i, j] of the lowered matrix whose scores have the largest sums.

    Shape-wise sparsity of Wen et al. 2016 (arXiv 1608.03665): all filters get the same holes, so that the matrix
    product of a convolution loses whole columns. In a linear layer a column is an input.

    >>> import torch
    >>> KernelShape().select(torch.tensor([[[3.0, 1.0]], [[2.0, 0.0]]]), 0.5)
    tensor([[[ True, False]],
    <BLANKLINE>
            [[ True, False]]])
    """

    def select(self, scores: Tensor, sparsity: float) -> Tensor:
        """Returns the mask of the weights to keep; see `core.method.Pattern`."""
        return groups.best(scores, "shape", self._left(tuple(scores.shape), sparsity))

    def fits(self, mask: Tensor, sparsity: float) -> bool:
        """Whether no more groups hold something alive than are to be kept."""
        alive = groups.alive(groups.as_matrix(mask), "shape")
        return alive <= self._left(tuple(mask.shape), sparsity)

    def units(self, scores: Tensor) -> Tensor:
        """Returns the score of each group, the sum over its weights."""
        matrix = groups.as_matrix(scores)
        return groups.sums(matrix, groups.axes_within("shape", matrix.ndim)).flatten()

    def _left(self, shape: tuple[int, ...], sparsity: float) -> int:
        return groups.remaining(groups.group_count(shape, "shape"), sparsity)
