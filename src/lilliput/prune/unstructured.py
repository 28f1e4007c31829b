"""The pattern without structure: single weights, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.solve.selection import largest


@dataclass(frozen=True)
class Unstructured:
    """Keeps the best-scoring weights of the whole tensor.

    >>> import torch
    >>> Unstructured().select(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), 0.5)
    tensor([[ True, False],
            [ True, False]])
    """

    def select(self, scores: Tensor, sparsity: float) -> Tensor:
        """Returns the mask of the weights to keep.

        Args:
            scores: any shape; what scores higher is kept, of equals the first.
            sparsity: part of the weights to be removed; numel - round(sparsity * numel) are kept.
        """
        return largest(scores, kept_count(scores.numel(), sparsity))

    def fits(self, mask: Tensor, sparsity: float) -> bool:
        """Whether no more weights are alive than are to be kept: any place is as good as another."""
        return int(torch.count_nonzero(mask)) <= kept_count(mask.numel(), sparsity)

    def units(self, scores: Tensor) -> Tensor:
        """Returns the score of each weight."""
        return scores.flatten()


def kept_count(numel: int, sparsity: float) -> int:
    """Returns how many of `numel` weights stay at this sparsity: numel - round(sparsity * numel)."""
    return numel - round(sparsity * numel)
