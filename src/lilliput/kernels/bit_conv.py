"""Convolutions of maps of bits: XNOR and count, bit planes by AND and count, ternary by two planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.kernels.binary_linear import BLOCK
from lilliput.kernels.pack_maps import pack_sign_maps, words_of

XOR, AND, TERNARY = 0, 1, 2
"""What is counted of two words: different bits; ones in both; equal signs less different ones, zeros left out."""
PACKED, FIRST, LAST = 0, 1, 2
"""What goes in: planes of bits; floats whose signs are packed on the way, their channels first or last in memory."""


def sizes(x: Sequence[int], geometry: Sequence[int]) -> tuple[int, int]:
    """Returns height and width of what comes out; geometry is (kh, kw, sh, sw, ph, pw, dh, dw)."""
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    return (x[2] + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (x[3] + 2 * pw - dw * (kw - 1) - 1) // sw + 1


@dataclass(frozen=True, eq=False)
class Plan:
    """What follows from the sizes of a layer and of what goes in.

    Attributes:
        sizes: what the kernel is told.
        out: the shape of what comes out, (batch, outputs, height, width).
        strides: its strides, with the channels last.
        outputs: the shape of a number for each output.
    """

    sizes: Tensor
    out: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    outputs: tuple[int]


@lru_cache(maxsize=1024)
def plan(
    shape: tuple[int, ...],
    planes: int,
    numbers: tuple[int, ...],
    geometry: tuple[int, ...],
    outputs: int,
    given: int = PACKED,
    scaled: bool = False,
) -> Plan:
    """Finds what follows from the sizes of a layer and of what goes in.

    Args:
        shape: of what goes in, packed or floats.
        planes: of the weight.
        numbers: kind and offset.
        geometry: see `bit_conv_total`.
        outputs: of the layer.
        given: PACKED, FIRST or LAST.
        scaled: multiply by K of the floats.

    Raises:
        MethodError: no convolution has such sizes.
    """
    if len(geometry) != 8 or min(geometry) < 0 or min(*geometry[:4], *geometry[6:]) < 1:
        raise MethodError(f"bit_conv: no geometry: {list(geometry)}")
    if len(numbers) != 2 or numbers[0] not in (XOR, AND, TERNARY):
        raise MethodError(f"bit_conv: no kind and offset: {list(numbers)}")
    if min(sizes(shape, geometry)) < 1:
        raise MethodError(f"bit_conv: a kernel of {geometry[:2]} doesn't fit {tuple(shape[2:4])}")
    if given == PACKED:
        own, batch, channels, words = shape[0], shape[1], 0, 2 * shape[4]
    else:
        own, batch, channels, words = 1, shape[0], shape[1], 2 * words_of(shape[1])
    divisor = 2 if numbers[0] == TERNARY else 1
    height, width = sizes(shape, geometry)
    values = (own // divisor, planes // divisor, *numbers, batch, shape[2], shape[3], words, outputs, height, width)
    told = torch.tensor([*values, *geometry, channels, given, int(scaled)], dtype=torch.int64)
    strides = height * width * outputs, 1, width * outputs, outputs
    return Plan(told, (batch, outputs, height, width), strides, (outputs,))


@lru_cache(maxsize=1024)
def _checked(
    shape: tuple[int, ...],
    layer: tuple[tuple[int, ...], ...],
    numbers: tuple[int, ...],
    geometry: tuple[int, ...],
    given: int,
    scaled: bool,
) -> Plan:
    """A plan of shapes that fit one another."""
    if len(layer) != 4:
        raise MethodError(f"bit_conv: a layer is weight, outside, base and levels, not {len(layer)} tensors")
    weight, outside, base, levels = layer
    if len(base) != 1 or len(levels) != 1 or not weight:
        raise MethodError("bit_conv: base and levels are lists of numbers")
    outputs = base[0]
    made = plan(shape, weight[0], numbers, geometry, outputs, given, scaled)
    kind, taps = numbers[0], geometry[0] * geometry[1]
    own, words = (shape[0], shape[4]) if given == PACKED else (1, words_of(shape[1]))
    planes = levels[0] * (2 if kind == TERNARY else 1) - own
    expected = (planes, (outputs + BLOCK - 1) // BLOCK, taps * 2 * words, BLOCK)
    if weight != expected:
        raise MethodError(f"bit_conv: a weight of {tuple(weight)} isn't one of {expected}, int32")
    if kind == XOR and (own, weight[0]) != (1, 1):
        raise MethodError("bit_conv: XNOR takes one plane")
    if kind == TERNARY and (own % 2 or weight[0] % 2):
        raise MethodError("bit_conv: ternary numbers are two planes")
    if outside != (taps, outputs):
        raise MethodError(f"bit_conv: numbers {tuple(outside)} for taps outside aren't {(taps, outputs)}")
    return made


def _given(x: Tensor, kind: Sequence[int]) -> tuple[Tensor, int]:
    """Returns x as the kernel reads it, and how it lies."""
    if x.dtype == torch.int64 and x.dim() == 5:
        return x.contiguous(), PACKED
    if x.dtype != torch.float32 or x.dim() != 4 or kind[:1] != [XOR]:
        raise MethodError(f"bit_conv: takes planes of maps of int64, not {tuple(x.shape)} of {x.dtype}")
    if x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1), LAST
    return x.contiguous(), FIRST


def _run(
    x: Tensor,
    layer: list[Tensor],
    numbers: list[int],
    geometry: list[int],
    extra: tuple[Tensor | None, ...],
    which: int,
    scaled: bool = False,
) -> Tensor | None:
    """Runs the kernel for total (0), real (1) or packed (2) results; None where the reference has to."""
    own, given = _given(x, numbers)
    shapes = tuple([tensor.shape for tensor in layer])
    made = _checked(x.shape, shapes, tuple(numbers), tuple(geometry), given, scaled)
    for place in (0, 1, 3, 4):
        value = extra[place]
        if value is not None and value.shape != made.outputs:
            raise MethodError(
                f"bit_conv: {tuple(value.shape)} numbers of scale, bias or thresholds, not {made.outputs}"
            )
    if which == 2:
        batch, outputs, height, width = made.out
        y = torch.empty((1, batch, height, width, (outputs + 63) // 64), dtype=torch.int64)
    else:
        y = torch.empty_strided(made.out, made.strides, dtype=torch.float32 if which else torch.int32)
    results: list[Tensor | None] = [None, None, None]
    results[which] = y
    bits, floats = (own, None) if given == PACKED else (None, own)
    if y.numel() and not run("bit_conv", made.sizes, bits, floats, *layer, *extra, *results):
        return None
    return y


def _empty(x: Tensor, layer: list[Tensor], geometry: list[int], dtype: torch.dtype) -> Tensor:
    batch = x.shape[1] if x.dim() == 5 else x.shape[0]
    return x.new_empty((batch, *sizes(x.shape, geometry), len(layer[2])), dtype=dtype).permute(0, 3, 1, 2)


def _total_shape(x: Tensor, layer: list[Tensor], numbers: list[int], geometry: list[int]) -> Tensor:
    return _empty(x, layer, geometry, torch.int32)


@operator(_total_shape)
def bit_conv_total(x: Tensor, layer: list[Tensor], numbers: list[int], geometry: list[int]) -> Tensor:
    """Computes base + sum over taps inside of (sum_ij a_i b_j count_ij + offset x) + what taps outside add.

    A tap is outside where it would read beyond the map. `kernels.bit_layers` makes the arguments.

    Args:
        x: (planes, batch, height, width, words), int64, by `pack_sign_maps` or `pack_planes`; or, for XOR,
            (batch, channels, height, width), float32, whose signs are packed first.
        layer: weight, (planes, ceil(outputs / 64), taps x 2 words, 64); outside, (taps, outputs), what a tap adds where
            it is; base, (outputs,); levels, (planes of x + planes of w,), a and b (TERNARY counts its two planes,
            "not zero" and "negative", together, and has one level for both). All int32.
        numbers: kind (XOR, AND or TERNARY) and offset.
        geometry: kh, kw, and stride, padding and dilation, each of rows and columns.

    Returns:
        (batch, outputs, height, width), int32, channels last in memory.

    Raises:
        MethodError: shapes or types that don't fit.
    """
    found = _run(x, layer, numbers, geometry, (None,) * 5, 0)
    return _last(_reference(x, layer, numbers, geometry)) if found is None else found


def _real_shape(
    x: Tensor,
    layer: list[Tensor],
    numbers: list[int],
    geometry: list[int],
    scale: Tensor,
    bias: Tensor | None,
    magnitude: Tensor | None,
) -> Tensor:
    return _empty(x, layer, geometry, torch.float32)


@operator(_real_shape)
def bit_conv(
    x: Tensor,
    layer: list[Tensor],
    numbers: list[int],
    geometry: list[int],
    scale: Tensor,
    bias: Tensor | None,
    magnitude: Tensor | None,
) -> Tensor:
    """Computes total scale magnitude + bias, float32; total as in `bit_conv_total`.

    Args:
        x: see `bit_conv_total`, as up to geometry.
        layer: see there.
        numbers: see there.
        geometry: see there.
        scale: (outputs,), float32.
        bias: (outputs,), float32, or None.
        magnitude: (batch, 1, height, width) of what comes out, float32: XNOR-Net's K; or None.

    Raises:
        MethodError: shapes or types that don't fit.
    """
    if magnitude is not None:
        shape = (x.shape[1] if x.dim() == 5 else x.shape[0], 1, *sizes(x.shape, geometry))
        if magnitude.shape != shape:
            raise MethodError(f"bit_conv: K has {tuple(magnitude.shape)} numbers, not {shape}")
        magnitude = magnitude.contiguous()
    found = _run(x, layer, numbers, geometry, (scale, bias, magnitude, None, None), 1)
    if found is not None:
        return found
    return _last(_real(_reference(x, layer, numbers, geometry), scale, bias, magnitude))


def _xnor_shape(
    x: Tensor, layer: list[Tensor], geometry: list[int], scale: Tensor, bias: Tensor | None, scaled: bool
) -> Tensor:
    return _empty(x, layer, geometry, torch.float32)


@operator(_xnor_shape)
def xnor_conv(
    x: Tensor, layer: list[Tensor], geometry: list[int], scale: Tensor, bias: Tensor | None, scaled: bool
) -> Tensor:
    """Computes XNOR-Net's layer whole: scale K (sign(x) * sign(w)) + bias.

    Rastegari et al. 2016, arXiv 1603.05279: K is the mean of |x| over the window and all channels, zeros outside
    counted.

    Args:
        x: (batch, channels, height, width), float32.
        layer: of `xnor_layer`; see `bit_conv_total`.
        geometry: see there.
        scale: (outputs,), float32: alpha.
        bias: (outputs,), float32, or None.
        scaled: multiply by K; needs a window without dilation.

    Raises:
        MethodError: shapes or types that don't fit.
    """
    if x.dtype != torch.float32 or x.dim() != 4:
        raise MethodError(f"xnor_conv: takes maps of float32, not {tuple(x.shape)} of {x.dtype}")
    if scaled and geometry[6:] != [1, 1]:
        raise MethodError("xnor_conv: K is made of windows without dilation")
    found = _run(x, layer, [XOR, 0], geometry, (scale, bias, None, None, None), 1, scaled)
    if found is not None:
        return found
    total, magnitude = _reference(x, layer, [XOR, 0], geometry), None
    if scaled:
        kh, kw, sh, sw, ph, pw = geometry[:6]
        sides = functional.pad(x.abs().mean(1, keepdim=True), (pw, pw, ph, ph))
        magnitude = functional.avg_pool2d(sides, (kh, kw), (sh, sw))
    return _last(_real(total, scale, bias, magnitude))


def _signs_shape(
    x: Tensor,
    layer: list[Tensor],
    numbers: list[int],
    geometry: list[int],
    at: Tensor,
    sign: Tensor,
) -> Tensor:
    batch = x.shape[1] if x.dim() == 5 else x.shape[0]
    return x.new_empty((1, batch, *sizes(x.shape, geometry), (len(layer[2]) + 63) // 64), dtype=torch.int64)


@operator(_signs_shape)
def bit_conv_signs(
    x: Tensor,
    layer: list[Tensor],
    numbers: list[int],
    geometry: list[int],
    at: Tensor,
    sign: Tensor,
) -> Tensor:
    """Computes whether sign total >= at, packed for the next layer: BatchNorm and sign as one comparison.

    Args:
        x: see `bit_conv_total`, as up to geometry.
        layer: see there.
        numbers: see there.
        geometry: see there.
        at: (outputs,), int32.
        sign: (outputs,), int32: 1 or -1.

    Returns:
        (1, batch, height, width, ceil(outputs / 64)), int64.

    Raises:
        MethodError: shapes or types that don't fit.
    """
    found = _run(x, layer, numbers, geometry, (None, None, None, at, sign), 2)
    if found is not None:
        return found
    total = _reference(x, layer, numbers, geometry)
    bits = (sign[:, None, None] * total >= at[:, None, None]).permute(0, 2, 3, 1).long()
    bits = functional.pad(bits, (0, -len(layer[2]) % 64)).reshape(*bits.shape[:3], -1, 64)
    return (bits << torch.arange(64)).sum(-1)[None]


def _last(y: Tensor) -> Tensor:
    """The same numbers, channels last in memory."""
    batch, outputs, height, width = y.shape
    return torch.empty(batch, height, width, outputs, dtype=y.dtype).permute(0, 3, 1, 2).copy_(y)


def _real(total: Tensor, scale: Tensor, bias: Tensor | None, magnitude: Tensor | None) -> Tensor:
    y = total.float() * scale[:, None, None]
    y = y if magnitude is None else y * magnitude
    return y if bias is None else y + bias[:, None, None]


def _bits(words: Tensor) -> Tensor:
    """The bits of words along a new last axis, merged with the last: (..., words) to (..., 64 words), float64."""
    return ((words[..., None] >> torch.arange(64)) & 1).flatten(-2).double()


def _reference(x: Tensor, layer: list[Tensor], numbers: list[int], geometry: list[int]) -> Tensor:
    """Totals by convolutions of bits in float64, which are exact."""
    if any(t.dtype != torch.int32 for t in layer):
        raise MethodError(f"bit_conv: a layer is of int32, not {[t.dtype for t in layer]}")
    if x.dtype == torch.float32:
        # The function itself: one operator is enough.
        packed: Tensor = pack_sign_maps.__wrapped__(x)[0][None]  # type: ignore[attr-defined]
        x = packed
    (kh, kw, *steps), (kind, offset) = geometry, numbers
    weight, outside, base, levels = layer
    outputs, own_planes = len(base), len(weight) // (2 if kind == TERNARY else 1)
    stride, padding, dilation = steps[:2], steps[2:4], steps[4:]
    maps = _bits(x).permute(0, 1, 4, 2, 3)
    rows = weight.transpose(2, 3).flatten(1, 2)[:, :outputs].contiguous()
    own = rows.reshape(len(weight), outputs, kh * kw, x.shape[4], 2)
    words = (own[..., 0].long() & 0xFFFFFFFF) | (own[..., 1].long() << 32)
    kernels = _bits(words).transpose(2, 3).reshape(len(weight), outputs, -1, kh, kw)

    def conv(a: Tensor, b: Tensor) -> Tensor:
        return functional.conv2d(a, b, None, stride, padding, dilation)

    ones = torch.ones_like(maps[0][:, :1])
    total = base.double()[:, None, None]
    a, b = levels.double()[:-own_planes], levels.double()[-own_planes:]
    if kind == TERNARY:
        # The kernel counts 32 for each word of 32 bits besides the product.
        maps, kernels = (m[0::2] * (1 - 2 * m[1::2]) for m in (maps, kernels))
        total = total + 64 * x.shape[4] * conv(ones, ones.new_ones(1, 1, kh, kw)) * a.sum() * b.sum()
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            count = conv(maps[i], kernels[j])
            if kind == XOR:
                count = conv(maps[i], torch.ones_like(kernels[j])) + conv(ones, kernels[j].sum(1, True)) - 2 * count
            total = total + left * right * count
    inside = conv(ones, torch.eye(kh * kw).double().reshape(-1, 1, kh, kw))
    total = total + torch.einsum("nthw,to->nohw", 1 - inside, outside.double())
    places = (maps * a[:, None, None, None, None]).sum((0, 2))[:, None]
    total = total + offset * conv(places, torch.ones(1, 1, kh, kw, dtype=torch.float64))
    return total.int()
