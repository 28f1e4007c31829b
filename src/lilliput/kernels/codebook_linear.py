"""Linear layers of shared values: codes of 4 or 8 bits, values in float32, bfloat16 or int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.activations import Quantized
from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.core.packed import Packed, unpack
from lilliput.graph.ir import Node
from lilliput.kernels.window import is_linear
from lilliput.quantize.activations.uniform import Uniform
from lilliput.quantize.uniform import centred

ROWS, BYTES = 4, 64
SIZES = (16, 64, 128, 256)
"""What a codebook may be filled up to; 16 values take codes of 4 bits, more take 8."""
FEW = 8
"""Rows up to which the codes are read once for each; for more the weight is decoded."""
LONGEST = (1 << 17) - 1
"""Inputs of an int8 layer, whose sums stay within 32 bits."""


def prepare(codes: Tensor, values: int) -> Tensor:
    """Lays codes out for the kernels.

    Args:
        codes: (outputs, inputs), whole numbers below `values`.
        values: 16, 64, 128 or 256.

    Returns:
        (outputs / 4, pieces, 4, 64), uint8: pieces of 128 inputs, two codes to a byte, or of 64.

    >>> prepare(torch.tensor([[1, 2, 3]]), 16).shape
    torch.Size([1, 1, 4, 64])
    """
    halves = 2 if values == 16 else 1
    padded = functional.pad(codes.to(torch.uint8), (0, -codes.shape[1] % (halves * BYTES), 0, -len(codes) % ROWS))
    parts = padded.reshape(len(padded) // ROWS, ROWS, -1, halves, BYTES)
    joined = parts[:, :, :, 0] | (parts[:, :, :, 1] << 4) if halves == 2 else parts[:, :, :, 0]
    return joined.transpose(1, 2).contiguous()


def restored(code: Tensor, values: int, outputs: int, inputs: int) -> Tensor:
    """Returns the codes that were prepared, (outputs, inputs), int64."""
    rows = code.transpose(1, 2).reshape(-1, code.shape[1], BYTES)
    parts = torch.stack([rows & 15, rows >> 4], 2) if values == 16 else rows[:, :, None].short() % values
    return parts.reshape(len(rows), -1)[:outputs, :inputs].long()


def _float_shape(x: Tensor, code: Tensor, book: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


@operator(_float_shape)
def codebook_linear(x: Tensor, code: Tensor, book: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """Computes x W^T + bias, W[o, i] = book[code[o, i]]: the weights of Deep Compression, looked up in registers.

    Han, Mao and Dally 2016, arXiv 1510.00149.

    Args:
        x: (rows, inputs), float32; with a codebook in bfloat16 rounded to that.
        code: by `prepare`.
        book: (16 | 64 | 128 | 256,), float32 or bfloat16.
        bias: (outputs,), float32, or None.
        outputs: how many.

    Returns:
        (rows, outputs), float32.

    Raises:
        MethodError: shapes or types that don't fit.

    >>> book = torch.arange(16.0)
    >>> codebook_linear(torch.tensor([[1.0, 10.0]]), prepare(torch.tensor([[2, 3]]), 16), book, None, 1).tolist()
    [[32.0]]
    """
    _check("codebook_linear", x, torch.float32, code, book, outputs)
    if book.dtype not in {torch.float32, torch.bfloat16}:
        raise MethodError(f"codebook_linear: values of {book.dtype}; they are float32 or bfloat16")
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != torch.float32):
        raise MethodError(f"codebook_linear: a bias of {tuple(bias.shape)} {bias.dtype} for {outputs} outputs")
    y, inputs, narrow = x.new_empty((len(x), outputs)), x.shape[1], book.dtype == torch.bfloat16
    numbers = (len(x), inputs, outputs, len(book), int(narrow))
    if run("codebook_float", x.contiguous(), code, book.float(), bias, y, *numbers):
        return y
    rows = x.bfloat16().float() if narrow else x
    return functional.linear(rows, book.float()[restored(code, len(book), outputs, inputs)], bias)


def _int8_shape(x: Tensor, code: Tensor, book: Tensor, outputs: int) -> Tensor:
    return x.new_empty((x.shape[0], outputs), dtype=torch.int32)


@operator(_int8_shape)
def codebook_int8(x: Tensor, code: Tensor, book: Tensor, outputs: int) -> Tensor:
    """Computes x W^T in whole numbers, W[o, i] = book[code[o, i]].

    Args:
        x: (rows, inputs), int8, fewer than 2^17 inputs.
        code: by `prepare`.
        book: (16 | 64 | 128 | 256,), int8.
        outputs: how many.

    Returns:
        (rows, outputs), int32, exact.

    Raises:
        MethodError: shapes or types that don't fit.
    """
    _check("codebook_int8", x, torch.int8, code, book, outputs)
    if book.dtype != torch.int8 or x.shape[1] > LONGEST:
        raise MethodError(f"codebook_int8: values of {book.dtype} for {x.shape[1]} inputs; int8, at most {LONGEST}")
    y, inputs = x.new_empty((len(x), outputs), dtype=torch.int32), x.shape[1]
    if run("codebook_int8", x.contiguous(), code, book, y, len(x), inputs, outputs, len(book)):
        return y
    return (x.long() @ book.long()[restored(code, len(book), outputs, inputs)].T).int()


def _check(name: str, x: Tensor, dtype: torch.dtype, code: Tensor, book: Tensor, outputs: int) -> None:
    if x.dim() != 2 or x.dtype != dtype or not x.shape[1] or outputs < 1:
        raise MethodError(f"{name}: takes rows of {dtype}, not {tuple(x.shape)} of {x.dtype}")
    if book.dim() != 1 or len(book) not in SIZES:
        raise MethodError(f"{name}: a codebook of {tuple(book.shape)}; 16, 64, 128 or 256 values")
    wide = 2 * BYTES if len(book) == 16 else BYTES
    if code.shape != (-(-outputs // ROWS), -(-x.shape[1] // wide), ROWS, BYTES) or code.dtype != torch.uint8:
        raise MethodError(f"{name}: codes of {tuple(code.shape)} {code.dtype} for {outputs} x {x.shape[1]}")


class CodebookLinear(nn.Module):
    """A linear layer that keeps 4 or 8 bits a weight.

    Pays where memory is the limit, for few rows: 4 bits about 4 times as fast as torch's float32 layer in float32, 5
    times in bfloat16, 9 times in int8 (docs/benchmarks/sparse-kernels.md). For more rows the weight is decoded first.

    Args:
        codes: (outputs, inputs), whole numbers.
        book: (k,), float32, bfloat16 or int8, k <= 256.
        scale: of int8 values and inputs together.
        into: of int8 inputs: scale and zero point, codes 0 .. 255 (or -128 .. 127 with `signed`).
        signed: whether inputs' codes are below zero, too.
    """

    code: Tensor
    book: Tensor
    sums: Tensor

    def __init__(
        self, codes: Tensor, book: Tensor, scale: float = 1.0, into: tuple[float, int] = (1.0, 0), signed: bool = True
    ) -> None:
        super().__init__()
        self.outputs, self.inputs = codes.shape
        size = next(size for size in SIZES if size >= len(book))
        self.register_buffer("code", prepare(codes, size))
        self.register_buffer("book", functional.pad(book, (0, size - len(book))))
        self.scale, self.into, self.shift = scale, into, 0 if signed else 128
        whole = book.dtype == torch.int8
        # sum v (q - zero) = sum v (q - shift) + (shift - zero) sum v
        sums = book[codes.long()].long().sum(1) * (self.shift - into[1]) if whole else torch.zeros(0)
        self.register_buffer("sums", sums)
        bits = 4 if size == 16 else 8
        self.kind = f"codebook, {bits} bits, {str(book.dtype).removeprefix('torch.')}"
        self.tolerance = 1e-2 if book.dtype == torch.bfloat16 else 1e-5

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the layer's output; x is (..., inputs), floats, on the input's levels where values are int8."""
        rows = x.reshape(-1, self.inputs)
        if self.book.dtype == torch.int8:
            return self._whole(rows, bias).reshape(*x.shape[:-1], self.outputs)
        if len(rows) <= FEW:
            y = codebook_linear(rows, self.code, self.book, bias, self.outputs)
        else:
            codes = restored(self.code, len(self.book), self.outputs, self.inputs)
            y = functional.linear(rows, self.book.float()[codes], bias)
        return y.reshape(*x.shape[:-1], self.outputs)

    def _whole(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        scale, zero = self.into
        codes = (torch.round(rows / scale) + (zero - self.shift)).clamp_(-128, 127).to(torch.int8)
        total = codebook_int8(codes, self.code, self.book, self.outputs)
        y = (total + self.sums).float() * self.scale
        return y if bias is None else y + bias


def serves(packed: Packed, node: Node, inputs: Quantized | None = None) -> CodebookLinear | None:
    """Serves linear layers of `share/kmeans`, pruned before or not, with at most 256 values, zero counted.

    A codebook as it is: float32. Packed by `quantize/float16` as bfloat16: that, and inputs are rounded to it, too.
    Packed by `quantize/uniform` in 8 bits, behind an input quantizer of up to 8 bits: whole numbers.
    """
    inner = packed.parts.get("values")
    if packed.method == "prune/sparse" and isinstance(inner, Packed) and inner.shape == packed.shape:
        packed = inner
    codes = packed.parts.get("codes")
    if packed.method != "share/kmeans" or not is_linear(node, packed.shape) or packed.dtype != torch.float32:
        return None
    if not isinstance(codes, Tensor) or codes.dtype != torch.uint8 or not codes.numel():
        return None
    unpack(packed)  # checks that no code is beyond the codebook
    part, zero = packed.parts["codebook"], bool(packed.settings["zero"])
    whole = whole_values(part, inputs)
    if whole is not None:
        book, scale = whole
        method, numbers = inputs.method, inputs.numbers  # type: ignore[union-attr]
        layer = (scale * numbers["scale"], (numbers["scale"], int(numbers["zero"])), method.codes[0] < 0)
        return CodebookLinear(codes, functional.pad(book, (int(zero), 0)), *layer)
    book = unpack(part)
    if isinstance(part, Packed) and part.method == "quantize/float16":
        values = part.parts["values"]
        book = values if isinstance(values, Tensor) and values.dtype == torch.bfloat16 else book
    book = book if book.dtype == torch.bfloat16 else book.float()
    return CodebookLinear(codes, functional.pad(book, (int(zero), 0)))


def whole_values(part: Tensor | Packed, inputs: Quantized | None) -> tuple[Tensor, float] | None:
    """The codebook as int8 and its scale, where both it and the inputs are in whole numbers of 8 bits."""
    method: Any = inputs.method if inputs is not None else None
    if not isinstance(method, Uniform) or method.range == "dynamic" or method.bits > 8:
        return None
    if not isinstance(part, Packed) or part.method != "quantize/uniform" or part.settings.get("per") != "tensor":
        return None
    if "levels" in part.parts or len(part.shape) != 1:
        return None
    values = centred(part, (1, part.shape[0]))[0]
    if not values.numel() or int(values.min()) < -128 or int(values.max()) > 127:
        return None
    return values.to(torch.int8), float(part.tensor("scale").flatten()[0])
