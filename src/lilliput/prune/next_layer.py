"""Channels that the next layer can do without: removed so that its outputs move least, and its weights fitted anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed
from lilliput.core.stats import needed
from lilliput.observe.inputs import Gram
from lilliput.prune.sparse import Sparse, mask_of
from lilliput.solve.channels import greedy_order, lasso_order, shares
from lilliput.solve.least_squares import refit

NAME = "prune/next_layer"


@dataclass(frozen=True)
class NextLayer(Sparse):
    """Removes input channels of a layer, for which filters of the layer before can go; the rest makes up for them.

    A_jk is the mean product of what channels j and k add to the outputs; removing a set T changes them by the sum of A
    over T x T. `"thinet"` removes greedily the channel for which it grows least (Luo, Wu & Lin 2017, 1707.06342);
    `"lasso"` ranks channels by where on the path of min |Y - sum_j beta_j Y_j|^2 + lambda |beta|_1 they enter (He,
    Zhang & Sun 2017, 1707.06168). Then the weights left are fitted to the outputs by least squares. All from the Gram
    matrix of the layer's inputs, that is from all places, where the papers sample some.

    Attributes:
        by: `"thinet"` or `"lasso"`.
        damping: of the least squares, relative to the Gram matrix's mean diagonal.
        reconstruct: fit the weights that are left.
    """

    pattern: str = "channel"
    by: Literal["thinet", "lasso"] = "thinet"
    damping: float = 1e-4
    reconstruct: bool = True

    needs = frozenset({"gram"})
    updates = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(NAME, "damping", self.damping, 0.0, 10.0)

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the scores, of the weight's shape, equal within an input channel (of a group of outputs)."""
        gram, rows = self._matrices(weight, stats)
        kind = torch.promote_types(weight.dtype, torch.float32)
        found = []
        for matrix, own in zip(gram, rows):
            products = shares(own, matrix, weight.shape[1])
            ranks = greedy_order(products) if self.by == "thinet" else lasso_order(products)
            found.append(ranks.to(kind).repeat_interleave(own.shape[1] // weight.shape[1]).expand(own.shape))
        return torch.stack(found).reshape(weight.shape)

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs as every pruning method does, with values that make up for what is removed.

        Raises:
            MethodError: a weight isn't finite; there are no stats, or of another layer.
        """
        packed = super().pack(weight, stats, prior)
        done = prior is not None and self.fulfilled(prior)
        if not self.sparsity or not weight.numel() or done or not self.reconstruct:
            return packed
        gram, rows = self._matrices(weight.detach(), stats)
        mask = mask_of(packed).reshape(rows.shape)
        parts = [
            refit(own, matrix, kept, own * kept, damping=self.damping, iterations=256)
            for own, matrix, kept in zip(rows, gram, mask)
        ]
        most = torch.finfo(weight.dtype).max
        size = float(weight.abs().max()) or 1.0
        solved = torch.stack(parts).mul_(size).clamp_(-most, most).to(weight.dtype).reshape(weight.shape)
        return replace(packed, parts={**packed.parts, "values": solved[mask_of(packed)]})

    def _matrices(self, weight: Tensor, stats: Any) -> tuple[Tensor, Tensor]:
        """The Gram matrices, and the weight as (groups, outputs, columns), its largest entry 1."""
        gram: Gram = needed(stats, "gram", NAME)
        groups, columns = gram.matrix.shape[:2]
        if weight.shape[0] % groups or weight[0].numel() != columns:
            raise MethodError(f"{NAME}: the Gram matrix {tuple(gram.matrix.shape)} is of another layer")
        kind = torch.promote_types(weight.dtype, torch.float32)
        size = float(weight.abs().max()) or 1.0
        return gram.matrix.to(kind), (weight.to(kind) / size).reshape(groups, -1, columns)

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsity 50 %."""
        return (cls(sparsity=0.5),)
