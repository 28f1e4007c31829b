"""Optimal brain compression: what is left of a layer makes up for each weight that is removed (SparseGPT's sweep)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed
from lilliput.core.stats import needed
from lilliput.observe.inputs import Gram
from lilliput.prune.sparse import Sparse, mask_of, pattern_of
from lilliput.solve.inverse_hessian import Choose, inverse_factor, sweep_
from lilliput.solve.least_squares import MOST, refit
from lilliput.solve.selection import largest, picked

NAME = "prune/obc"
TOLERANCE = 1e-3
"""A step of the fit that takes less than this part of a layer's error away is the last."""


@dataclass(frozen=True)
class OBC(Sparse):
    """Minimises |(W - W') X|^2 of each layer, weight by weight, by the optimal brain surgeon.

    All outputs of a layer share the Hessian H = X^T X / n of its inputs. Columns are gone through in their order, and
    what is removed from one is made up for by those still to come: with U^T U = H^-1 the weight of smallest
    w^2 / U_ii^2 costs least (Frantar & Alistarh 2022, arXiv 2208.11580; 2023, arXiv 2301.00774). Of each block the
    same part is removed, of an N:M pattern the worst in each group as the sweep reaches it; a pattern of filters,
    channels or blocks is chosen by w^2 / [H^-1]_ii beforehand. Then the weights that are left are fitted once more,
    all together.

    Linear layers and convolutions (by their unfolded inputs). Memory, with what is given: the layer and H three times.

    Attributes:
        damping: part of H's mean diagonal that is added to its diagonal.
        block: columns whose mask is chosen together.
        refit: most steps of conjugate gradients after the sweep; 0 for the published method.

    >>> from lilliput.observe.collect import collect
    >>> layer = torch.nn.Linear(2, 1)
    >>> stats = collect(layer, {"weight": OBC.needs}, [torch.tensor([[1.0, 1.0], [1.0, 1.1]])])["weight"]
    >>> OBC(sparsity=0.5, damping=0).pack(torch.tensor([[1.0, 2.0]]), stats).parts["values"]
    tensor([2.9502])
    """

    damping: float = 0.01
    block: int = 128
    refit: int = 32

    needs = frozenset({"gram"})
    updates = True
    nested = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(NAME, "damping", self.damping, 0.0, 10.0)
        check_range(NAME, "block", self.block, 1, 65536)
        check_range(NAME, "refit", self.refit, 0, 10_000)

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns |w| / sqrt([H^-1]_ii), up to a factor: the root of what removing this weight alone would cost."""
        gram: Gram = needed(stats, "gram", NAME)
        spreads = torch.stack([inverse_factor(matrix, self.damping).square().sum(0).sqrt() for matrix in gram.matrix])
        kind = torch.promote_types(weight.dtype, torch.float32)
        scores = weight.to(kind).reshape(len(spreads), -1, spreads.shape[1]).abs()
        return (scores * (spreads.min() / spreads)[:, None]).to(kind).reshape(weight.shape)

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs as every pruning method does, with values that make up for what is removed.

        Raises:
            MethodError: a weight isn't finite; there are no stats; the stats are of another shape.
        """
        check_weight(weight.detach(), NAME)
        if not self.sparsity or not weight.numel() or (prior is not None and self.fulfilled(prior)):
            return super().pack(weight, stats, prior)
        gram: Gram = needed(stats, "gram", NAME)
        if len(gram.matrix) * weight.shape[0] * gram.matrix.shape[1] != weight.numel() * len(gram.matrix):
            raise MethodError(f"{NAME}: the Gram matrix {tuple(gram.matrix.shape)} is of another layer")
        before = mask_of(prior) if prior is not None else None
        solved, mask = self._solved(weight.detach(), stats, gram, before)
        parts = {"mask": mask, "values": picked(solved, mask)}
        return Packed("prune/sparse", tuple(weight.shape), weight.dtype, parts)

    def _solved(self, weight: Tensor, stats: Any, gram: Gram, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """The new weights and which they are, both of the weight's shape; the mask before, or None for no zeros."""
        pattern = pattern_of(self.pattern)
        width = int(getattr(pattern, "m", 0))
        groups, columns = gram.matrix.shape[:2]
        order = _by_inputs(weight, columns) if width and columns > weight.shape[1] else None
        size = float(weight.abs().max()) or 1.0
        kind = torch.promote_types(weight.dtype, torch.float32)
        # One mask, in which what is removed is noted as the sweep comes to it: a large layer's take memory.
        mask = weight != 0 if before is None else before.clone()
        pick: Pick | None = None
        if width:
            widths, pick = (
                _widths(weight.shape[1], width) * (columns // weight.shape[1]),
                _Groups(pattern, self.sparsity),
            )
        else:
            widths = _widths(columns, self.block)
            if self.pattern == "unstructured":
                pick = _Quota(self.sparsity, mask)
            else:
                mask &= pattern.select(self.score(weight, stats).masked_fill(~mask, -torch.inf), self.sparsity)
        shape = (groups, -1, columns)
        whole = weight.to(kind, copy=True).div_(size).reshape(shape)
        if before is not None:
            whole.mul_(before.reshape(shape))
        for group, own in enumerate(whole):
            matrix, kept = gram.matrix[group].to(kind), mask.reshape(shape)[group]
            own[:, matrix.diagonal() == 0] = 0
            self._swept(own, matrix, _chooser(pick, kept, order), widths, order)
            rows = slice(group * len(own), (group + 1) * len(own))
            alive = None if before is None else before[rows].reshape(own.shape)
            self._refitted(own, matrix, kept, (weight[rows].reshape(own.shape), alive, size))
        most = torch.finfo(weight.dtype).max
        return whole.mul_(size).clamp_(-most, most).reshape(weight.shape).to(weight.dtype), mask.reshape(weight.shape)

    def _swept(self, weight: Tensor, gram: Tensor, choose: Choose, widths: list[int], order: Tensor | None) -> None:
        """Removes weights of one group of outputs, in place; `choose` fills in the mask."""
        try:
            upper = inverse_factor(gram, self.damping, order)
        except ValueError as error:
            raise MethodError(f"{NAME}: {error}; give more or other calibration data") from None
        if order is None:
            sweep_(weight, upper, choose, widths, self.block)
        else:
            weight[:, order] = sweep_(weight[:, order], upper, choose, widths, self.block)

    def _refitted(
        self, weight: Tensor, gram: Tensor, mask: Tensor, wanted: tuple[Tensor, Tensor | None, float]
    ) -> None:
        """Fits what is left of one group of outputs to (the weights, which were alive, their unit), in place."""
        if not self.refit:
            return
        rows = max(1, MOST // weight.shape[1])
        for start in range(0, len(weight), rows):
            part = slice(start, start + rows)
            goal = wanted[0][part].to(weight.dtype) / wanted[2]
            if wanted[1] is not None:
                goal.mul_(wanted[1][part])
            options = {"damping": self.damping, "tolerance": TOLERANCE}
            weight[part] = refit(goal, gram, mask[part], weight[part], iterations=self.refit, **options)

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsities 70 % and 50 %."""
        return tuple(cls(sparsity=s) for s in (0.7, 0.5))


def _by_inputs(weight: Tensor, columns: int) -> Tensor:
    """The order of a convolution's columns in which input channels are neighbours, place by place of the window."""
    return torch.arange(columns, device=weight.device).reshape(weight.shape[1], -1).T.flatten()


def _widths(columns: int, width: int) -> list[int]:
    return [min(width, columns - start) for start in range(0, columns, width)]


Pick = Callable[[Tensor, Tensor], Tensor]
"""(saliency, alive) of a group of columns -> which weights are kept."""


def _chooser(pick: Pick | None, mask: Tensor, order: Tensor | None) -> Choose:
    """Chooses by `pick` of what the mask says is alive, and notes it there; without it, chooses as the mask says."""

    def choose(saliency: Tensor, start: int, stop: int) -> Tensor:
        columns = slice(start, stop) if order is None else order[start:stop]
        if pick is not None:
            mask[:, columns] = pick(saliency, mask[:, columns])
        return mask[:, columns]

    return choose


@dataclass
class _Quota:
    """Removes from each block what keeps the part removed so far at the sparsity, exactly so in the end.

    What is dead already is removed first, and room is left for what is dead in later blocks.
    """

    sparsity: float
    alive: Tensor
    seen: int = 0
    removed: int = 0

    def __post_init__(self) -> None:
        self.total = round(self.sparsity * self.alive.numel())
        self.later = self.alive.numel() - int(torch.count_nonzero(self.alive))

    def __call__(self, saliency: Tensor, alive: Tensor) -> Tensor:
        dead = alive.numel() - int(torch.count_nonzero(alive))
        self.seen += alive.numel()
        self.later -= dead
        asked = max(round(self.sparsity * self.seen) - self.removed, dead)
        count = max(min(asked, self.total - self.removed - self.later, alive.numel()), dead)
        self.removed += count
        return largest(saliency.masked_fill(~alive, -torch.inf), alive.numel() - count)


@dataclass
class _Groups:
    """Chooses within each group of an N:M pattern."""

    pattern: Any
    sparsity: float

    def __call__(self, saliency: Tensor, alive: Tensor) -> Tensor:
        kept: Tensor = self.pattern.select(saliency.masked_fill(~alive, -torch.inf), self.sparsity)
        return kept & alive
