"""Linear layers of sparse weights for few rows: single weights (shared or not), blocks, two of four."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.core.packed import Packed
from lilliput.graph.ir import Node
from lilliput.kernels.sparse import COLUMNS, NONE, ROWS, Blocks, blocks, check, refuse, sparse_weight, tiles
from lilliput.kernels.sparse_conv import sparse_conv
from lilliput.kernels.window import Window, is_linear

FEW = 8
"""Rows up to which the weights are read once for each; more are a 1 x 1 convolution."""
# A weight in a list takes this many times a slot's time.
SHARED_DEAR, SINGLE_DEAR = 6.0, 4.0


def _shared_shape(
    x: Tensor, word: Tensor, steps: Tensor, book: Tensor, rest: list[Tensor], bias: Tensor | None, outputs: int
) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


@operator(_shared_shape)
def sparse_shared(
    x: Tensor, word: Tensor, steps: Tensor, book: Tensor, rest: list[Tensor], bias: Tensor | None, outputs: int
) -> Tensor:
    """Computes x W^T + bias of single weights that share up to 64 values, as Deep Compression leaves them.

    Han, Mao and Dally 2016, arXiv 1510.00149. A tile's inputs are looked up in registers; see sparse_linear.cpp.

    Args:
        x: (rows, inputs), float32.
        word: (outputs / 16, steps in all, 16), int16: input within the tile, 64 x code; negative where none is.
        steps: (inputs / 64,), uint8: of each tile.
        book: (16 | 32 | 64,), float32.
        rest: start, column and value of `Blocks` of one output: what the tiles don't hold.
        bias: (outputs,), float32, or None.
        outputs: how many.

    Returns:
        (rows, outputs), float32.

    Raises:
        MethodError: shapes or types that don't fit, a list that points outside of the matrix.
    """
    _check("sparse_shared", x, bias, outputs)
    _check_rest("sparse_shared", rest, outputs)
    _check_steps("sparse_shared", x, steps, word, torch.int16, outputs)
    if book.shape not in {(16,), (32,), (64,)} or book.dtype != torch.float32:
        raise MethodError(f"sparse_shared: a codebook of {tuple(book.shape)} {book.dtype}; 16, 32 or 64 floats")
    y, status = x.new_empty((len(x), outputs)), torch.empty(1, dtype=torch.int32)
    numbers = (len(x), x.shape[1], outputs, len(book), len(rest[1]))
    if run("sparse_shared", x.contiguous(), word, steps, book, *rest, bias, y, *numbers, status):
        if status.item():
            refuse("sparse_shared", x.shape[1])
        return y
    lists = Blocks(rest[0], rest[1], rest[2])
    lists.check_places(x.shape[1], "sparse_shared")
    return functional.linear(x, _words(word, steps, book, lists, (outputs, x.shape[1])), bias)


def _single_shape(
    x: Tensor, place: Tensor, value: Tensor, steps: Tensor, rest: list[Tensor], bias: Tensor | None, outputs: int
) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


@operator(_single_shape)
def sparse_single(
    x: Tensor, place: Tensor, value: Tensor, steps: Tensor, rest: list[Tensor], bias: Tensor | None, outputs: int
) -> Tensor:
    """Computes x W^T + bias of single weights, by the same look-up, with a float for each.

    Args:
        x: (rows, inputs), float32, finite.
        place: (outputs / 16, steps in all, 16), uint8: input within the tile.
        value: the same shape, float32; 0 where none is.
        steps: (inputs / 64,), uint8: of each tile.
        rest: start, column and value of `Blocks` of one output: what the tiles don't hold.
        bias: (outputs,), float32, or None.
        outputs: how many.

    Returns:
        (rows, outputs), float32.

    Raises:
        MethodError: shapes or types that don't fit, a list that points outside of the matrix.
    """
    _check("sparse_single", x, bias, outputs)
    _check_rest("sparse_single", rest, outputs)
    _check_steps("sparse_single", x, steps, place, torch.uint8, outputs)
    if value.shape != place.shape or value.dtype != torch.float32:
        raise MethodError(f"sparse_single: {value.dtype} {tuple(value.shape)} values for {tuple(place.shape)} places")
    y, status = x.new_empty((len(x), outputs)), torch.empty(1, dtype=torch.int32)
    numbers = (len(x), x.shape[1], outputs, len(rest[1]))
    if run("sparse_single", x.contiguous(), place, value, steps, *rest, bias, y, *numbers, status):
        if status.item():
            refuse("sparse_single", x.shape[1])
        return y
    lists = Blocks(rest[0], rest[1], rest[2])
    lists.check_places(x.shape[1], "sparse_single")
    return functional.linear(x, _dense(value, place.int() % COLUMNS, steps, lists, (outputs, x.shape[1])), bias)


def _blocks_shape(x: Tensor, start: Tensor, column: Tensor, value: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


@operator(_blocks_shape)
def sparse_blocks(x: Tensor, start: Tensor, column: Tensor, value: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """Computes x W^T + bias of blocks of 4 or 16 outputs by one input.

    Args:
        x: (rows, inputs), float32.
        start: by `sparse.blocks`.
        column: the same.
        value: (blocks, 4 | 16), float32.
        bias: (outputs,), float32, or None.
        outputs: how many.

    Returns:
        (rows, outputs), float32.

    Raises:
        MethodError: shapes or types that don't fit, a list that points outside of the matrix.
    """
    _check("sparse_blocks", x, bias, outputs)
    check(start, column, value, outputs, "sparse_blocks")
    block = value.shape[1]
    if block == 1:
        raise MethodError("sparse_blocks: takes blocks of 4 or 16 outputs; single weights are in tiles")
    y, status = x.new_empty((len(x), outputs)), torch.empty(1, dtype=torch.int32)
    numbers = (len(x), x.shape[1], outputs, block, len(column))
    if run("sparse_blocks", x.contiguous(), start, column, value, bias, y, *numbers, status):
        if status.item():
            refuse("sparse_blocks", x.shape[1])
        return y
    weight = Blocks(start, column, value)
    weight.check_places(x.shape[1], "sparse_blocks")
    return functional.linear(x, weight.dense(outputs, x.shape[1]), bias)


def _two_four_shape(x: Tensor, value: Tensor, place: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


@operator(_two_four_shape)
def sparse_two_four(x: Tensor, value: Tensor, place: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """Computes x W^T + bias of weights of which two in four consecutive inputs are kept (Zhou et al. 2021).

    arXiv 2102.04010. Half of the floats are read: at most 1.9 times as fast as dense where memory is the limit.

    Args:
        x: (rows, inputs), float32, finite.
        value: (outputs / 4, inputs / 32, 4, 16), float32, by `two_four`.
        place: (outputs / 4, inputs / 32, 4), int32: two bits for each value, which of its four inputs it belongs to.
        bias: (outputs,), float32, or None.
        outputs: how many.

    Returns:
        (rows, outputs), float32.

    Raises:
        MethodError: shapes or types that don't fit.
    """
    _check("sparse_two_four", x, bias, outputs)
    shape = (-(-outputs // 4), -(-x.shape[1] // 32), 4, 16)
    if value.shape != shape or place.shape != shape[:3] or (value.dtype, place.dtype) != (torch.float32, torch.int32):
        found = f"{value.dtype} {tuple(value.shape)}, {place.dtype} {tuple(place.shape)}"
        raise MethodError(f"sparse_two_four: {found} isn't a weight of {outputs} x {x.shape[1]}")
    y = x.new_empty((len(x), outputs))
    if run("sparse_two_four", x.contiguous(), value, place, bias, y, len(x), x.shape[1], outputs):
        return y
    return functional.linear(x, _pairs(value, place)[:outputs, : x.shape[1]], bias)


def _check(name: str, x: Tensor, bias: Tensor | None, outputs: int) -> None:
    if x.dim() != 2 or x.dtype != torch.float32 or not x.shape[1] or outputs < 1:
        raise MethodError(f"{name}: takes rows of float32 inputs, not {tuple(x.shape)} of {x.dtype}")
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != torch.float32):
        raise MethodError(f"{name}: a bias of {tuple(bias.shape)} {bias.dtype} for {outputs} outputs")


def _check_rest(name: str, rest: list[Tensor], outputs: int) -> None:
    if len(rest) != 3 or rest[2].dim() != 2 or rest[2].shape[1] != 1:
        raise MethodError(f"{name}: the rest needs start, column and value of single weights")
    check(rest[0], rest[1], rest[2], outputs, name)


def _check_steps(name: str, x: Tensor, steps: Tensor, slots: Tensor, dtype: torch.dtype, outputs: int) -> None:
    if steps.shape != (-(-x.shape[1] // COLUMNS),) or steps.dtype != torch.uint8:
        raise MethodError(f"{name}: steps of {tuple(steps.shape)} {steps.dtype} for {x.shape[1]} inputs")
    if slots.shape != (-(-outputs // ROWS), int(steps.sum()), ROWS) or slots.dtype != dtype:
        raise MethodError(f"{name}: {slots.dtype} {tuple(slots.shape)} isn't a weight of {outputs} x {x.shape[1]}")


def _dense(values: Tensor, place: Tensor, steps: Tensor, rest: Blocks, shape: tuple[int, int]) -> Tensor:
    """The matrix of values (outputs / 16, steps in all, 16) at places within their tiles."""
    tile = torch.repeat_interleave(torch.arange(len(steps)), steps.long())
    column = (tile[:, None] * COLUMNS + place).long()
    matrix = values.new_zeros(len(values), ROWS, len(steps) * COLUMNS)
    matrix.scatter_add_(2, column.transpose(1, 2), values.transpose(1, 2))
    return matrix.reshape(-1, len(steps) * COLUMNS)[: shape[0], : shape[1]] + rest.dense(*shape)


def _words(word: Tensor, steps: Tensor, book: Tensor, rest: Blocks, shape: tuple[int, int]) -> Tensor:
    """The matrix of words of shared values."""
    bits = word.int() & 0xFFFF
    values = torch.where(bits < NONE, book[((bits >> 6) % len(book)).long()], 0)
    return _dense(values, bits % COLUMNS, steps, rest, shape)


def _pairs(value: Tensor, place: Tensor) -> Tensor:
    """The matrix of two in four, with what fills its last rows and columns."""
    column = (place[..., None] >> torch.arange(0, 32, 2)) & 3
    column = (torch.arange(16) // 2 * 4 + column).long()
    matrix = value.new_zeros(*value.shape[:3], 32).scatter_add_(3, column, value)
    return matrix.transpose(1, 2).reshape(4 * len(value), -1)


def two_four(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Lays out a matrix of which at most two in four consecutive inputs aren't zero; None if it has more.

    Args:
        matrix: (outputs, inputs), float32.

    Returns:
        `value` and `place` of `sparse_two_four`.

    >>> value, place = two_four(torch.tensor([[0.0, 5.0, 0.0, 7.0]]))
    >>> value[0, 0, 0, :2].tolist(), int(place[0, 0, 0]) & 15
    ([5.0, 7.0], 13)
    """
    outputs, inputs = matrix.shape
    padded = functional.pad(matrix, (0, -inputs % 32, 0, -outputs % 4))
    fours = padded.reshape(-1, 4, padded.shape[1] // 32, 8, 4).transpose(1, 2)
    live = fours != 0
    if int(live.sum(-1).max()) > 2:
        return None
    order = (~live).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2].sort(-1).values
    value = fours.gather(-1, order).flatten(-2)
    bits = (order.flatten(-2) << torch.arange(0, 32, 2)).sum(-1)
    return value.contiguous(), torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32)


