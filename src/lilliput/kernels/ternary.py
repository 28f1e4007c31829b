"""Layers of weights -1, 0, +1 (and so of signs) in two bits, with int8 or float activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run

BLOCK, STEP = 64, 16


def prepare(weight: Tensor) -> Tensor:
    """Packs a weight for the operators below, two bits each, with channels filled up to whole steps of 16.

    Args:
        weight: (outputs, channels, kh, kw) or (outputs, n), of -1, 0 and +1.

    Returns:
        (ceil(outputs / 64), taps x steps, 4, 64), uint8: a lane of 4 bytes has 16 weights of one output.

    Raises:
        MethodError: other shapes or numbers.

    >>> prepare(torch.tensor([[1, -1, 0]])).shape
    torch.Size([1, 1, 4, 64])
    """
    if weight.dim() not in (2, 4) or not weight.numel() or not bool(((weight == 0) | (weight.abs() == 1)).all()):
        raise MethodError(f"two bits serve (outputs, channels[, kh, kw]) of -1, 0 and 1, not {tuple(weight.shape)}")
    weight = weight if weight.dim() == 4 else weight[:, :, None, None]
    codes = functional.pad((weight + 1).byte().permute(0, 2, 3, 1), (0, -weight.shape[1] % STEP), value=1).flatten(1)
    codes = functional.pad(codes, (0, 0, 0, -len(codes) % BLOCK), value=1)
    # outputs as (block, vector, lane), depth as (step, group, byte): the groups are the fields of a byte.
    fields = codes.reshape(-1, 4, 16, codes.shape[1] // STEP, 4, 4)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    packed = (fields << shifts).sum(4, dtype=torch.uint8)
    return packed.permute(0, 3, 1, 2, 4).flatten(3).contiguous()


def restored(weight: Tensor, outputs: int, channels: int, kernel: tuple[int, int] = (1, 1)) -> Tensor:
    """Returns the numbers -1, 0 and +1 of a packed weight, (outputs, channels, kh, kw), int8."""
    lanes = weight.reshape(*weight.shape[:3], 16, 1, 4)
    fields = (lanes >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]) & 3
    rows = fields.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)[:outputs]
    return (rows.to(torch.int8) - 1).reshape(outputs, *kernel, -1)[..., :channels].permute(0, 3, 1, 2).contiguous()


def _total_shape(x: Tensor, weight: Tensor, outputs: int, geometry: list[int], border: int) -> Tensor:
    return x.new_empty((len(x), *_sizes(x, geometry), outputs), dtype=torch.int32).permute(0, 3, 1, 2)


def _sizes(x: Tensor, geometry: list[int]) -> tuple[int, int]:
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    height, width = x.shape[1], x.shape[2]
    return (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1


@operator(_total_shape)
def ternary_total(x: Tensor, weight: Tensor, outputs: int, geometry: list[int], border: int) -> Tensor:
    """Computes sum w x of int8 activations, in whole numbers; a linear layer is a convolution of 1 x 1 maps.

    Args:
        x: (batch, height, width, channels), int8.
        weight: by `prepare`.
        outputs: of the layer.
        geometry: kh, kw, and stride, padding and dilation, each of rows and columns.
        border: what lies outside of a map, -128 to 127: the zero point.

    Returns:
        (batch, outputs, height, width), int32, channels last in memory.

    Raises:
        MethodError: shapes or types that don't fit.

    >>> x = torch.tensor([5, 7, 9], dtype=torch.int8).reshape(1, 1, 1, 3)
    >>> ternary_total(x, prepare(torch.tensor([[1, -1, 0]])), 1, [1, 1, 1, 1, 0, 0, 1, 1], 0).flatten()
    tensor([-2], dtype=torch.int32)
    """
    _check(x, weight, outputs, geometry, border)
    y = _total_shape(x, weight, outputs, geometry, border)
    if not y.numel():
        return y
    shape = (*x.shape, outputs, *y.shape[2:], *geometry, border)
    if run("ternary_conv", x.contiguous(), weight, *shape, None, None, None, y.permute(0, 2, 3, 1), None):
        return y
    return y.copy_(_sums(x, restored(weight, outputs, x.shape[3], (geometry[0], geometry[1])), geometry, border))


def _conv_shape(
    x: Tensor,
    weight: Tensor,
    geometry: list[int],
    border: int,
    first: Tensor,
    second: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    return x.new_empty((len(x), *_sizes(x, geometry), len(first)), dtype=torch.float32).permute(0, 3, 1, 2)


@operator(_conv_shape)
def ternary_conv(
    x: Tensor,
    weight: Tensor,
    geometry: list[int],
    border: int,
    first: Tensor,
    second: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Computes first sum w x + second sum |w| x + bias of int8 activations.

    TWN (Li et al. 2016, arXiv 1605.04711) and BWN (Rastegari et al. 2016, arXiv 1603.05279): `first` is alpha times the
    step of x. TTQ (Zhu et al. 2017, arXiv 1612.01064), whose values are W_p and -W_n: `first` is (W_p + W_n) / 2 and
    `second` (W_p - W_n) / 2, times the step.

    Args:
        x: (batch, height, width, channels), int8.
        weight: by `prepare`.
        geometry: see `ternary_total`.
        border: see there.
        first: (outputs,), float32.
        second: (outputs,), float32, or None.
        bias: (outputs,), float32, or None.

    Returns:
        (batch, outputs, height, width), float32, channels last in memory.

    Raises:
        MethodError: shapes or types that don't fit.
    """
    _check(x, weight, len(first), geometry, border)
    if any(t is not None and t.shape != first.shape for t in (second, bias)) or first.dim() != 1:
        raise MethodError(f"ternary_conv: first, second and bias must have {len(first)} numbers each")
    y = _conv_shape(x, weight, geometry, border, first, second, bias)
    if not y.numel():
        return y
    shape = (*x.shape, len(first), *y.shape[2:], *geometry, border)
    if run("ternary_conv", x.contiguous(), weight, *shape, first, second, bias, None, y.permute(0, 2, 3, 1)):
        return y
    own = restored(weight, len(first), x.shape[3], (geometry[0], geometry[1]))
    total = _sums(x, own, geometry, border).float() * first[:, None, None]
    if second is not None:
        total = total + _sums(x, own.abs(), geometry, border).float() * second[:, None, None]
    return y.copy_(total if bias is None else total + bias[:, None, None])


