"""Convolutions and linear layers in whole numbers: shifts and adds (ShiftCNN, INQ), or values of an int8 codebook."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.activations import Quantized
from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.core.packed import Packed, unpack
from lilliput.graph.ir import Node
from lilliput.kernels.codebook_linear import whole_values
from lilliput.kernels.window import Window, is_linear, window_of
from lilliput.quantize.activations.uniform import Uniform

PANEL = 64
"""Outputs that are decoded together."""
MOST = 14
"""The largest shift: weights have 16 bits, a sign among them."""
REACH = 255
"""The largest magnitude of an input: codes of 8 bits less their zero point."""


def prepare(codes: Tensor, groups: int = 1) -> Tensor:
    """Lays the bytes of a weight out for the kernels.

    Args:
        codes: (terms, outputs, channels / groups, height, width), int8 or uint8.
        groups: of the convolution.

    Returns:
        (terms, groups, outputs / 64, height * width, channels / 2, 64, 2), of the same type; what fills it is 0.
    """
    terms, outputs, channels = codes.shape[:3]
    own = outputs // groups
    parts = codes.reshape(terms, groups, own, channels, -1)
    padded = functional.pad(parts, (0, 0, 0, channels % 2, 0, -own % PANEL))
    panels = padded.reshape(terms, groups, -1, PANEL, (channels + 1) // 2, 2, parts.shape[-1])
    return panels.permute(0, 1, 2, 6, 4, 3, 5).contiguous()


def restored(code: Tensor, outputs: int, channels: int) -> Tensor:
    """Returns the bytes that were prepared: (terms, outputs, channels / groups, places)."""
    terms, groups, panels, places = code.shape[:4]
    parts = code.permute(0, 1, 2, 5, 4, 6, 3).reshape(terms, groups, panels * PANEL, -1, places)
    return parts[:, :, : outputs // groups, :channels].reshape(terms, outputs, channels, places)


def _shift_shape(x: Tensor, code: Tensor, outputs: int, window: list[int]) -> Tensor:
    return _empty(x, outputs, Window.of(window).out(x.shape[2], x.shape[3]))


@operator(_shift_shape)
def shift_conv(x: Tensor, code: Tensor, outputs: int, window: list[int]) -> Tensor:
    """Convolves whole numbers with sums of signed powers of two: y = sum of +-(x << shift), exact.

    ShiftCNN (Gudovskiy and Rigazio 2017, arXiv 1706.02393), INQ (Zhou et al. 2017, arXiv 1702.03044). The kernel shifts
    once a weight, not once a product, and multiplies: to a vector unit that is less work, and the numbers are the same.

    Args:
        x: (batch, channels, height, width), int16.
        code: by `prepare`, int8: 0, or +-(1 + shift), shift 0 .. 14; terms are added. Weights must stay within 16 bits
            and sums within 32.
        outputs: how many.
        window: `Window.numbers`.

    Returns:
        (batch, outputs, height, width), int32, channels last in memory.

    Raises:
        MethodError: shapes or types that don't fit.

    >>> code = prepare(torch.tensor([3, -1], dtype=torch.int8).reshape(1, 1, 2, 1, 1))
    >>> x = torch.tensor([5, 7], dtype=torch.int16).reshape(1, 2, 1, 1)
    >>> shift_conv(x, code, 1, Window((1, 1)).numbers).item()
    13
    """
    sizes, numbers = _checked("shift_conv", x, code, torch.int8, outputs, window)
    y = _empty(x, outputs, sizes.out(x.shape[2], x.shape[3]))
    if run("shift_conv", numbers, code, x.contiguous(), y.permute(0, 2, 3, 1), len(code)):
        return y
    for term in restored(code, outputs, x.shape[1] // sizes.groups):
        wide = term.long().reshape(*term.shape[:2], *sizes.kernel)
        places = wide.abs() - 1
        for shift in range(int(places.max()) + 1 if places.numel() else 0):
            signs = torch.where(places == shift, wide.sign(), 0)
            # float64 adds and subtracts whole numbers of 53 bits exactly.
            y += sizes.convolve((x.long() << shift).double(), signs.double()).int()
    return y


def _codebook_shape(x: Tensor, code: Tensor, book: Tensor, outputs: int, window: list[int]) -> Tensor:
    return _empty(x, outputs, Window.of(window).out(x.shape[2], x.shape[3]))


@operator(_codebook_shape)
def codebook_conv(x: Tensor, code: Tensor, book: Tensor, outputs: int, window: list[int]) -> Tensor:
    """Convolves whole numbers with weights of an int8 codebook, exact.

    Args:
        x: (batch, channels, height, width), int16.
        code: by `prepare`, one term, uint8; what fills it counts nothing, whatever the first value is.
        book: (256,), int8.
        outputs: how many.
        window: `Window.numbers`.

    Returns:
        (batch, outputs, height, width), int32, channels last in memory.

    Raises:
        MethodError: shapes or types that don't fit.
    """
    sizes, numbers = _checked("codebook_conv", x, code, torch.uint8, outputs, window)
    if len(code) != 1 or book.shape != (256,) or book.dtype != torch.int8:
        raise MethodError(f"codebook_conv: needs 256 int8 values, not {tuple(book.shape)} {book.dtype}")
    y = _empty(x, outputs, sizes.out(x.shape[2], x.shape[3]))
    if run("codebook_conv", numbers, code, book, x.contiguous(), y.permute(0, 2, 3, 1)):
        return y
    rows = book.double()[restored(code, outputs, x.shape[1] // sizes.groups)[0].long()]
    weight = rows.reshape(*rows.shape[:2], *sizes.kernel)
    y += sizes.convolve(x.double(), weight).int()
    return y


def _empty(x: Tensor, outputs: int, out: tuple[int, int]) -> Tensor:
    return x.new_zeros((x.shape[0], *out, outputs), dtype=torch.int32).permute(0, 3, 1, 2)


def _checked(
    name: str, x: Tensor, code: Tensor, dtype: torch.dtype, outputs: int, window: list[int]
) -> tuple[Window, Tensor]:
    if x.dim() != 4 or x.dtype != torch.int16 or code.dtype != dtype:
        raise MethodError(f"{name}: takes images of int16 and {dtype}, not {tuple(x.shape)} of {x.dtype}, {code.dtype}")
    sizes, shape, numbers = _plan(name, tuple(x.shape), outputs, tuple(window))
    if code.dim() != 7 or not 1 <= len(code) <= 8 or code.shape[1:] != shape or not code.is_contiguous():
        raise MethodError(f"{name}: codes of {tuple(code.shape)} aren't of {outputs} x {shape}")
    return sizes, numbers


@lru_cache(maxsize=1024)
def _plan(
    name: str, shape: tuple[int, ...], outputs: int, window: tuple[int, ...]
) -> tuple[Window, tuple[int, ...], Tensor]:
    """What follows from sizes alone: the window, the shape of the codes, and what the kernel is told; checked."""
    sizes = Window.of(list(window))
    _, channels, height, width = shape
    if not channels or channels % sizes.groups or outputs < 1 or outputs % sizes.groups:
        raise MethodError(f"{name}: {outputs} outputs of {channels} channels in {sizes.groups} groups")
    out = sizes.out(height, width)
    if min(out) < 1:
        raise MethodError(f"{name}: {shape} is smaller than the window of {sizes.kernel}")
    pairs, panels = (channels // sizes.groups + 1) // 2, -(-outputs // sizes.groups // PANEL)
    codes = (sizes.groups, panels, sizes.kernel[0] * sizes.kernel[1], pairs, PANEL, 2)
    return sizes, codes, torch.tensor([*shape, outputs, sizes.groups, *window[:8], *out])


def shifts(packed: Packed) -> tuple[Tensor, int] | None:
    """Reads a weight of powers of two.

    Args:
        packed: `quantize/power_of_two` (which `quantize/shift` packs to), or `quantize/incremental` at its end.

    Returns:
        (terms, *shape), int8: 0 or +-(1 + shift), and the exponent of shift 0; None where 16 bits don't hold a weight.
    """
    codes, top = packed.parts.get("codes"), packed.settings.get("top")
    values = packed.parts.get("values")
    if not isinstance(codes, Tensor) or codes.dtype != torch.int8 or type(top) is not int or not codes.numel():
        return None
    if packed.method == "quantize/incremental":
        if isinstance(values, Tensor) and values.numel():
            return None
        codes = codes[None]
    elif packed.method != "quantize/power_of_two":
        return None
    wide = codes.short()
    depth = wide.abs() + torch.arange(len(codes), dtype=torch.int16).reshape(-1, *(1,) * (codes.dim() - 1))
    live = wide != 0
    deepest = int(depth[live].max()) if bool(live.any()) else 1
    shift = deepest - depth
    if int(shift[live].max() if bool(live.any()) else 0) > MOST:
        return None
    found = torch.where(live, (shift + 1) * wide.sign(), 0).to(torch.int8)
    size = torch.where(live, torch.bitwise_left_shift(torch.ones_like(shift).int(), shift.int()), 0).sum(0)
    longest = int(size.flatten(1).long().sum(1).max()) if size.dim() > 1 else 0
    return None if int(size.max()) >= 1 << 15 or longest * REACH >= 1 << 31 else (found, top + 1 - deepest)


class IntegerConv(nn.Module):
    """A convolution or linear layer in whole numbers behind an input quantizer; exact to the scale at its end.

    Args:
        codes: (terms, outputs, channels / groups, *window).
        scale: what a step of the weight is worth.
        window: None for a linear layer.
        inputs: a static `Uniform` of at most 8 bits.
        book: int8 values that codes point at, at most 256; None for powers of two.
    """

    code: Tensor
    book: Tensor

    def __init__(
        self, codes: Tensor, scale: float, window: Window | None, inputs: Quantized, book: Tensor | None = None
    ) -> None:
        super().__init__()
        self.window = window or Window((1, 1), dims=0)
        self.register_buffer("code", prepare(codes.reshape(*codes.shape[:3], *self.window.kernel), self.window.groups))
        values = torch.zeros(0, dtype=torch.int8) if book is None else functional.pad(book, (0, 256 - len(book)))
        self.register_buffer("book", values)
        self.outputs, self.numbers = codes.shape[1], self.window.numbers
        self.step, self.zero = inputs.numbers["scale"], int(inputs.numbers["zero"])
        self.low, self.high = (code - self.zero for code in inputs.method.codes)
        self.scale = scale * self.step
        self.kind = "shifts and adds" if book is None else "codebook, whole numbers"

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the layer's output; x is on the levels of its quantizer."""
        whole = torch.round(x / self.step).clamp_(self.low, self.high).to(torch.int16)
        dims = self.window.dims
        if dims == 0:
            image = whole.reshape(-1, x.shape[-1]).T[None, :, None].contiguous()
        else:
            image = whole.reshape(-1, x.shape[-1 - dims], *(1,) * (2 - dims), *x.shape[x.dim() - dims :])
        if self.book.numel():
            total = codebook_conv(image, self.code, self.book, self.outputs, self.numbers)
        else:
            total = shift_conv(image, self.code, self.outputs, self.numbers)
        y = total.float().contiguous() * self.scale
        if bias is not None:
            y = y + bias[:, None, None]
        if dims == 0:
            return y[0, :, 0].T.reshape(*x.shape[:-1], self.outputs)
        return y.reshape(*x.shape[: -1 - dims], self.outputs, *y.shape[4 - dims :])


