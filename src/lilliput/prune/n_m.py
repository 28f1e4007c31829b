"""The N:M pattern: of each M consecutive inputs N are read, as sparse tensor units and vector kernels expect it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.solve import groups


@dataclass(frozen=True)
class NM:
    """Keeps the n best of each m consecutive inputs, for each output and place of the window (arXiv 2104.08378).

    Spelled `2:4`. With n given, that is the sparsity, 1 - n / m, and on the way to it (by a schedule) more are kept:
    m - round(sparsity * m). Without n, `n_m:0:8`, n is what the sparsity asks for, 1 at least. A last group that is
    shorter than m keeps n, too.

    Attributes:
        n: weights kept in a group; 0 to go by the sparsity.
        m: inputs in a group.

    >>> import torch
    >>> NM(2, 4).select(torch.tensor([[3.0, 1.0, 2.0, 0.0, 5.0, 6.0, 7.0, 8.0]]), 0.5).int()
    tensor([[1, 0, 1, 0, 0, 0, 1, 1]], dtype=torch.int32)
    """

    n: int = 0
    m: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.n <= self.m or self.m < 1:
            raise MethodError(f"prune/n_m: {self.n}:{self.m}: of each m weights 1 to m can be kept")

    @property
    def sparsity(self) -> float:
        """The part of the weights that the pattern removes by itself; 0 if it goes by what is asked for."""
        return 1 - self.n / self.m if self.n else 0.0

    def select(self, scores: Tensor, sparsity: float) -> Tensor:
        """Returns the mask of the weights to keep; see `core.method.Pattern`."""
        matrix = groups.as_matrix(scores)
        tiles = self._tiles(scores, -torch.inf)
        order = tiles.argsort(dim=-1, descending=True, stable=True)[..., : self._left(sparsity)]
        mask = torch.zeros_like(tiles, dtype=torch.bool).scatter_(-1, order, True).flatten(-2)
        return mask[..., : matrix.shape[1]].movedim(-1, 1).reshape(scores.shape).contiguous()

    def fits(self, mask: Tensor, sparsity: float) -> bool:
        """Whether no group has more alive than are to be kept."""
        alive = self._tiles(mask, False).sum(-1)
        return not alive.numel() or int(alive.max()) <= self._left(sparsity)

    def _tiles(self, tensor: Tensor, filling: float) -> Tensor:
        matrix = groups.as_matrix(tensor).movedim(1, -1)
        padded = functional.pad(matrix, (0, -matrix.shape[-1] % self.m), value=filling)
        return padded.reshape(*padded.shape[:-1], padded.shape[-1] // self.m, self.m)

    def _left(self, sparsity: float) -> int:
        return max(self.m - round(sparsity * self.m), self.n, 1)
