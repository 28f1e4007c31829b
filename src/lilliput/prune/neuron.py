"""The pattern of neurons: the rows of a matrix, with one row for each gate of a recurrent neuron."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.solve import groups
from lilliput.solve.selection import largest


@dataclass(frozen=True)
class Neuron:
    """Keeps the neurons whose incoming weights have the scores with the largest sums; ceil(sparsity * N) are removed.

    In a linear layer a neuron is a row. A recurrent layer holds a neuron's gates in rows apart: row i of each of
    `gates` equal parts, 4 in an LSTM (spelled `neuron:4`), 3 in a GRU. One neuron at least stays.

    Attributes:
        gates: rows that belong to a neuron.

    >>> import torch
    >>> Neuron(gates=2).select(torch.tensor([[1.0], [5.0], [2.0], [0.0]]), 0.5).flatten()
    tensor([False,  True, False,  True])
    """

    gates: int = 1

    def __post_init__(self) -> None:
        if self.gates < 1:
            raise MethodError(f"prune/neuron: gates = {self.gates} must be at least 1")

    def select(self, scores: Tensor, sparsity: float) -> Tensor:
        """Returns the mask of the weights to keep; see `core.method.Pattern`.

        Raises:
            MethodError: if the rows can't be shared out among the gates.
        """
        parts = self._parts(scores)
        chosen = largest(groups.sums(parts, (0, 2)), self._left(tuple(scores.shape), sparsity))
        return chosen.expand(parts.shape).reshape(scores.shape).clone()

    def units(self, scores: Tensor) -> Tensor:
        """Returns the score of each neuron, the sum over its weights."""
        return groups.sums(self._parts(scores), (0, 2)).flatten()

    def _parts(self, scores: Tensor) -> Tensor:
        rows = groups.group_count(tuple(scores.shape), "filter")
        if rows % self.gates:
            raise MethodError(f"prune/neuron: {rows} rows are no {self.gates} gates of equally many neurons")
        return scores.reshape(self.gates, rows // self.gates, groups.size_of_groups(tuple(scores.shape), "filter"))

    def _left(self, shape: tuple[int, ...], sparsity: float) -> int:
        return groups.remaining(groups.group_count(shape, "filter") // self.gates, sparsity, up=True)
