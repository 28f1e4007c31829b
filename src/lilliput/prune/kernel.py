"""The pattern of whole kernels: the window by which one output reads one input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lilliput.solve import groups


@dataclass(frozen=True)
class Kernel:
    """Keeps the 2-D kernels W[n, c] whose scores have the largest sums (Anwar and Sung 2016, arXiv 1610.09639).

    In a linear layer a kernel is a single weight.

    >>> import torch
    >>> Kernel().select(torch.tensor([[[3.0, 1.0], [2.0, 0.0]]]), 0.5)
    tensor([[[ True,  True],
             [False, False]]])
    """

    def select(self, scores: Tensor, sparsity: float) -> Tensor:
        """Returns the mask of the weights to keep; see `core.method.Pattern`."""
        return groups.best(scores, "kernel", self._left(tuple(scores.shape), sparsity))

    def fits(self, mask: Tensor, sparsity: float) -> bool:
        """Whether no more groups hold something alive than are to be kept."""
        alive = groups.alive(groups.as_matrix(mask), "kernel")
        return alive <= self._left(tuple(mask.shape), sparsity)

    def units(self, scores: Tensor) -> Tensor:
        """Returns the score of each group, the sum over its weights."""
        matrix = groups.as_matrix(scores)
        return groups.sums(matrix, groups.axes_within("kernel", matrix.ndim)).flatten()

    def _left(self, shape: tuple[int, ...], sparsity: float) -> int:
        return groups.remaining(groups.group_count(shape, "kernel"), sparsity)
