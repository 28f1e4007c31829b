"""Conformance of weight methods: what `pack` and `unpack` must hold to, for every setting and sort of weight."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.method import find_path
from lilliput.core.packed import Packed, leaves, unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.testing import hostile
from lilliput.testing.calibrated import stats_for
from lilliput.testing.spread import large, same, settings_of, tried, weights

# Rounding that an exact optimum may show: relative to the energy of the weight.
SLACK = 1e-6


def packings(cls: Any) -> Iterator[tuple[str, Tensor, Packed]]:
    """Yields (what, weight, packed) for every setting and every weight that the method claims.

    Raises:
        AssertionError: if a setting claims none of the weights, or a refusal is no MethodError of one line.
    """
    for setting in settings_of(cls):
        claimed = 0
        for name, weight in weights().items():
            what = f"{setting} on {name} {tuple(weight.shape)}"
            packed = tried(lambda s=setting, w=weight: s.pack(w, stats_for((s,), w)), what)  # type: ignore[misc]
            if packed is not None:
                claimed += 1
                yield what, weight, packed
        assert claimed, f"{setting} claims none of {len(weights())} weights"


def preserves(cls: Any) -> None:
    """Shape and dtype come back, the input isn't changed or aliased, and the same input gives the same parts."""
    for setting in settings_of(cls):
        for name, weight in weights().items():
            what = f"{setting} on {name}"
            before = weight.clone()
            packed = tried(lambda s=setting, w=weight: s.pack(w, stats_for((s,), w)), what)  # type: ignore[misc]
            assert same(weight, before), f"{what}: pack changed its input"
            if packed is None:
                continue
            assert packed.shape == tuple(weight.shape), f"{what}: shape {packed.shape}"
            assert packed.dtype == weight.dtype, f"{what}: dtype {packed.dtype}"
            value = unpack(packed)
            assert value.shape == weight.shape, f"{what}: unpacks to {tuple(value.shape)}"
            assert value.dtype == weight.dtype, f"{what}: unpacks to {value.dtype}"
            assert bool(torch.isfinite(value).all()), f"{what}: unpacks to NaN or infinity"
            assert same(unpack(packed), value), f"{what}: unpacking twice gives two weights"
            again = dict(leaves(setting.pack(weight, stats_for((setting,), weight))))
            for part, tensor in leaves(packed):
                assert same(tensor, again[part]), f"{what}: part {part} differs when packed again"


def plain(cls: Any) -> None:
    """Settings are plain JSON values, the method can be found by its path, and declared parts are there."""
    for what, _, packed in packings(cls):
        assert find_path(packed.method).unpack is cls.unpack, f"{what}: {packed.method} doesn't unpack it"
        for key, value in packed.settings.items():
            assert type(key) is str, f"{what}: setting {key!r}"
            assert type(value) in {bool, int, float, str}, f"{what}: setting {key} = {value!r} is no plain value"
            assert not isinstance(value, float) or math.isfinite(value), f"{what}: setting {key} = {value}"
        assert json.loads(json.dumps(dict(packed.settings))) == dict(packed.settings)
        for part in (*cls.frozen, *cls.trained):
            assert isinstance(packed.parts.get(part), Tensor), f"{what}: the declared part {part} is missing"
        for part, tensor in leaves(packed):
            assert not tensor.requires_grad, f"{what}: part {part} requires a gradient"


def keeps_zeros(cls: Any) -> None:
    """Where the method says so, an exact zero comes back as an exact zero."""
    if not cls.keeps_zeros:
        return
    for what, weight, packed in packings(cls):
        assert bool((unpack(packed)[weight == 0] == 0).all()), f"{what}: a zero came back as another value"


def refuses_nan(cls: Any) -> None:
    """NaN and infinity are refused by a MethodError."""
    for setting in settings_of(cls):
        for bad in (math.nan, math.inf, -math.inf):
            for name in ("linear", "conv", "low_rank"):
                weight = weights()[name].clone()
                stats = stats_for((setting,), weight)
                weight.view(-1)[7] = bad
                what = f"{setting} on {name} with {bad}"
                assert tried(lambda s=setting, w=weight, k=stats: s.pack(w, k), what) is None, f"{what}: was packed"  # type: ignore[misc]


def finer_is_no_worse(cls: Any) -> None:
    """Law 3: from the coarsest to the finest of `choices()` the error doesn't grow.

    For each weight alone if the method is `exact` (in float32 and float64, where rounding can't hide it), else in the
    mean over `spread.large()`. A setting that isn't worthwhile leaves the weight as it is: error zero.
    """
    settings = tuple(cls.choices())
    if cls.exact:
        for name, weight in {**weights(), **large()}.items():
            if weight.dtype in {torch.float32, torch.float64} and weight.abs().sum() < math.inf:
                found = [error for s in settings if (error := squared_error(s, weight)) is not None]
                _descends(found, SLACK * float(weight.double().square().sum()), f"{cls.__name__} on {name}")
        return
    means = []
    for setting in settings:
        errors = [squared_error(setting, w) for w in large().values()]
        sizes = [float(w.double().square().sum()) for w in large().values()]
        parts = [e / s for e, s in zip(errors, sizes) if e is not None]
        assert parts, f"{setting} claims none of the large weights"
        means.append(sum(parts) / len(parts))
    _descends(means, 0.0, f"{cls.__name__} in the mean")


def squared_error(setting: Any, weight: Tensor) -> float | None:
    """Returns sum (w - unpack(pack(w)))^2; 0 where packing isn't worthwhile, None where it is refused."""
    try:
        packed = setting.pack(weight, stats_for((setting,), weight))
    except NotWorthwhile:
        return 0.0
    except MethodError:
        return None
    return float((unpack(packed).double() - weight.double()).square().sum())


def _descends(errors: list[float], slack: float, what: str) -> None:
    for coarse, fine in pairwise(errors):
        assert fine <= coarse + slack, f"{what}: a finer setting has the larger error: {errors}"


def recipe_round_trip(cls: Any) -> None:
    """Every setting survives being written to TOML and read."""
    for setting in settings_of(cls):
        recipe = Recipe((Rule(match="a.*", steps=(setting,)),))
        assert Recipe.loads(recipe.dumps()) == recipe, f"{setting} reads otherwise than it was written"


def refuses_damage(cls: Any) -> None:
    """Damaged parts are refused by a MethodError, or give a weight of the declared shape and dtype; nothing else."""
    hostile.check(packings(cls))


LAWS = (preserves, plain, keeps_zeros, refuses_nan, finer_is_no_worse, recipe_round_trip, refuses_damage)


def check(cls: Any) -> None:
    """Runs all laws on a weight method's class; see also `lilliput.testing.attached` for its training.

    Raises:
        AssertionError: names the setting, the weight and what is wrong.

    >>> from lilliput.quantize.float16 import Float16
    >>> check(Float16)
    """
    for law in LAWS:
        law(cls)
