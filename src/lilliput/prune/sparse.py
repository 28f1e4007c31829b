"""The one packed form of every pruned weight, and the method that keeps the zeros which a weight already has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import Pattern, WeightMethod, find
from lilliput.core.packed import Packed, cut_shape, take, unpack

NAME = "prune/sparse"


@dataclass(frozen=True)
class Sparse(WeightMethod):
    """Keeps the zeros that a weight has; criteria extend it by scoring which weights to keep.

    A criterion is a subclass with a `score`; the pattern turns scores and the target into a mask. The packed form is
    a mask and the surviving values; a next step that keeps zeros gets the weight in its dense shape instead, where a
    zero is an ordinary symbol to the entropy coder.

    Attributes:
        sparsity: part of the weights to be removed, 0 <= sparsity < 1.
        pattern: name of a pattern of `prune/`, such as `"unstructured"`.
        nested: of the same weight a larger sparsity removes all that a smaller one does.
    """

    sparsity: float = 0.0
    pattern: str = "unstructured"

    nested: ClassVar[bool] = True
    into = ("values",)
    training = "through"
    frozen = ("mask",)

    def __post_init__(self) -> None:
        check_range("prune", "sparsity", self.sparsity, 0, 1, open_high=True)
        if not hasattr(find("prune", self.pattern), "select"):
            raise MethodError(f"prune/{self.pattern} is not a pattern")

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
        pattern = find("prune", self.pattern)()
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
        return Packed(NAME, tuple(weight.shape), weight.dtype, {"mask": mask, "values": weight[mask]})

    def fulfilled(self, prior: Packed) -> bool:
        """Whether an earlier mask already is what this setting asks for: a mask is state, not recomputed.

        The pattern is asked: zeros enough in other places than it would remove don't make its structure.
        """
        return not self.sparsity or fits(find("prune", self.pattern)(), mask_of(prior), self.sparsity)

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
