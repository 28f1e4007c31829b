"""Conformance of pruning patterns: scores and a sparsity give a mask."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lilliput.prune.sparse import fits
from lilliput.testing.spread import gaussian, tried

SHAPES = ((), (1,), (64,), (16, 24), (7, 9), (8, 4, 3, 3), (8, 1, 3, 3), (6, 5, 3), (0, 5), (5, 0))
SPARSITIES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.99)


def masks(cls: Any) -> Iterator[tuple[str, Tensor, float, Tensor]]:
    """Yields (what, scores, sparsity, mask) for every shape that the pattern doesn't refuse."""
    for shape in SHAPES:
        scores = gaussian(*shape)
        for sparsity in SPARSITIES:
            what = f"{shape} at sparsity {sparsity}"
            mask = tried(lambda s=scores, p=sparsity: cls().select(s, p), what)  # type: ignore[misc]
            if mask is not None:
                yield what, scores, sparsity, mask


def mask_fits(cls: Any) -> None:
    """The mask is bool and of the scores' shape, the scores unchanged; a weight of two axes is never refused."""
    for shape in SHAPES:
        scores = gaussian(*shape)
        before = scores.clone()
        mask = tried(lambda s=scores: cls().select(s, 0.5), f"{shape}")  # type: ignore[misc]
        assert torch.equal(scores, before), f"{shape}: the scores were changed"
        assert mask is not None or shape != (16, 24), f"{shape}: refused"
        if mask is not None:
            assert mask.dtype == torch.bool, f"{shape}: the mask is {mask.dtype}"
            assert mask.shape == scores.shape, f"{shape}: the mask has shape {tuple(mask.shape)}"
            assert mask.is_contiguous(), f"{shape}: the mask is a view"


def nothing_asked_nothing_removed(cls: Any) -> None:
    """Sparsity 0 keeps everything, and any sparsity keeps something of a weight of several groups."""
    for what, _, sparsity, mask in masks(cls):
        assert sparsity or bool(mask.all()), f"{what}: weights are removed"
        assert sparsity > 0.9 or bool(mask.any()) or mask.numel() < 2, f"{what}: nothing is left"


def sparser_removes_more(cls: Any) -> None:
    """What a sparsity removes, a larger one removes too."""
    for (_, one, _, before), (what, other, _, after) in pairwise(masks(cls)):
        assert one is not other or not bool((after & ~before).any()), f"{what}: keeps what a smaller one removes"


def better_scores_stay(cls: Any) -> None:
    """Kept scores are larger in the mean than removed ones, and equals don't stop it."""
    for sparsity in (0.25, 0.5, 0.75):
        scores = gaussian(16, 24).abs()
        mask = cls().select(scores, sparsity)
        kept, removed = scores[mask], scores[~mask]
        assert len(kept), "nothing is kept"
        assert len(removed), f"sparsity {sparsity} removes nothing"
        assert float(kept.mean()) > float(removed.mean()), "worse scores are kept than removed"
        equal = cls().select(torch.ones(16, 24), sparsity)
        assert int(equal.sum()) == int(mask.sum()), "equal scores are counted otherwise than different ones"


def order_alone_counts(cls: Any) -> None:
    """Scores doubled give the same mask."""
    for what, scores, sparsity, mask in masks(cls):
        assert torch.equal(cls().select(2 * scores, sparsity), mask), f"{what}: scale changes the mask"


def own_masks_fit(cls: Any) -> None:
    """A mask of its own is what it asks for, a full one isn't; what was removed stays the last choice."""
    for what, scores, sparsity, mask in masks(cls):
        assert fits(cls(), mask, sparsity), f"{what}: its own mask is said not to fit"
        full = torch.ones_like(mask)
        assert fits(cls(), full, sparsity) == bool(mask.all()), f"{what}: of a full mask fits says the wrong thing"
        again = cls().select(scores.masked_fill(~mask, -torch.inf), sparsity)
        assert bool((again | ~mask).all()), f"{what}: with its own mask given, others are removed"


def fits_means_nothing_to_remove(cls: Any) -> None:
    """For masks without structure `fits` says whether the pattern, given the mask for scores, would remove more."""
    for density in (0.02, 0.2, 0.4, 0.6, 0.9):
        mask = gaussian(16, 24, seed=5).abs() < gaussian(16, 24).abs().quantile(density)
        for sparsity in SPARSITIES[1:]:
            removes = bool((mask & ~cls().select(mask.float(), sparsity)).any())
            assert fits(cls(), mask, sparsity) != removes, f"sparsity {sparsity}: fits contradicts select"


LAWS = (
    mask_fits,
    nothing_asked_nothing_removed,
    sparser_removes_more,
    better_scores_stay,
    order_alone_counts,
    own_masks_fit,
    fits_means_nothing_to_remove,
)


def check(cls: Any) -> None:
    """Runs all laws on a pattern's class.

    Raises:
        AssertionError: says what is wrong.

    >>> from lilliput.prune.unstructured import Unstructured
    >>> check(Unstructured)
    """
    for law in LAWS:
        law(cls)
