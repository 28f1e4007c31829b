"""Integer layers of 8-bit codes, with requantization in fixed point, in plain torch integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed
from lilliput.quantize.activations.uniform import Uniform
from lilliput.quantize.uniform import centred, rows_of

LOW, HIGH = -(2**31), 2**31 - 1
"""Ends of 32 bits."""


def multiplier(real: float) -> tuple[int, int]:
    """Returns (m, shift) with real ~ m 2^-31 2^-shift, 2^30 <= m < 2^31 (Jacob et al. 2018, arXiv 1712.05877).

    Args:
        real: S1 S2 / S3, positive; below 2^30.

    Raises:
        MethodError: it is not positive and finite.

    >>> multiplier(0.25), multiplier(0.999999999999)
    ((1073741824, 1), (1073741824, -1))
    """
    if not 0 < real < 2**30:
        raise MethodError(f"a multiplier must be positive and below 2^30, not {real}")
    mantissa, exponent = math.frexp(real)
    whole = math.floor(mantissa * 2**31 + 0.5)
    return (whole // 2, -exponent - 1) if whole == 2**31 else (whole, -exponent)


def doubling_high_product(a: Tensor, b: Tensor) -> Tensor:
    """Returns round(a b / 2^31) as gemmlowp does: a nudge of 2^30 (1 - 2^30 if negative), then towards zero.

    Args:
        a: int64 within 32 bits, any shape.
        b: the same, broadcastable.

    >>> doubling_high_product(torch.tensor([3, -3]), torch.tensor(2**30)).tolist()
    [2, -1]
    """
    product = a.long() * b.long()
    nudge = torch.where(product >= 0, 2**30, 1 - 2**30)
    result = torch.div(product + nudge, 2**31, rounding_mode="trunc")
    return torch.where((a == LOW) & (b == LOW), HIGH, result)


def divide_by_power(x: Tensor, shift: Tensor) -> Tensor:
    """Returns x / 2^shift, rounded half away from zero.

    Args:
        x: int64.
        shift: int64, 0 .. 31, broadcastable.

    >>> divide_by_power(torch.tensor([5, -5, 6, -6]), torch.tensor(2)).tolist()
    [1, -1, 2, -2]
    """
    mask = torch.bitwise_left_shift(torch.ones_like(shift), shift) - 1
    threshold = torch.bitwise_right_shift(mask, 1) + (x < 0)
    return torch.bitwise_right_shift(x, shift) + ((x & mask) > threshold)


def requantize(total: Tensor, multipliers: Tensor, shifts: Tensor) -> Tensor:
    """Returns total m 2^-31 2^-shift, rounded twice as gemmlowp does; a negative shift goes to the left first.

    Args:
        total: int64 within 32 bits.
        multipliers: int64, broadcastable.
        shifts: int64, broadcastable.
    """
    left, right = (-shifts).clamp(min=0), shifts.clamp(min=0)
    raised = torch.bitwise_left_shift(total, left).clamp(LOW, HIGH)
    # Beyond 31 places nothing is left.
    return torch.where(right > 31, 0, divide_by_power(doubling_high_product(raised, multipliers), right.clamp(max=31)))


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A linear layer or a two-dimensional convolution of codes.

    q3 = Z3 + M (sum (Q1 - Z1) Q2 + b), M = S1 S2 / S3 for each output in fixed point, b = round(bias / (S1 S2)),
    clipped to the codes that there are (Jacob et al. 2018, arXiv 1712.05877). What lies outside of a convolution's
    input counts as Z1, that is 0.

    Attributes:
        weight: codes less their zero point, int64, (out, in) or (out, in / groups, height, width).
        bias: int64 within 32 bits, (out,).
        zero: (of what goes in, of what comes out).
        multipliers: (out,), int64.
        shifts: (out,), int64.
        codes: lowest and highest code of what comes out.
        geometry: stride, padding, dilation (each a pair) and groups of a convolution; None for a linear layer.
    """

    weight: Tensor
    bias: Tensor
    zero: tuple[int, int]
    multipliers: Tensor
    shifts: Tensor
    codes: tuple[int, int]
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int] | None = None

    def total(self, x: Tensor) -> Tensor:
        """Returns sum (Q1 - Z1) Q2 + b, int64; outputs last (linear) or second (convolution).

        Args:
            x: codes that go in, integers.

        Raises:
            MethodError: a total is beyond 32 bits: no such layer can be run in integers of 32 bits.
        """
        steps = x.long() - self.zero[0]
        if self.geometry is None:
            found = steps @ self.weight.T + self.bias
        else:
            found = convolved(steps, self.weight, self.geometry) + self.bias[:, None, None]
        if found.numel() and not (int(found.min()) >= LOW and int(found.max()) <= HIGH):
            raise MethodError(f"a total of {int(found.abs().max())} is beyond 32 bits")
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the codes that come out, int64."""
        shape = (-1, 1, 1) if self.geometry is not None else (-1,)
        found = requantize(self.total(x), self.multipliers.reshape(shape), self.shifts.reshape(shape))
        return (found + self.zero[1]).clamp(*self.codes)


def integer_layer(
    packed: Packed,
    bias: Tensor | None,
    into: tuple[Uniform, Mapping[str, float]],
    out_of: tuple[Uniform, Mapping[str, float]],
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int] | None = None,
) -> IntegerLayer:
    """Makes an integer layer of a packed weight and of the quantizers in front of it and of the next layer.

    Args:
        packed: by `quantize/uniform`, per tensor or row, levels on the grid.
        bias: of the layer, or None.
        into: quantizer and numbers in front of the layer, static.
        out_of: the same in front of the next layer.
        geometry: see `IntegerLayer`.

    Raises:
        MethodError: a weight in another form, or a dynamic range.
    """
    if packed.method != "quantize/uniform" or "levels" in packed.parts or packed.settings["per"] == "group":
        raise MethodError(f"{packed.method}: integers need quantize/uniform per tensor or row, on its grid")
    if "dynamic" in {into[0].range, out_of[0].range}:
        raise MethodError("integers need static ranges of activations")
    outputs = packed.shape[0]
    rows = rows_of(packed.shape, str(packed.settings["per"]), 0)
    weight = centred(packed, rows).long().reshape(packed.shape)
    scale = packed.tensor("scale").double().expand(outputs) if rows[0] == 1 else packed.tensor("scale").double()
    unit = scale * into[1]["scale"]
    safe = torch.where(unit > 0, unit, 1)
    start = torch.zeros(outputs) if bias is None else bias.detach()
    pairs = [multiplier(float(value) / out_of[1]["scale"]) for value in safe]
    return IntegerLayer(
        weight=weight,
        bias=torch.round(start.double() / safe).clamp(LOW, HIGH).long(),
        zero=(int(into[1]["zero"]), int(out_of[1]["zero"])),
        multipliers=torch.tensor([m for m, _ in pairs]),
        shifts=torch.tensor([s for _, s in pairs]),
        codes=out_of[0].codes,
        geometry=geometry,
    )


def encode(x: Tensor, uniform: Uniform, numbers: Mapping[str, float]) -> Tensor:
    """Returns the codes of what a static uniform quantizer makes of x, int64: (value / scale) + zero."""
    return torch.round(uniform.forward(x, numbers).double() / numbers["scale"]).long() + int(numbers["zero"])


def decode(codes: Tensor, numbers: Mapping[str, float]) -> Tensor:
    """Returns (code - zero) scale, float32: exactly what the quantizer gives for these codes."""
    return (codes - int(numbers["zero"])).float() * numbers["scale"]


def convolved(
    x: Tensor, weight: Tensor, geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
) -> Tensor:
    """Returns a convolution in int64: windows as a view, then products of matrices of integers.

    Args:
        x: (samples, channels, height, width), int64.
        weight: (out, channels / groups, height, width), int64.
        geometry: stride, padding, dilation and groups.

    >>> ones = torch.ones(1, 1, 2, 2, dtype=torch.int64)
    >>> convolved(ones, ones, ((1, 1), (0, 0), (1, 1), 1)).tolist()
    [[[[4]]]]
    """
    stride, padding, dilation, groups = geometry
    windows = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    for axis in (0, 1):
        size, gap = weight.shape[2 + axis], dilation[axis]
        windows = windows.unfold(2 + axis, (size - 1) * gap + 1, stride[axis])[..., ::gap]
    batch, _, height, width = windows.shape[:4]
    parts = windows.reshape(batch, groups, -1, height, width, *weight.shape[2:])
    rows = parts.permute(1, 0, 3, 4, 2, 5, 6).reshape(groups, batch * height * width, -1)
    found = rows @ weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)
    return found.permute(1, 0, 2).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
