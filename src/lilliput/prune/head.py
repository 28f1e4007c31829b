"""The pattern of attention heads: equal shares of the inputs of an output projection."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.solve import groups
from lilliput.solve.selection import largest


@dataclass(frozen=True)
class Head:
    """Keeps the attention heads that the output projection reads with the largest sums of scores.

    The heads' outputs lie side by side, so that head h feeds the h-th of `heads` equal shares of the projection's
    inputs; without them it has no say, and its queries, keys and values may go too (Michel et al. 2019, arXiv
    1905.10650). For the projection's weight, such as `*.out_proj.weight`; spelled `head:12`. One head at least stays.

    Attributes:
        heads: how many the layer has.

    >>> import torch
    >>> Head(heads=2).select(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 0.5)
    tensor([[False, False,  True,  True]])
    """

    heads: int = 8

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise MethodError(f"prune/head: heads = {self.heads} must be at least 1")

    def select(self, scores: Tensor, sparsity: float) -> Tensor:
        """Returns the mask of the weights to keep; see `core.method.Pattern`.

        Raises:
            MethodError: if the inputs can't be shared out among the heads.
        """
        parts = self._parts(scores)
        chosen = largest(groups.sums(parts, (0, 2)), self._left(sparsity))
        return chosen.expand(parts.shape).reshape(scores.shape).clone()

    def units(self, scores: Tensor) -> Tensor:
        """Returns the score of each head, the sum over its weights."""
        return groups.sums(self._parts(scores), (0, 2)).flatten()

    def _parts(self, scores: Tensor) -> Tensor:
        if scores.ndim != 2 or scores.shape[1] % self.heads:
            raise MethodError(f"prune/head: {self.heads} heads don't share the inputs of {tuple(scores.shape)} equally")
        return scores.reshape(scores.shape[0], self.heads, scores.shape[1] // self.heads)

    def _left(self, sparsity: float) -> int:
        return groups.remaining(self.heads, sparsity, up=True)