def serves(packed: Packed, node: Node, inputs: Quantized | None = None) -> IntegerConv | None:
    """Serves layers behind a static uniform input quantizer of up to 8 bits.

    `quantize/power_of_two`, `quantize/shift` and `quantize/incremental` (all of it quantized), by shifts and adds;
    convolutions of `share/kmeans` whose codebook is packed by `quantize/uniform` in 8 bits.
    """
    method: Any = inputs.method if inputs is not None else None
    if inputs is None or not isinstance(method, Uniform) or method.range == "dynamic" or method.bits > 8:
        return None
    linear, window = is_linear(node, packed.shape), window_of(node, packed.shape)
    if not linear and window is None:
        return None
    inner = packed.parts.get("values")
    if packed.method == "prune/sparse" and isinstance(inner, Packed) and inner.shape == packed.shape:
        packed = inner
    found = shifts(packed) if packed.dtype == torch.float32 else None
    if found is not None:
        factor = float(packed.tensor("scale").flatten()[0]) if "scale" in packed.parts else 1.0
        return IntegerConv(found[0], factor * 2.0 ** found[1], window, inputs)
    codes = packed.parts.get("codes")
    if packed.method != "share/kmeans" or linear or not isinstance(codes, Tensor) or codes.dtype != torch.uint8:
        return None
    unpack(packed)  # checks that no code is beyond the codebook
    whole = whole_values(packed.parts["codebook"], inputs)
    if (
        whole is None
        or codes[0].numel() * 128 * REACH >= 1 << 31
        or len(whole[0]) + bool(packed.settings["zero"]) > 256
    ):
        return None
    book = functional.pad(whole[0], (int(bool(packed.settings["zero"])), 0))
    return IntegerConv(codes[None], whole[1], window, inputs, book)
