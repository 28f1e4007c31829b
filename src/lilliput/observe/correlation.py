"""How inputs and outputs of a layer go together: the correlation of each pair, over the examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lilliput.observe.call import Call
from lilliput.observe.inputs import pieces

PLACES = 16
"""Places of a map that count; of larger maps they are taken evenly."""


@dataclass(frozen=True, eq=False)
class Correlation:
    """Correlations between what a weight reads and what its output is, before the activation function.

    Attributes:
        matrix: (outputs, columns): of a linear layer r in -1..1; of a convolution the mean of |r| over places.
        count: examples (of a linear layer all rows).
    """

    matrix: Tensor
    count: int


class CorrelationOf:
    """Collects `Correlation` by streaming moments, in float64, about the means of the first batch."""

    def __init__(self) -> None:
        self.count = 0
        self.linear = True
        self.shift: tuple[Tensor, Tensor] | None = None
        self.sums: list[Tensor] = []

    def see(self, call: Call) -> None:
        """Takes one call of the layer."""
        self.linear = isinstance(call.module, nn.Linear)
        maps, at = call.maps, 0
        for rows in pieces(call.module, call.input):
            groups, columns = len(rows), rows.shape[2]
            places = 1 if self.linear else maps.shape[2]
            examples = rows.shape[1] // max(places, 1)
            if not examples:
                continue
            own = maps.transpose(1, 2).reshape(1, examples, 1, -1) if self.linear else None
            if own is None:
                own = maps[at : at + examples].reshape(examples, groups, -1, places).permute(1, 0, 3, 2)
            chosen = torch.linspace(0, places - 1, min(places, PLACES)).round().long()
            read = rows.reshape(groups, examples, places, columns)[:, :, chosen]
            self._add(read.transpose(1, 2).double(), own[:, :, chosen].transpose(1, 2).double())
            at += examples

    def _add(self, read: Tensor, given: Tensor) -> None:
        """Takes (groups, places, examples, columns) and (groups, places, examples, outputs)."""
        if self.shift is None:
            self.shift = read.mean(2, keepdim=True), given.mean(2, keepdim=True)
        read, given = read - self.shift[0], given - self.shift[1]
        sums = [read.sum(2), given.sum(2), read.square().sum(2), given.square().sum(2), given.transpose(2, 3) @ read]
        self.sums = [old + new for old, new in zip(self.sums, sums)] if self.sums else sums
        self.count += read.shape[2]

    def result(self) -> Correlation | None:
        """Returns what was seen, or None if nothing was."""
        if not self.sums:
            return None
        read, given, read_square, given_square, both = (part / self.count for part in self.sums)
        covariance = both - given[..., :, None] * read[..., None, :]
        spread = ((given_square - given.square())[..., :, None] * (read_square - read.square())[..., None, :]).clamp(
            min=0
        )
        found = torch.where(spread > 1e-24, covariance / spread.sqrt(), 0.0).clamp_(-1, 1)
        matrix = found[:, 0] if self.linear else found.abs().mean(1)
        return Correlation(matrix.flatten(0, 1), self.count)
