"""Convolutions of maps of bits: XNOR and count, bit planes by AND and count, ternary by two planes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.kernels.binary_linear import BLOCK
from lilliput.kernels.pack_maps import pack_sign_maps

XOR, AND, TERNARY = 0, 1, 2
"""What is counted of two words: different bits; ones in both; equal signs less different ones, zeros left out."""


def sizes(x: Tensor, geometry: Sequence[int]) -> tuple[int, int]:
    """Returns height and width of what comes out; geometry is (kh, kw, sh, sw, ph, pw, dh, dw)."""
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    height, width = x.shape[2], x.shape[3]
    return (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1


def _empty(x: Tensor, layer: list[Tensor], geometry: list[int], dtype: torch.dtype) -> Tensor:
    batch = x.shape[1] if x.dim() == 5 else x.shape[0]
    return x.new_empty((batch, *sizes(x, geometry), len(layer[2])), dtype=dtype).permute(0, 3, 1, 2)


def _total_shape(x: Tensor, layer: list[Tensor], numbers: list[int], geometry: list[int]) -> Tensor:
    return _empty(x, layer, geometry, torch.int32)


@operator(_total_shape)
def bit_conv_total(x: Tensor, layer: list[Tensor], numbers: list[int], geometry: list[int]) -> Tensor:
    """Computes base + sum_ij a_i b_j count(x_i, w_j) + corner (sums of taps outside) + offset (sum of x inside).

    Bits outside of a map are 0; `sums` makes of them what the layer means. `kernels.bit_layers` makes the arguments.

    Args:
        x: (planes, batch, height, width, words), int64, by `pack_sign_maps` or `pack_planes`; or, for XOR,
            (batch, channels, height, width), float32, whose signs are packed first.
        layer: weight, (planes, ceil(outputs / 64), taps x 2 words, 64); sums, (taps, outputs), what a tap's weights add
            up to; base, (outputs,); levels, (planes of x + planes of w,), a and b (TERNARY counts its two planes,
            "not zero" and "negative", together, and has one level for both). All int32.
        numbers: kind (XOR, AND or TERNARY), corner and offset.
        geometry: kh, kw, and stride, padding and dilation, each of rows and columns.

    Returns:
        (batch, outputs, height, width), int32, channels last in memory.

    Raises:
        MethodError: shapes or types that don't fit.
    """
    x = _packed(x, layer, numbers, geometry)
    y = _total_shape(x, layer, numbers, geometry)
    if _run(x, layer, numbers, geometry, (None,) * 5, (y.permute(0, 2, 3, 1), None, None)):
        return y
    return y.copy_(_reference(x, layer, numbers, geometry))


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
    x = _packed(x, layer, numbers, geometry)
    y = _real_shape(x, layer, numbers, geometry, scale, bias, magnitude)
    for name, value, shape in (("scale", scale, layer[2].shape), ("bias", bias, layer[2].shape)):
        if value is not None and value.shape != shape:
            raise MethodError(f"bit_conv: {name} has {tuple(value.shape)} numbers, not {tuple(shape)}")
    if magnitude is not None and magnitude.shape != (len(y), 1, *y.shape[2:]):
        raise MethodError(f"bit_conv: K has {tuple(magnitude.shape)} numbers, not {(len(y), 1, *y.shape[2:])}")
    extra = (scale, bias, None if magnitude is None else magnitude.contiguous(), None, None)
    if _run(x, layer, numbers, geometry, extra, (None, y.permute(0, 2, 3, 1), None)):
        return y
    total = _reference(x, layer, numbers, geometry).float() * scale[:, None, None]
    total = total if magnitude is None else total * magnitude
    return y.copy_(total if bias is None else total + bias[:, None, None])


def _signs_shape(
    x: Tensor,
    layer: list[Tensor],
    numbers: list[int],
    geometry: list[int],
    at: Tensor,
    sign: Tensor,
) -> Tensor:
    batch = x.shape[1] if x.dim() == 5 else x.shape[0]
    return x.new_empty((1, batch, *sizes(x, geometry), (len(layer[2]) + 63) // 64), dtype=torch.int64)


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
    x = _packed(x, layer, numbers, geometry)
    y = _signs_shape(x, layer, numbers, geometry, at, sign)
    if at.shape != layer[2].shape or sign.shape != layer[2].shape:
        raise MethodError(f"bit_conv_signs: thresholds and signs must have {len(layer[2])} numbers")
    if _run(x, layer, numbers, geometry, (None, None, None, at, sign), (None, None, y)):
        return y
    total = _reference(x, layer, numbers, geometry)
    bits = (sign[:, None, None] * total >= at[:, None, None]).permute(0, 2, 3, 1).long()
    bits = functional.pad(bits, (0, -len(layer[2]) % 64)).reshape(*bits.shape[:3], y.shape[4], 64)
    return (bits << torch.arange(64)).sum(-1)[None]


def _run(
    x: Tensor,
    layer: list[Tensor],
    numbers: list[int],
    geometry: list[int],
    extra: tuple[Tensor | None, ...],
    out: tuple[Tensor | None, ...],
) -> bool:
    divisor = 2 if numbers[0] == TERNARY else 1
    planes = (x.shape[0] // divisor, layer[0].shape[0] // divisor)
    _, batch, height, width, words = x.shape
    outputs = len(layer[2])
    if not batch or not outputs:
        return False
    shape = (batch, height, width, 2 * words, outputs, *sizes(x, geometry))
    return run("bit_conv", x.contiguous(), *layer, *planes, *numbers, *shape, *geometry, *extra, *out)


def _packed(x: Tensor, layer: list[Tensor], numbers: list[int], geometry: list[int]) -> Tensor:
    """Returns x, packed if it is float, when all fits."""
    if x.dtype == torch.float32 and numbers[:1] == [XOR]:
        # The function itself: one operator is enough.
        packed: Tensor = pack_sign_maps.__wrapped__(x)[0][None]  # type: ignore[attr-defined]
        x = packed
    _check(x, layer, numbers, geometry)
    return x


def _check(x: Tensor, layer: list[Tensor], numbers: list[int], geometry: list[int]) -> None:
    if len(layer) != 4:
        raise MethodError(f"bit_conv: a layer is weight, sums, base and levels, not {len(layer)} tensors")
    weight, sums, base, levels = layer
    if len(geometry) != 8 or min(geometry) < 0 or min(*geometry[:4], *geometry[6:]) < 1:
        raise MethodError(f"bit_conv: no geometry: {geometry}")
    if x.dim() != 5 or x.dtype != torch.int64:
        raise MethodError(f"bit_conv: takes planes of maps of int64, not {tuple(x.shape)} of {x.dtype}")
    if len(numbers) != 3 or numbers[0] not in (XOR, AND, TERNARY):
        raise MethodError(f"bit_conv: no kind, corner and offset: {numbers}")
    taps, outputs = geometry[0] * geometry[1], len(layer[2])
    planes = len(levels) * (2 if numbers[0] == TERNARY else 1) - x.shape[0]
    expected = (planes, (outputs + BLOCK - 1) // BLOCK, taps * 2 * x.shape[4], BLOCK)
    if weight.dtype != torch.int32 or weight.shape != expected:
        raise MethodError(f"bit_conv: a weight of {tuple(weight.shape)} isn't one of {expected}, int32")
    if numbers[0] == XOR and (x.shape[0], weight.shape[0]) != (1, 1):
        raise MethodError("bit_conv: XNOR takes one plane")
    if numbers[0] == TERNARY and (x.shape[0] % 2 or weight.shape[0] % 2):
        raise MethodError("bit_conv: ternary numbers are two planes")
    if sums.shape != (taps, outputs) or any(t.dtype != torch.int32 for t in (sums, base, levels)):
        raise MethodError(
            f"bit_conv: sums of {tuple(sums.shape)} aren't {(taps, outputs)}, int32, base and levels int32"
        )
    if min(sizes(x, geometry)) < 1:
        raise MethodError(f"bit_conv: a kernel of {geometry[:2]} doesn't fit {tuple(x.shape[2:4])}")


def _bits(words: Tensor) -> Tensor:
    """The bits of words along a new last axis, merged with the last: (..., words) to (..., 64 words), float64."""
    return ((words[..., None] >> torch.arange(64)) & 1).flatten(-2).double()


def _reference(x: Tensor, layer: list[Tensor], numbers: list[int], geometry: list[int]) -> Tensor:
    """Totals by convolutions of bits in float64, which are exact."""
    (kh, kw, *steps), (kind, corner, offset) = geometry, numbers
    weight, sums, base, levels = layer
    outputs, own_planes = len(base), len(weight) // (2 if kind == TERNARY else 1)
    stride, padding, dilation = steps[:2], steps[2:4], steps[4:]
    maps = _bits(x).permute(0, 1, 4, 2, 3)
    rows = weight.transpose(2, 3).flatten(1, 2)[:, :outputs].contiguous()
    own = rows.reshape(len(weight), outputs, kh * kw, x.shape[4], 2)
    words = (own[..., 0].long() & 0xFFFFFFFF) | (own[..., 1].long() << 32)
    kernels = _bits(words).transpose(2, 3).reshape(len(weight), outputs, -1, kh, kw)

    def conv(a: Tensor, b: Tensor) -> Tensor:
        return functional.conv2d(a, b, None, stride, padding, dilation)

    total = base.double()[:, None, None]
    a, b = levels.double()[:-own_planes], levels.double()[-own_planes:]
    if kind == TERNARY:
        # The kernel counts 32 for each word of 32 bits besides the product.
        maps, kernels = (m[0::2] * (1 - 2 * m[1::2]) for m in (maps, kernels))
        total = total + 64 * x.shape[4] * kh * kw * a.sum() * b.sum()
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            count = conv(maps[i], kernels[j])
            if kind == XOR:
                count = (
                    conv(maps[i], torch.ones_like(kernels[j])) + kernels[j].sum((1, 2, 3))[:, None, None] - 2 * count
                )
            total = total + left * right * count
    inside = conv(torch.ones_like(maps[0][:, :1]), torch.eye(kh * kw).double().reshape(-1, 1, kh, kw))
    total = total + corner * torch.einsum("nthw,to->nohw", 1 - inside, sums.double())
    places = (maps * a[:, None, None, None, None]).sum((0, 2))[:, None]
    total = total + offset * conv(places, torch.ones(1, 1, kh, kw, dtype=torch.float64))
    return total.int()
