"""Energy-aware pruning: small weights go, those that the outputs miss most come back, and the rest is fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed
from lilliput.core.stats import needed
from lilliput.observe.inputs import Gram, Samples
from lilliput.prune.sparse import Sparse, mask_of
from lilliput.solve.least_squares import refit
from lilliput.solve.restoration import restored
from lilliput.solve.selection import largest

NAME = "prune/energy_aware"


@dataclass(frozen=True)
class EnergyAware(Sparse):
    """For each filter a with q weights to keep: min |X a - X a'|_p, |a'|_0 <= q (Yang, Chen & Sze 2017, 1611.05128).

    Remove: only the largest (1 - restore) q weights are kept. Restore: of those removed, the ones that lower the error
    of the filter's outputs most, measured by p on sampled inputs X, come back until there are q. Fit: those left are
    the least-squares solution over all inputs. The paper goes through the layers by falling energy:
    `search.layers.by_energy` gives the order, `in_turn` goes by it, with X from the network as it has become.

    Linear layers and convolutions.

    Attributes:
        per: how q is chosen: `"layer"` as many as the filter has among the largest of the layer, `"filter"` the same
            for all filters, within one.
        restore: part of the weights kept that is chosen by its effect, 0 to 1; 0 is magnitude pruning with a fit.
        norm: p of the error, `"l1"` or `"l2"`.
        rounds: in how many parts weights come back; more is greedier.
        damping: of the least squares, relative to the Gram matrix's mean diagonal.
        refit: steps of conjugate gradients; 0 keeps the weights' values.

    >>> from lilliput.observe.collect import collect
    >>> layer = torch.nn.Linear(3, 1)
    >>> inputs = torch.tensor([[0.1, 9.0, 0.2], [0.2, -9.0, 0.1], [0.1, 1.0, 0.3]])
    >>> stats = collect(layer, {"weight": EnergyAware.needs}, [inputs])["weight"]
    >>> EnergyAware(sparsity=0.6, restore=1.0, refit=0).pack(torch.tensor([[2.0, 1.0, 3.0]]), stats).parts["mask"]
    tensor([[False,  True, False]])
    """

    per: Literal["layer", "filter"] = "layer"
    restore: float = 0.2
    norm: Literal["l1", "l2"] = "l1"
    rounds: int = 4
    damping: float = 1e-4
    refit: int = 128

    needs = frozenset({"gram", "samples"})
    updates = True
    nested = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern != "unstructured":
            raise MethodError(f"{NAME}: removes single weights; pattern must be unstructured, not {self.pattern}")
        if self.norm not in {"l1", "l2"}:
            raise MethodError(f"{NAME}: no norm '{self.norm}'; there are l1, l2")
        if self.per not in {"layer", "filter"}:
            raise MethodError(f"{NAME}: no per = '{self.per}'; there are layer, filter")
        check_range(NAME, "restore", self.restore, 0.0, 1.0)
        check_range(NAME, "rounds", self.rounds, 1, 1_000_000)
        check_range(NAME, "damping", self.damping, 0.0, 10.0)
        check_range(NAME, "refit", self.refit, 0, 10_000)

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the magnitudes, by which weights are removed; restoring comes on top of it in `pack`."""
        return weight.abs()

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs as every pruning method does, with values fitted to the outputs.

        Raises:
            MethodError: a weight isn't finite; there are no stats, or of another layer.
        """
        check_weight(weight.detach(), NAME)
        if not self.sparsity or not weight.numel() or (prior is not None and self.fulfilled(prior)):
            return super().pack(weight, stats, prior)
        gram: Gram = needed(stats, "gram", NAME)
        samples: Samples = needed(stats, "samples", NAME)
        groups, columns = gram.matrix.shape[:2]
        if weight.shape[0] % groups or weight[0].numel() != columns:
            raise MethodError(f"{NAME}: the Gram matrix {tuple(gram.matrix.shape)} is of another layer")
        kind = torch.promote_types(weight.dtype, torch.float32)
        size = float(weight.abs().max()) or 1.0
        rows = (weight.detach().to(kind) / size).reshape(groups, -1, columns)
        alive = (weight != 0 if prior is None else mask_of(prior)).reshape(rows.shape)
        kept = self._kept(rows, alive, samples.rows.to(kind))
        mask = kept.reshape(weight.shape)
        found = Packed("prune/sparse", tuple(weight.shape), weight.dtype, {"mask": mask}, {"pattern": self.pattern})
        made = super().pack(weight, stats, found)
        if not self.refit:
            return made
        fitted = [
            refit(own, matrix.to(kind), part, own * part, damping=self.damping, iterations=self.refit)
            for own, matrix, part in zip(rows, gram.matrix, kept)
        ]
        most = torch.finfo(weight.dtype).max
        solved = torch.stack(fitted).mul_(size).clamp_(-most, most).to(weight.dtype).reshape(weight.shape)
        return replace(made, parts={**made.parts, "values": solved[mask]})

    def _kept(self, weight: Tensor, alive: Tensor, samples: Tensor) -> Tensor:
        """Which weights are left, (groups, rows, columns): by magnitude, then by what their return repairs."""
        flat, live = weight.flatten(0, 1), alive.flatten(0, 1)
        sizes = flat.abs().masked_fill(~live, -1)
        total = flat.numel() - round(self.sparsity * flat.numel())
        if self.per == "layer":
            wanted = largest(sizes, total).sum(1)
        else:
            each, rest = divmod(total, len(flat))
            wanted = each + (torch.arange(len(flat), device=flat.device) < rest).long()
        first = wanted - (wanted * self.restore).round().long()
        order = sizes.argsort(dim=1, descending=True, stable=True)
        places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
        ranks = torch.empty_like(order).scatter_(1, order, places)
        kept = ((ranks < first[:, None]) & live).reshape(weight.shape)
        counts = (wanted - first).reshape(weight.shape[:2])
        power = 1 if self.norm == "l1" else 2
        parts = [
            restored(own * lives, inputs, mask, count, power=power, rounds=self.rounds)
            for own, lives, inputs, mask, count in zip(weight, alive, samples, kept, counts)
        ]
        return torch.stack(parts)

    @classmethod
    def choices(cls) -> tuple[Sparse, ...]:
        """Sparsities 70 % and 50 %."""
        return tuple(cls(sparsity=s) for s in (0.7, 0.5))
