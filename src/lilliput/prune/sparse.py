"""The one packed form of every pruned weight, and the method that keeps the zeros which a weight already has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import Pattern, WeightMethod, find
from lilliput.core.packed import Packed, cut_shape, take, unpack
from lilliput.solve.selection import largest, picked

NAME = "prune/sparse"


@dataclass(frozen=True)
class Sparse(WeightMethod):
    """Keeps the zeros that a weight has; criteria extend it by scoring which weights to keep.

    A criterion is a subclass with a `score`; the pattern turns scores and the target into a mask. The packed form is
    a mask and the surviving values; a next step that keeps zeros gets the weight in its dense shape instead, where a
    zero is an ordinary symbol to the entropy coder.

    Attributes:
        sparsity: part of the weights to be removed, 0 <= sparsity < 1.
        pattern: a pattern of `prune/` by its name, `"unstructured"`, `"filter"`, with settings after a colon where it
            has some, `"block:16x1"`; `"2:4"` is `"n_m:2:4"`, which sets the sparsity too.
        scope: `"layer"` removes that part of each weight, `"global"` of all weights of the rule together, by one
            ranking of their scores: then the layers get different sparsities.
        nested: of the same weight a larger sparsity removes all that a smaller one does.
    """

    sparsity: float = 0.0
    pattern: str = "unstructured"
    scope: Literal["layer", "global"] = "layer"

    nested: ClassVar[bool] = True
    into = ("values",)
    training = "through"
    frozen: ClassVar[tuple[str, ...]] = ("mask",)

    def __post_init__(self) -> None:
        check_range("prune", "sparsity", self.sparsity, 0, 1, open_high=True)
        fixed = float(getattr(pattern_of(self.pattern), "sparsity", 0.0))
        if fixed and not self.sparsity:
            object.__setattr__(self, "sparsity", fixed)
        if fixed and self.sparsity > fixed:
            raise MethodError(f"prune: sparsity = {self.sparsity} is more than the {fixed} of pattern {self.pattern}")

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns a score for each weight, of its shape; what scores higher is kept."""
        return (weight != 0).to(torch.float32)

    def mask(self, weight: Tensor, stats: Any = None, alive: Tensor | None = None) -> Tensor:
        """Returns which weights are kept, as bool of the weight's shape.

        Args:
            weight: any shape.
            stats: what calibration collected, for criteria that need it.
            alive: mask of an earlier round: what it removed stays removed.
        """
        alive = weight != 0 if alive is None else alive
        if not self.sparsity:
            return alive
        pattern = pattern_of(self.pattern)
        if bool(alive.all()):
            del alive  # scores of a large weight take memory enough
            everywhere: Tensor = pattern.select(self.score(weight, stats), self.sparsity)
            return everywhere
        kept: Tensor = pattern.select(self.score(weight, stats).masked_fill(~alive, -torch.inf), self.sparsity)
        return kept & alive

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs to `mask` (bool, dense) and `values` (the survivors in row-major order).

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight.detach(), NAME)
        if prior is not None and self.fulfilled(prior):
            mask = mask_of(prior)
        else:
            mask = self.mask(weight.detach(), stats, mask_of(prior) if prior is not None else None)
        return Packed(NAME, tuple(weight.shape), weight.dtype, {"mask": mask, "values": picked(weight, mask)})

    def fulfilled(self, prior: Packed) -> bool:
        """Whether an earlier mask already is what this setting asks for: a mask is state, not recomputed.

        The pattern is asked: zeros enough in other places than it would remove don't make its structure.
        """
        return not self.sparsity or fits(pattern_of(self.pattern), mask_of(prior), self.sparsity)

    @property
    def together(self) -> bool:
        """Whether the weights of a rule share one ranking."""
        return self.scope == "global" and self.sparsity > 0

    def allot(self, weights: Mapping[str, Tensor], stats: Mapping[str, Any]) -> dict[str, WeightMethod]:
        """Ranks the scores of all weights together, and gives each weight the sparsity that it gets by that.

        Each layer keeps something. Zeros that are there already rank lowest.

        Raises:
            MethodError: if the pattern has no groups that could be ranked across layers.
        """
        if self.scope != "global":
            return dict.fromkeys(weights, self)
        pattern = pattern_of(self.pattern)
        if not hasattr(pattern, "units"):
            raise MethodError(f"prune: pattern {self.pattern} has no ranking across layers; leave scope = 'layer'")
        units = []
        for name, weight in weights.items():
            scores = self.score(weight, stats.get(name)).to(torch.float32)
            units.append(pattern.units(scores.masked_fill_(weight == 0, -torch.inf)).flatten())
        counts = [len(part) for part in units]
        mask = largest(torch.cat(units), sum(counts) - round(self.sparsity * sum(counts)))
        left = [max(_set(part), 1) for part in torch.split(mask, counts)]
        return {
            name: replace(self, sparsity=1 - kept / count if count else 0.0, scope="layer")
            for name, kept, count in zip(weights, left, counts)
        }

    def dense(self, packed: Packed) -> Packed:
        """Returns the form with zeros in their places."""
        return replace(packed, parts={"values": self.unpack(packed)})

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Puts the values where the mask is set, or returns the dense values."""
        values = packed.tensor("values", integer=False)
        if "mask" not in packed.parts:
            return packed.tensor("values", shape=packed.shape, integer=False).to(packed.dtype)
        mask = packed.tensor("mask", shape=packed.shape)
        if mask.dtype != torch.bool or values.shape != (_set(mask),):
            raise MethodError(f"{NAME}: {tuple(values.shape)} values for {_set(mask)} places")
        weight = torch.zeros(packed.shape, dtype=values.dtype, device=values.device)
        return weight.masked_scatter_(mask, values).to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes from the mask and from the survivors that lie in what stays, or from the dense values."""
        shape = cut_shape(packed, axis, kept)
        if "mask" not in packed.parts:
            return replace(packed, shape=shape, parts={"values": take(packed.parts["values"], axis, kept)})
        mask = packed.tensor("mask", shape=packed.shape)
        stays = torch.zeros_like(mask).index_fill_(axis, kept, True)[mask].nonzero().flatten()
        parts = {"mask": mask.index_select(axis, kept), "values": take(packed.parts["values"], 0, stays)}
        return replace(packed, shape=shape, parts=parts)


