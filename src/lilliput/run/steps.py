"""A network as one compiled call: kernels one after another over one block of memory (`src/cpp/program.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core import kernel, native
from lilliput.core.errors import LilliputError

MEMORY, INPUT, OUTPUT = 0, 1, 2
"""Where a piece of memory is: the program's own, an input or an output of the call."""
LINE = 64
"""Bytes of a cache line, at which pieces begin."""


class Unfit(LilliputError):
    """Something that no step can do, in a word; what it stands in runs elsewhere."""


@dataclass(eq=False)
class Piece:
    """Memory that steps read and write.

    Attributes:
        bytes: how many.
        base: `MEMORY`, `INPUT` or `OUTPUT`.
        which: of the inputs or outputs.
        offset: in the program's memory; found when the program is finished.
    """

    bytes: int
    base: int = MEMORY
    which: int = 0
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Map:
    """A tensor of floats in a program.

    Attributes:
        piece: where it is, from its beginning.
        shape: its sizes.
        last: its channels, the second axis, are the last in memory.
    """

    piece: Piece
    shape: tuple[int, ...]
    last: bool = False

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return int(torch.Size(self.shape).numel())

    @property
    def places(self) -> int:
        """Numbers of a channel."""
        return int(torch.Size(self.shape[2:]).numel())


