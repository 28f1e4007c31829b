"""Product quantization by look-up: inputs times codewords once, then every output adds what its codes point at."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.core.packed import Packed, unpack
from lilliput.graph.ir import Node
from lilliput.kernels.sparse_conv import sparse_conv
from lilliput.kernels.window import Window, is_linear, window_of

OUTPUTS = 16
SIZES = (16, 32, 256)
"""What codewords may be filled up to."""
FEW = 8
"""Rows up to which tables are made for each; more are pixels of a 1 x 1 convolution."""


def prepare(codes: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Lays a linear layer's codes and codewords out for the kernel.

    Args:
        codes: (outputs, runs), whole numbers below k.
        codebook: (runs, k, width), float32, k <= 256.

    Returns:
        Words (outputs / 16, pieces, 16), int32, and codewords (runs, width, 16 | 32 | 256), zeros added.

    >>> word, book = prepare(torch.tensor([[1, 2], [0, 1]]), torch.zeros(2, 3, 4))
    >>> word[0, 0, :2].tolist(), book.shape
    ([33, 16], torch.Size([2, 4, 16]))
    """
    size = next(size for size in SIZES if size >= codebook.shape[1])
    fields = 8 if size == 16 else 4
    book = functional.pad(codebook.transpose(1, 2), (0, size - codebook.shape[1])).contiguous()
    padded = functional.pad(codes.long(), (0, -codes.shape[1] % fields, 0, -len(codes) % OUTPUTS))
    parts = padded.reshape(-1, OUTPUTS, padded.shape[1] // fields, fields)
    bits = (parts << torch.arange(0, 32, 32 // fields)).sum(-1).transpose(1, 2)
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).contiguous(), book


def restored(word: Tensor, values: int, outputs: int, runs: int) -> Tensor:
    """Returns the codes of prepared words, (outputs, runs), int64."""
    fields = 8 if values == 16 else 4
    parts = (word.long()[..., None] >> torch.arange(0, 32, 32 // fields)) & (values - 1)
    return parts.transpose(1, 2).reshape(len(word) * OUTPUTS, -1)[:outputs, :runs]


def _product_shape(x: Tensor, word: Tensor, book: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


@operator(_product_shape)
def product_linear(x: Tensor, word: Tensor, book: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """Computes y[o] = bias[o] + sum over runs m of <D_m[code(o, m)], x_m>, looked up in tables of all products.

    Quantized CNN (Wu et al. 2016, arXiv 1512.06473): inputs x k multiplications in place of inputs x outputs.

    Args:
        x: (rows, inputs), float32.
        word: by `prepare`.
        book: the same, (runs, width, 16 | 32 | 256), float32.
        bias: (outputs,), float32, or None.
        outputs: how many.

    Returns:
        (rows, outputs), float32.

    Raises:
        MethodError: shapes or types that don't fit.
    """
    if x.dim() != 2 or x.dtype != torch.float32 or book.dim() != 3 or book.dtype != torch.float32 or outputs < 1:
        raise MethodError(f"product_linear: {x.dtype} {tuple(x.shape)} and {book.dtype} {tuple(book.shape)}")
    runs, width, values = book.shape
    if values not in SIZES or not (runs - 1) * width < x.shape[1] <= runs * width:
        raise MethodError(f"product_linear: codewords of {tuple(book.shape)} aren't those of {x.shape[1]} inputs")
    fields = 8 if values == 16 else 4
    if word.shape != (-(-outputs // OUTPUTS), -(-runs // fields), OUTPUTS) or word.dtype != torch.int32:
        raise MethodError(f"product_linear: words of {tuple(word.shape)} aren't those of {outputs} outputs")
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != torch.float32):
        raise MethodError(f"product_linear: a bias of {tuple(bias.shape)} {bias.dtype} for {outputs} outputs")
    y = x.new_empty((len(x), outputs))
    if run("product_linear", x.contiguous(), book, word, bias, y, len(x), x.shape[1], outputs, runs, width, values):
        return y
    tables = _tables(functional.pad(x, (0, runs * width - x.shape[1])), book)
    y.zero_()
    for table, code in zip(tables, restored(word, values, outputs, runs).T):
        y += table[:, code]
    return y if bias is None else y.add_(bias)


def _tables(x: Tensor, book: Tensor) -> Tensor:
    """Products of inputs (rows, runs x width) with all codewords: (runs, rows, values)."""
    return torch.bmm(x.reshape(len(x), *book.shape[:2]).transpose(0, 1), book)


class ProductLinear(nn.Module):
    """A linear layer of product quantization, which is never unpacked.

    Pays: see docs/benchmarks/sparse-kernels.md.

    Args:
        codes: (outputs, runs).
        codebook: (runs, k, width), float32, k <= 256.
        inputs: how many; the last run may be narrower.
    """

    word: Tensor
    book: Tensor
    kind = "product quantization, look-up"

    def __init__(self, codes: Tensor, codebook: Tensor, inputs: int) -> None:
        super().__init__()
        word, book = prepare(codes, codebook)
        self.register_buffer("word", word)
        self.register_buffer("book", book)
        self.inputs, self.outputs = inputs, len(codes)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the layer's output; x is (..., inputs)."""
        rows = x.reshape(-1, self.inputs)
        if len(rows) <= FEW:
            return product_linear(rows, self.word, self.book, bias, self.outputs).reshape(*x.shape[:-1], self.outputs)
        runs, _, values = self.book.shape
        codes = restored(self.word, values, self.outputs, runs)
        weight = self.book[torch.arange(runs), :, codes].reshape(self.outputs, -1)
        return functional.linear(x, weight[:, : self.inputs], bias)


class ProductConv(nn.Module):
    """A convolution of product quantization: a table for each pixel, of which each output adds one row a run and place.

    The sums are those of a sparse matrix of ones, and computed as such.

    Args:
        codes: (outputs, runs, *window).
        codebook: (runs, k, width), float32.
        channels: that go in; the last run may be narrower.
        window: of one group.
    """

    start: Tensor
    column: Tensor
    value: Tensor
    book: Tensor
    kind = "product quantization, look-up"

    def __init__(self, codes: Tensor, codebook: Tensor, channels: int, window: Window) -> None:
        super().__init__()
        outputs, runs = codes.shape[:2]
        k, places = codebook.shape[1], codes[0, 0].numel()
        flat = codes.reshape(outputs, runs, places).long()
        # Channel (run, codeword) and place, ascending within an output.
        column = ((torch.arange(runs)[:, None] * k + flat) * places + torch.arange(places)).reshape(outputs, -1)
        count = runs * places
        self.register_buffer("start", (torch.arange(outputs + 1) * count).to(torch.int32))
        self.register_buffer("column", column.sort(1).values.reshape(-1).to(torch.int32))
        self.register_buffer("value", torch.ones(outputs * count, 1))
        self.register_buffer("book", codebook.contiguous())
        self.outputs, self.channels, self.window, self.numbers = outputs, channels, window, window.numbers

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the layer's output; x is (batch, channels, *size) or one image without the batch."""
        dims = self.window.dims
        single = x.dim() == dims + 1
        whole = x[None] if single else x
        image = whole[:, :, None] if dims == 1 else whole
        runs, k, width = self.book.shape
        height, across = image.shape[2:]
        full = functional.pad(image, (0, 0, 0, 0, 0, runs * width - self.channels)).reshape(
            -1, runs, width, height * across
        )
        tables = torch.matmul(self.book, full).reshape(-1, runs * k, height, across)
        y = sparse_conv(tables, self.start, self.column, self.value, bias, self.outputs, self.numbers)
        y = y[:, :, 0] if dims == 1 else y
        return y[0] if single else y


def serves(packed: Packed, node: Node) -> ProductLinear | ProductConv | None:
    """Serves linear layers and convolutions, of one or two dimensions and one group, of `share/product`, k <= 256."""
    codes = packed.parts.get("codes")
    if packed.method != "share/product" or packed.dtype != torch.float32 or not isinstance(codes, Tensor):
        return None
    window = window_of(node, packed.shape)
    if not is_linear(node, packed.shape) and (window is None or window.groups != 1):
        return None
    unpack(packed)  # checks that codes and codebook fit
    codebook = unpack(packed.parts["codebook"]).detach().float()
    if codebook.shape[1] > SIZES[-1]:
        return None
    if window is None:
        return ProductLinear(codes, codebook, packed.shape[1])
    return ProductConv(codes, codebook, packed.shape[1], window)
