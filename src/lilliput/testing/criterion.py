"""Conformance of pruning criteria: scores, sparsity reached exactly, and a mask that is state."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from lilliput.core.packed import Packed, unpack
from lilliput.prune.sparse import fits, mask_of, pattern_of
from lilliput.testing.calibrated import stats_for
from lilliput.testing.spread import gaussian, tried, weights

SPARSITIES = (0.0, 0.1, 0.5, 0.75, 0.9, 0.99)


def without_zeros() -> dict[str, Tensor]:
    """Returns the weights of the spread in which no weight is zero, and so none is gone before pruning."""
    return {name: weight for name, weight in weights().items() if bool((weight != 0).all())}


def packed_or_refused(method: Any, weight: Tensor, what: str) -> Packed | None:
    """Packs with the stats that the method needs; None where it refuses this weight."""
    return tried(lambda: cast(Packed, method.pack(weight, stats_for((method,), weight))), what)


def kept(method: Any, weight: Tensor) -> int:
    """Returns how many weights the method's pattern keeps of one of this shape, whatever the scores."""
    return int(pattern_of(method.pattern).select(torch.ones(weight.shape), method.sparsity).sum())


def scores_fit(cls: Any) -> None:
    """Scores have the weight's shape and are finite."""
    for name, weight in weights().items():
        scores = tried(lambda w=weight: cls().score(w, stats_for((cls(),), w)), name)  # type: ignore[misc]
        if scores is None:
            continue
        assert scores.shape == weight.shape, f"{name}: scores of shape {tuple(scores.shape)} for {tuple(weight.shape)}"
        assert bool(torch.isfinite(scores).all()), f"{name}: a score is NaN or infinite"


def sparsity_is_reached(cls: Any) -> None:
    """Exactly as many weights are kept as the pattern says, with their values."""
    for name, weight in without_zeros().items():
        for sparsity in SPARSITIES:
            what = f"{name} at sparsity {sparsity}"
            packed = packed_or_refused(cls(sparsity=sparsity), weight, what)
            if packed is None:
                continue
            mask, value = mask_of(packed), unpack(packed)
            asked = kept(cls(sparsity=sparsity), weight)
            assert int(mask.sum()) == asked, f"{what}: {int(mask.sum())} of {weight.numel()} kept, not {asked}"
            assert cls.updates or torch.equal(value[mask], weight[mask]), f"{what}: a kept weight has another value"
            assert not bool(value[~mask].any()), f"{what}: a removed weight isn't zero"


def sparser_removes_more(cls: Any) -> None:
    """What a sparsity removes, a larger one removes too; zeros that are there never count as kept."""
    for name, weight in weights().items():
        packings = [packed_or_refused(cls(sparsity=s), weight, name) for s in SPARSITIES]
        masks = [mask_of(packed) for packed in packings if packed is not None]
        for before, after in pairwise(masks):
            assert not cls.nested or not bool((after & ~before).any()), (
                f"{name}: a larger sparsity keeps what a smaller one removes"
            )
        assert not bool((masks[0] & (weight == 0)).any()), f"{name}: a zero is counted as kept"


def mask_is_state(cls: Any) -> None:
    """With a `prior` of the same setting the mask stays though the weights change; a larger sparsity only removes."""
    for name in ("linear", "conv", "many_zeros"):
        weight = weights()[name]
        method = cls(sparsity=0.5)
        stats = stats_for((method,), weight)
        prior = method.pack(weight, stats)
        moved = gaussian(*weight.shape, seed=77)
        mask = mask_of(prior)
        assert torch.equal(mask_of(method.pack(moved, stats, prior)), mask), f"{name}: the mask was computed anew"
        grown = mask_of(replace(method, sparsity=0.8).pack(moved, stats, prior))
        assert not bool((grown & ~mask).any()), f"{name}: a removed weight came back"
        asked = kept(replace(method, sparsity=0.8), weight)
        assert fits(pattern_of(method.pattern), grown, 0.8), f"{name}: not the structure of {method.pattern}"
        exactly = method.pattern == "unstructured" or name != "many_zeros"
        assert int(grown.sum()) == asked or not exactly, (
            f"{name}: {int(grown.sum())} kept after another round, not {asked}"
        )


LAWS = (scores_fit, sparsity_is_reached, sparser_removes_more, mask_is_state)


def check(cls: Any) -> None:
    """Runs all laws on a criterion's class; a criterion is a weight method besides, with a suite for that.

    Raises:
        AssertionError: names the weight and what is wrong.

    >>> from lilliput.prune.magnitude import Magnitude
    >>> check(Magnitude)
    """
    for law in LAWS:
        law(cls)