def _rest(matrix: Tensor, taken: Tensor) -> list[Tensor]:
    lists = blocks(matrix.masked_fill(taken, 0), 1)
    return [lists.start, lists.column, lists.value]


def shared(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]] | None:
    """Lays out a matrix with at most 64 different values beside zero; None if it has more.

    Args:
        matrix: (outputs, inputs), float32.

    Returns:
        `word`, `steps`, `book` and `rest` of `sparse_shared`.
    """
    live = matrix != 0
    values = matrix[live]
    book = torch.unique(values[: 1 << 16])
    if len(book) <= 64:
        book = torch.unique(values)
    if len(book) > 64:
        return None
    found = tiles(live, SHARED_DEAR)
    size = 16 if len(book) <= 16 else 32 if len(book) <= 32 else 64
    code = torch.searchsorted(book, matrix[found.taken])
    words = found.filled((code * COLUMNS + found.place).to(torch.int16), -NONE)
    book = functional.pad(book, (0, size - len(book)))
    return words, found.steps, book, _rest(matrix, found.taken)


def single(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Lays out any matrix, (outputs, inputs), float32: `place`, `value`, `steps` and `rest` of `sparse_single`."""
    found = tiles(matrix != 0, SINGLE_DEAR)
    return (
        found.filled(found.place, 0),
        found.filled(matrix[found.taken], 0),
        found.steps,
        _rest(matrix, found.taken),
    )


class SparseLinear(nn.Module):
    """A linear layer whose weight is kept, and multiplied, sparse.

    Pays from about 70 % zeros for one row, where memory is the limit; two of four pays where nothing else is to be had.

    Args:
        weight: (outputs, inputs), float32.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        part = blocks(weight)
        pairs = two_four(weight) if part.block == 1 and int(torch.count_nonzero(weight)) * 4 > weight.numel() else None
        found = shared(weight) if part.block == 1 and pairs is None else None
        if part.block > 1:
            self.kind, parts = f"sparse, blocks of {part.block}", [part.start, part.column, part.value]
        elif pairs is not None:
            self.kind, parts = "sparse, two of four", [*pairs]
        elif found is not None:
            self.kind, parts = "sparse, shared values", [*found[:3], *found[3]]
        else:
            places = single(weight)
            self.kind, parts = "sparse, single weights", [*places[:3], *places[3]]
        for i, tensor in enumerate(parts):
            self.register_buffer(f"part{i}", tensor)
        # For many rows; made when they first come.
        self._many: Blocks | None = part if part.block > 1 else None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns the layer's output; x is (..., inputs)."""
        rows = x.reshape(-1, self.inputs)
        few = len(rows) <= FEW or (self._many is None and torch.compiler.is_compiling())
        return (self._few(rows, bias) if few else self._by_pixels(rows, bias)).reshape(*x.shape[:-1], self.outputs)

    def dense(self) -> Tensor:
        """Returns the weight, (outputs, inputs)."""
        part, shape = [tensor for _, tensor in self.named_buffers()], (self.outputs, self.inputs)
        if self.kind.startswith("sparse, blocks"):
            return Blocks(part[0], part[1], part[2]).dense(*shape)
        if self.kind == "sparse, two of four":
            return _pairs(part[0], part[1])[: shape[0], : shape[1]]
        rest = Blocks(part[3], part[4], part[5])
        if self.kind == "sparse, shared values":
            return _words(part[0], part[1], part[2], rest, shape)
        return _dense(part[1], part[0].int(), part[2], rest, shape)

    def _few(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        part = [tensor for _, tensor in self.named_buffers()]
        if self.kind.startswith("sparse, blocks"):
            return sparse_blocks(rows, part[0], part[1], part[2], bias, self.outputs)
        if self.kind == "sparse, two of four":
            return sparse_two_four(rows, part[0], part[1], bias, self.outputs)
        of = sparse_shared if self.kind == "sparse, shared values" else sparse_single
        return of(rows, part[0], part[1], part[2], part[3:], bias, self.outputs)

    def _by_pixels(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        if self._many is None:
            self._many = blocks(self.dense().contiguous(), 1)
        part = self._many
        pixels = rows.T.contiguous()[None, :, None]
        numbers = Window((1, 1)).numbers
        return sparse_conv(pixels, part.start, part.column, part.value, bias, self.outputs, numbers)[0, :, 0].T


def serves(packed: Packed, node: Node) -> SparseLinear | None:
    """Serves linear layers of whose weight about half is zeros, or more.

    `prune/sparse` in any pattern; `share/kmeans` and others that keep zeros after it, which with up to 64 values take
    two bytes a weight.
    """
    weight = sparse_weight(packed) if is_linear(node, packed.shape) else None
    return SparseLinear(weight) if weight is not None else None
