"""Optimal brain compression: what is left of a layer makes up for each weight that is removed (SparseGPT's sweep)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed
from lilliput.core.stats import needed
from lilliput.observe.inputs import Gram
from lilliput.prune.sparse import Sparse, mask_of, pattern_of
from lilliput.solve.inverse_hessian import Choose, inverse_factor, sweep
from lilliput.solve.least_squares import refit
from lilliput.solve.selection import largest

NAME = "prune/obc"


@dataclass(frozen=True)
class OBC(Sparse):
    """Minimises |(W - W') X|^2 of each layer, weight by weight, by the optimal brain surgeon.

    All outputs of a layer share the Hessian H = X^T X / n of its inputs. Columns are gone through in their order, and
    what is removed from one is made up for by those still to come: with U^T U = H^-1 the weight of smallest
    w^2 / U_ii^2 costs least (Frantar & Alistarh 2022, arXiv 2208.11580; 2023, arXiv 2301.00774). Of each block the
    same part is removed, of an N:M pattern the worst in each group as the sweep reaches it; a pattern of filters,
    channels or blocks is chosen by w^2 / [H^-1]_ii beforehand. Then the weights that are left are fitted once more,
    all together.

    Linear layers and convolutions (by their unfolded inputs). Memory: the layer three times and H three times.

    Attributes:
        damping: part of H's mean diagonal that is added to its diagonal.
        block: columns whose mask is chosen together.
        refit: steps of conjugate gradients after the sweep; 0 for the published method.

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
        before = mask_of(prior) if prior is not None else weight != 0
        solved, mask = self._solved(weight.detach(), stats, gram, before)
        found = Packed("prune/sparse", tuple(weight.shape), weight.dtype, {"mask": mask}, {"pattern": self.pattern})
        made = super().pack(weight, stats, found)
        return replace(made, parts={**made.parts, "values": solved[mask]})

    def _solved(self, weight: Tensor, stats: Any, gram: Gram, alive: Tensor) -> tuple[Tensor, Tensor]:
        """The new weights and which they are, both of the weight's shape."""
        pattern = pattern_of(self.pattern)
        width = int(getattr(pattern, "m", 0))
        groups, columns = gram.matrix.shape[:2]
        order = _by_inputs(weight, columns) if width else torch.arange(columns, device=weight.device)
        size = float(weight.abs().max()) or 1.0
        kind = torch.promote_types(weight.dtype, torch.float32)
        whole = (weight.to(kind) / size).mul_(alive).reshape(groups, -1, columns)[..., order]
        live = alive.reshape(groups, -1, columns)[..., order]
        mask = torch.empty_like(live)
        if width:
            widths = _widths(weight.shape[1], width) * (columns // weight.shape[1])
        else:
            widths = _widths(columns, self.block)
        if width or self.pattern == "unstructured":
            pick = _Quota(self.sparsity, live) if not width else _Groups(pattern, self.sparsity)
        else:
            scores = self.score(weight, stats).masked_fill(~alive, -torch.inf)
            mask = (pattern.select(scores, self.sparsity) & alive).reshape(live.shape)
            pick = None
        for group, own in enumerate(whole):
            matrix = gram.matrix[group].to(kind)
            if width:
                matrix = matrix[order][:, order]
            chooser = _chooser(pick, live[group], mask[group])
            whole[group] = self._one(own, matrix, mask[group], chooser, widths)
        back = order.argsort()
        most = torch.finfo(weight.dtype).max
        solved = whole[..., back].mul_(size).reshape(weight.shape).clamp_(-most, most)
        return solved.to(weight.dtype), mask[..., back].reshape(weight.shape)

    def _one(self, weight: Tensor, gram: Tensor, mask: Tensor, choose: Choose, widths: list[int]) -> Tensor:
        """Removes weights of one group of outputs; `choose` fills in the mask."""
        weight[:, gram.diagonal() == 0] = 0
        try:
            swept = sweep(weight, inverse_factor(gram, self.damping), choose, widths, self.block)
        except ValueError as error:
            raise MethodError(f"{NAME}: {error}; give more or other calibration data") from None
        if not self.refit:
            return swept
        return refit(weight, gram, mask, swept, damping=self.damping, iterations=self.refit)

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


def _chooser(pick: Pick | None, live: Tensor, mask: Tensor) -> Choose:
    """Chooses by `pick` and notes it in the mask; without it, chooses as the mask says."""

    def choose(saliency: Tensor, start: int, stop: int) -> Tensor:
        if pick is not None:
            mask[:, start:stop] = pick(saliency, live[:, start:stop])
        return mask[:, start:stop]

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
