"""Conformance of pruning patterns: scores and a sparsity give a mask."""

from __future__ import annotations

from typing import Any

import torch

from lilliput.prune.sparse import fits
from lilliput.testing.spread import gaussian

SHAPES = ((), (1,), (64,), (16, 24), (8, 4, 3, 3), (0, 5), (5, 0))
SPARSITIES = (0.0, 0.25, 0.5, 0.75)


def mask_fits(cls: Any) -> None:
    """The mask is bool and of the scores' shape, the scores unchanged."""
    for shape in SHAPES:
        for sparsity in SPARSITIES:
            scores = gaussian(*shape)
            before = scores.clone()
            mask = cls().select(scores, sparsity)
            assert mask.dtype == torch.bool, f"{shape}: the mask is {mask.dtype}"
            assert mask.shape == scores.shape, f"{shape}: the mask has shape {tuple(mask.shape)}"
            assert torch.equal(scores, before), f"{shape}: the scores were changed"


def nothing_asked_nothing_removed(cls: Any) -> None:
    """Sparsity 0 keeps everything."""
    for shape in SHAPES:
        assert bool(cls().select(gaussian(*shape), 0.0).all()), f"{shape}: sparsity 0 removes weights"


def better_scores_stay(cls: Any) -> None:
    """The kept scores sum to at least what the same number of removed ones would, and equals don't stop it."""
    for sparsity in SPARSITIES[1:]:
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
    scores = gaussian(16, 24).abs()
    for sparsity in SPARSITIES:
        assert torch.equal(cls().select(scores, sparsity), cls().select(2 * scores, sparsity)), "scale changes the mask"


def own_masks_fit(cls: Any) -> None:
    """A mask of its own is what it asks for, a full one isn't; what was removed stays the last choice."""
    for sparsity in SPARSITIES[1:]:
        scores = gaussian(16, 24).abs()
        mask = cls().select(scores, sparsity)
        assert fits(cls(), mask, sparsity), f"sparsity {sparsity}: its own mask is said not to fit"
        assert not fits(cls(), torch.ones_like(mask), sparsity), f"sparsity {sparsity}: a full mask is said to fit"
        again = cls().select(scores.masked_fill(~mask, -torch.inf), sparsity)
        assert bool((again | ~mask).all()), f"sparsity {sparsity}: with its own mask given, others are removed"


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