@cache
def pattern_of(text: str) -> Any:
    """Returns the pattern that a recipe spells by its name, and settings after a colon.

    Raises:
        MethodError: no such pattern, or settings that it doesn't take.

    >>> pattern_of("2:4"), pattern_of("block:16x1")
    (NM(n=2, m=4), Block(rows=16, columns=1))
    """
    spelled = f"n_m:{text}" if text[:1].isdigit() else text
    name, _, settings = spelled.partition(":")
    cls = find("prune", name)
    if not hasattr(cls, "select"):
        raise MethodError(f"prune/{name} is not a pattern")
    values = [word for word in re.split("[:x]", settings) if settings]
    fields = [field.name for field in dataclasses.fields(cls)]
    if len(values) > len(fields) or not all(word.isdecimal() and len(word) < 10 for word in values):
        taken = ":".join(fields) if fields else "no settings"
        raise MethodError(f"pattern '{text}': prune/{name} takes {taken}, whole numbers after a colon")
    return cls(*map(int, values))


def mask_of(packed: Packed) -> Tensor:
    """Returns the mask of a pruned weight in either form."""
    mask = packed.parts.get("mask")
    return mask if isinstance(mask, Tensor) else unpack(packed) != 0


def _set(mask: Tensor) -> int:
    """How many are set; a sum would make 64-bit integers of all."""
    return int(torch.count_nonzero(mask))


def fits(pattern: Any, mask: Tensor, sparsity: float) -> bool:
    """Whether a mask has a pattern's structure at this sparsity or more; see `Pattern.fits`."""
    own = getattr(pattern, "fits", None)
    return bool(own(mask, sparsity) if own is not None else Pattern.fits(pattern, mask, sparsity))