def _linear_shape(x: Tensor, weight: Tensor, values: list[float], scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((len(x), len(scale)))


@operator(_linear_shape)
def ternary_linear(x: Tensor, weight: Tensor, values: list[float], scale: Tensor, bias: Tensor | None) -> Tensor:
    """Computes scale sum value(w) x + bias of float activations, reading two bits a weight.

    Args:
        x: (rows, n), float32.
        weight: by `prepare`, of (outputs, n).
        values: of the weights -1, 0 and +1: TTQ's are -W_n, 0 and W_p.
        scale: (outputs,), float32.
        bias: (outputs,), float32, or None.

    Returns:
        (rows, outputs), float32.

    Raises:
        MethodError: shapes or types that don't fit.

    >>> x, w = torch.tensor([[1.0, 2.0, 4.0]]), prepare(torch.tensor([[1, -1, 0]]))
    >>> ternary_linear(x, w, [-0.5, 0.0, 3.0], torch.ones(1), None)
    tensor([[2.]])
    """
    outputs = len(scale)
    if x.dim() != 2 or x.dtype != torch.float32 or len(values) != 3:
        raise MethodError(f"ternary_linear takes rows of float32 and 3 values, not {tuple(x.shape)} and {len(values)}")
    steps = (x.shape[1] + STEP - 1) // STEP
    if weight.dtype != torch.uint8 or weight.shape != ((outputs + BLOCK - 1) // BLOCK, steps, 4, 64):
        raise MethodError(f"ternary_linear: a weight of {tuple(weight.shape)} isn't one of {outputs} x {x.shape[1]}")
    if scale.dim() != 1 or (bias is not None and bias.shape != scale.shape):
        raise MethodError(f"ternary_linear: scale and bias must have {outputs} numbers")
    y = _linear_shape(x, weight, values, scale, bias)
    full = functional.pad(x, (0, -x.shape[1] % STEP)).contiguous()
    if run("ternary_linear", full, weight, len(x), steps * STEP, outputs, *map(float, values), scale, bias, y):
        return y
    own = torch.tensor(values)[restored(weight, outputs, x.shape[1])[:, :, 0, 0].long() + 1]
    return functional.linear(x, own) * scale + (0 if bias is None else bias)


def _sums(x: Tensor, weight: Tensor, geometry: list[int], border: int) -> Tensor:
    """Returns sum w x by float64, which is exact."""
    _, _, sh, sw, ph, pw, dh, dw = geometry
    maps = functional.pad(x.permute(0, 3, 1, 2).double(), (pw, pw, ph, ph), value=border)
    return functional.conv2d(maps, weight.double(), None, (sh, sw), 0, (dh, dw)).int()


def _check(x: Tensor, weight: Tensor, outputs: int, geometry: list[int], border: int) -> None:
    if len(geometry) != 8 or min(geometry) < 0 or min(*geometry[:4], *geometry[6:]) < 1:
        raise MethodError(f"ternary: no geometry: {geometry}")
    if x.dim() != 4 or x.dtype != torch.int8 or not -128 <= border <= 127:
        raise MethodError(f"ternary: maps (batch, height, width, channels) of int8, not {tuple(x.shape)} of {x.dtype}")
    steps = geometry[0] * geometry[1] * ((x.shape[3] + STEP - 1) // STEP)
    if weight.dtype != torch.uint8 or weight.shape != ((outputs + BLOCK - 1) // BLOCK, steps, 4, 64):
        raise MethodError(f"ternary: a weight of {tuple(weight.shape)} isn't one of {outputs} x {x.shape[3]} channels")
    if steps >= 2**14:
        raise MethodError(f"ternary: {steps * STEP} weights an output; sums of 32 bits hold 2^18")
    if min(_sizes(x, geometry)) < 1:
        raise MethodError(f"ternary: a kernel of {geometry[:2]} doesn't fit {tuple(x.shape[1:3])}")