class Steps:
    """Collects steps; `finish` makes a program of them.

    Args:
        inputs: shapes of the tensors of float32 that a call takes.
    """

    def __init__(self, inputs: Sequence[Sequence[int]]) -> None:
        self.inputs = [
            Map(Piece(4 * int(torch.Size(shape).numel()), INPUT, which), tuple(shape))
            for which, shape in enumerate(inputs)
        ]
        self.steps: list[tuple[Any, list[Any]]] = []

    def memory(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Piece:
        """Returns new memory for a tensor."""
        return Piece(int(torch.Size(shape).numel()) * dtype.itemsize)

    def map(self, shape: Sequence[int], last: bool = False) -> Map:
        """Returns a new map."""
        return Map(self.memory(shape), tuple(shape), last)

    def add(self, name: str, *arguments: Any) -> None:
        """Adds a step.

        Args:
            name: of the kernel.
            arguments: in the kernel's order: numbers, None, contiguous tensors that stay as they are, pieces of memory,
                maps, or (piece, first byte, bytes).

        Raises:
            Unfit: there is no such kernel for this CPU, or a tensor isn't of its type.
        """
        found = kernel.found(name)
        if found is None:
            raise Unfit(f"there is no compiled kernel {name}")
        compiled, types = found
        if len(types) != len(arguments):
            raise Unfit(f"{name} takes {len(types)} arguments, not {len(arguments)}")
        for dtypes, value in zip(types, arguments):
            if isinstance(value, Tensor) and not (dtypes and value.dtype in dtypes and value.is_contiguous()):
                raise Unfit(f"{name} takes no {value.dtype} there, or not in that order")
        self.steps.append((compiled, [value.piece if isinstance(value, Map) else value for value in arguments]))

    def record(self, module: nn.Module, x: Map, *more: Any) -> Map:
        """Adds the kernels that a module calls for an input of this size.

        It is run once on random numbers. What it writes becomes memory, what it reads besides is constant.

        Args:
            module: of `kernels/`, which does nothing but call kernels.
            x: what goes in, with channels first.
            more: its further arguments, which stay as they are.

        Raises:
            Unfit: it does something else with the numbers.
        """
        probe = torch.randn(x.shape)
        with torch.no_grad(), kernel.recording(probe) as calls:
            y = module(probe, *more)
        known = {probe.untyped_storage().data_ptr(): x.piece}
        for name, arguments in calls:
            self.add(name, *self._moved(name, arguments, known))
        piece = known.get(y.untyped_storage().data_ptr())
        if not calls or piece is None or piece is x.piece or y.storage_offset() or y.dtype != torch.float32:
            raise Unfit("its result isn't what a kernel wrote")
        if y.is_contiguous():
            return Map(piece, tuple(y.shape))
        if y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last):
            return Map(piece, tuple(y.shape), True)
        raise Unfit(f"its result has strides {y.stride()}")

    def _moved(self, name: str, arguments: Sequence[Any], known: dict[int, Piece]) -> list[Any]:
        """Arguments of a recorded call, with pieces for what isn't constant."""
        found = kernel.found(name)
        assert found is not None
        moved: list[Any] = []
        for number, value in enumerate(arguments):
            if not isinstance(value, Tensor):
                moved.append(value)
                continue
            storage = value.untyped_storage()
            if found[0].signature[2 * number] == "&":
                known.setdefault(storage.data_ptr(), Piece(storage.nbytes()))
            piece = known.get(storage.data_ptr())
            begin = value.data_ptr() - storage.data_ptr()
            moved.append(value if piece is None else (piece, begin, value.numel() * value.element_size()))
        return moved

    def finish(self, outputs: Sequence[Map]) -> Program:
        """Makes the program.

        Args:
            outputs: what a call returns, channels first.

        Raises:
            Unfit: an output is an input.
        """
        places: dict[Piece, int] = {}
        for out in outputs:
            if out.piece.base == INPUT:
                raise Unfit("a result is an input as it was")
            places.setdefault(out.piece, len(places))
            out.piece.base, out.piece.which = OUTPUT, places[out.piece]
        made = native.extension().Program(  # type: ignore[union-attr]
            self._plan(), [i.piece.bytes for i in self.inputs], [piece.bytes for piece in places]
        )
        kept = []
        for compiled, arguments in self.steps:
            kept += [value for value in arguments if isinstance(value, Tensor)]
            made.add(compiled, [_passed(value) for value in arguments])
        results = [(out.piece.which, out.shape) for out in outputs]
        return Program(made, [piece.bytes // 4 for piece in places], results, kept)

    def _plan(self) -> int:
        """Gives each piece a place where no other is at the same time; returns the bytes of all."""
        spans: dict[Piece, tuple[int, int]] = {}
        for number, (_, arguments) in enumerate(self.steps):
            for value in arguments:
                piece = value[0] if isinstance(value, tuple) else value
                if isinstance(piece, Piece) and piece.base == MEMORY:
                    spans[piece] = (spans.get(piece, (number, 0))[0], number)
        placed: list[Piece] = []
        # Large ones first: small ones find their gaps.
        for piece in sorted(spans, key=lambda one: -one.bytes):
            first, last = spans[piece]
            others = [p for p in placed if spans[p][0] <= last and spans[p][1] >= first]
            piece.offset = 0
            for other in sorted(others, key=lambda one: one.offset):
                if piece.offset + piece.bytes > other.offset:
                    piece.offset = max(piece.offset, _whole(other.offset + other.bytes))
                else:
                    break
            placed.append(piece)
        return max((piece.offset + piece.bytes for piece in placed), default=0)


@dataclass(eq=False)
class Program:
    """A finished program.

    Attributes:
        made: the compiled one.
        sizes: floats of each output.
        results: of each result, the output in which it is and its shape.
        kept: the tensors whose addresses the steps hold.
    """

    made: Any
    sizes: list[int]
    results: list[tuple[int, tuple[int, ...]]]
    kept: list[Tensor] = field(repr=False)

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Runs it on tensors of the shapes that it was made for; the caller has checked that."""
        kept = [x if x.is_contiguous() else x.contiguous() for x in given]
        held = [x.data_ptr() for x in kept]
        if len(self.results) == 1:
            # The usual case, without a view: a small network takes little longer than its call.
            alone = torch.empty(self.results[0][1])
            self.made.run(torch.get_num_threads(), held, [alone.data_ptr()])
            return [alone]
        outputs = [torch.empty(size) for size in self.sizes]
        self.made.run(torch.get_num_threads(), held, [y.data_ptr() for y in outputs])
        return [outputs[which].view(shape) for which, shape in self.results]


def _whole(offset: int) -> int:
    return offset + -offset % LINE


def _passed(value: Any) -> Any:
    """An argument as the compiled program takes it."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    piece, begin, size = value if isinstance(value, tuple) else (value, 0, None)
    if not isinstance(piece, Piece):
        return value
    offset = piece.offset if piece.base == MEMORY else 0
    return piece.base, piece.which, offset + begin, piece.bytes if size is None else size
