"""The pattern without structure: single weights, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass

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
        return largest(scores, scores.numel() - round(sparsity * scores.numel()))
