"""Damage to a packed weight, part by part and setting by setting, as a stranger's file may hold it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lilliput.core.packed import Packed, leaves, unpack
from lilliput.testing.spread import tried

SHAPES = ((), (1,), (2**20, 2**40), (2**40, 0), (0, 2**40), (7, 7, 7), (-1, 4), (-3,))
DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int64,
    torch.float16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.complex64,
)
SETTINGS = (-1, 0, 2**63, True, 0.5, "", "other")


def check(packings: Iterable[tuple[str, Tensor, Packed]], most: int = 12) -> None:
    """Damages packed weights in every way known here and unpacks them.

    Args:
        packings: (what, weight, packed).
        most: how many weights of different damage-prone form are tried; others are passed over.

    Raises:
        AssertionError: if one ends in anything but a MethodError of one line or a weight of the declared shape.
    """
    seen: set[object] = set()
    for what, weight, packed in packings:
        form = (tuple((n, t.dtype, t.ndim) for n, t in leaves(packed)), tuple(packed.settings), weight.numel() > 1)
        if form in seen or len(seen) >= most:
            continue
        seen.add(form)
        for how, damaged in damages(packed):
            tried(lambda d=damaged: unpack(d), f"{what}, {how}")  # type: ignore[misc]
    assert seen, "nothing was packed, so nothing could be damaged"


def damages(packed: Packed) -> Iterator[tuple[str, Packed]]:
    """Yields (how, damaged) for one packed weight whose parts are tensors."""
    for name, part in packed.parts.items():
        yield f"without {name}", replace(packed, parts={k: v for k, v in packed.parts.items() if k != name})
        if isinstance(part, Tensor):
            for how, tensor in _tensors(part):
                yield f"{name} {how}", packed.with_parts(**{name: tensor})
    for shape in SHAPES:
        yield f"shape {shape}", replace(packed, shape=shape)
    for dtype in (torch.float64, torch.float16):
        yield f"dtype {dtype}", replace(packed, dtype=dtype)
    for name in packed.settings:
        yield f"no {name}", replace(packed, settings={k: v for k, v in packed.settings.items() if k != name})
        for value in SETTINGS:
            yield f"{name} = {value!r}", replace(packed, settings={**packed.settings, name: value})


def _tensors(part: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "with another axis", part[None]
    yield "flattened and one longer", torch.cat([part.flatten(), part.new_ones(1)])
    yield "empty", part.new_empty(0)
    yield "empty in every axis", part.new_empty([0] * part.ndim)
    yield "a scalar", part.new_ones(())
    if part.numel():
        yield "one shorter", part.flatten()[1:]
    for dtype in DTYPES:
        if dtype != part.dtype:
            yield f"as {dtype}", part.to(torch.float32).to(dtype)
    if not part.dtype.is_floating_point and part.dtype != torch.bool:
        limits = torch.iinfo(part.dtype)
        for value in (limits.min, limits.max):
            yield f"all {value}", torch.full_like(part, value)
        yield "as int64, all 2^62", torch.full(part.shape, 2**62)
        yield "as int16, all -5", torch.full(part.shape, -5, dtype=torch.int16)
    elif part.dtype == torch.bool:
        yield "all set", torch.ones_like(part)
        yield "none set", torch.zeros_like(part)
    else:
        yield "all NaN", torch.full_like(part, torch.nan)
