"""The ways in which a layer can be steps of a program, and which of them takes the least time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core import kernel as kernels
from lilliput.core.errors import LilliputError
from lilliput.core.packed import Packed
from lilliput.graph.ir import Node
from lilliput.kernels import sparse_conv, sparse_linear
from lilliput.kernels.bit_conv import FIRST, LAST, XOR, plan
from lilliput.kernels.bit_layers import Steps as Sides
from lilliput.kernels.bit_layers import xnor_layer
from lilliput.kernels.found import serving, serving_dense
from lilliput.kernels.sparse import Blocks, blocks, sparse_weight
from lilliput.kernels.window import Window, window_of
from lilliput.run.clock import race
from lilliput.run.steps import Map, Steps, Unfit

BY_FLOATS = "floats"
"""The kind of a way that needs nothing of how a weight is packed."""
DENSE = 8
"""Outputs in a block of a dense weight."""
FEW = 0.25
"""With a smaller part of the weights left, they as a dense matrix aren't tried."""
TILES = {1: (2, 4, 13), 4: (2, 3, 4)}
"""Vectors of pixels in a tile, by outputs of a block: wide ones read weights less often, narrow ones stay in caches."""
CLOSE = 1e-4
"""How far a layer's result may be from the dense layer's, relative."""


@dataclass(frozen=True)
class Act:
    """The range that results are confined to: ReLU is 0 to infinity.

    Attributes:
        low: the least.
        high: the largest.
    """

    low: float = -math.inf
    high: float = math.inf

    def __call__(self, x: Tensor) -> Tensor:
        """Returns x confined to it."""
        return x if self == Act() else x.clamp(self.low, self.high)


@dataclass(frozen=True)
class Way:
    """One way to run a layer.

    Attributes:
        kind: in words.
        add: adds its steps for an input with channels first; returns its result, confined to a range.
    """

    kind: str
    add: Callable[[Steps, Map, Act], Map]


def ordered(ways: Sequence[Way], x: Tensor, wanted: Tensor, act: Act, timed: bool) -> list[Way]:
    """Returns the ways that give what a layer gives, the fastest first.

    Args:
        ways: to compare.
        x: what goes into the layer.
        wanted: what comes out, before its range.
        act: the range.
        timed: measure; else as they are given.
    """
    calls: dict[int, Callable[[], Any]] = {}
    wanted = act(wanted).double()
    for number, way in enumerate(ways):
        steps = Steps([x.shape])
        try:
            program = steps.finish([_first(steps, way.add(steps, steps.inputs[0], act))])
        except LilliputError:
            continue
        apart = float(torch.linalg.vector_norm(program([x])[0].double().view(wanted.shape) - wanted))
        if apart <= CLOSE * float(torch.linalg.vector_norm(wanted)) + 1e-30:
            calls[number] = _bound(program, x)
    if not timed or len(calls) < 2:
        return [ways[number] for number in calls]
    seconds = race({str(number): call for number, call in calls.items()}, rounds=3)
    return [ways[number] for number in sorted(calls, key=lambda number: seconds[str(number)])]


def _bound(program: Any, x: Tensor) -> Callable[[], Any]:
    return lambda: program([x])


def _first(steps: Steps, y: Map) -> Map:
    if not y.last:
        return y
    turned = steps.map(y.shape)
    steps.add("turn_maps", y, turned, y.shape[0], y.places, y.shape[1])
    return turned


def conv_ways(
    packed: Packed | Tensor | None, weight: Tensor, bias: Tensor | None, node: Node, shape: tuple[int, ...]
) -> list[Way]:
    """Returns the ways of a convolution of maps.

    Args:
        packed: its weight as the file holds it.
        weight: unpacked.
        bias: or None.
        node: of the graph.
        shape: of what goes in.

    Raises:
        Unfit: there is none.
    """
    window = window_of(node, tuple(weight.shape))
    if window is None or window.dims != 2:
        raise Unfit("no convolution with the same zeros at both ends")
    if window.groups == shape[1] == len(weight):
        return [Way("depthwise", lambda steps, x, act: _depthwise(steps, x, act, weight, bias, window))]
    matrix, ways = weight.reshape(len(weight), -1).contiguous(), list[Way]()
    outputs = len(weight)
    few = False
    if isinstance(packed, Packed) and sparse_weight(packed) is not None:
        if window == Window((1, 1)) and shape[2:] == (1, 1):
            return _rows(sparse_linear.SparseLinear(matrix), bias)
        part = blocks(matrix, 0, window.groups)
        few = part.value.numel() < FEW * matrix.numel()
        made = [Listed(part, outputs, bias, window, vectors) for vectors in TILES.get(part.block, (0,))]
        ways += [Way(one.kind, one.add) for one in made]
    ways += served(packed, node, bias, sparse_conv.SparseConv)
    if not few and (window.groups == 1 or outputs // window.groups % DENSE == 0):
        ways.append(Way(BY_FLOATS, lambda *to: Listed(_full(matrix), outputs, bias, window).add(*to)))
    return ways


def _rows(module: nn.Module, bias: Tensor | None) -> list[Way]:
    """A convolution of single pixels as a linear layer."""
    run = _recorded(module, bias)

    def add(steps: Steps, x: Map, act: Act) -> Map:
        y = run(steps, Map(x.piece, x.shape[:2]), act)
        return Map(y.piece, (*y.shape, 1, 1))

    return [Way(str(getattr(module, "kind", "sparse")), add)]


def linear_ways(packed: Packed | Tensor | None, weight: Tensor, bias: Tensor | None, node: Node) -> list[Way]:
    """Returns the ways of a linear layer of rows; arguments as of `conv_ways`."""

    def floats(steps: Steps, x: Map, act: Act) -> Map:
        rows, inputs = x.shape
        y = steps.map((rows, len(weight)))
        numbers = (rows, inputs, len(weight), act.low, act.high)
        steps.add("dense_linear", x, weight.contiguous(), bias, y, *numbers)
        return y

    return [*served(packed, node, bias), Way(BY_FLOATS, floats)]


def served(packed: Packed | Tensor | None, node: Node, bias: Tensor | None, *but: type) -> list[Way]:
    """Returns the ways of the kernels that serve a layer of floats.

    Args:
        packed: the weight as the file holds it.
        node: of the graph.
        bias: or None.
        but: modules that are none.
    """
    found = (
        [] if packed is None else serving(packed, node) if isinstance(packed, Packed) else serving_dense(packed, node)
    )
    return [
        Way(str(getattr(module, "kind", name)), _recorded(module.eval(), bias))
        for name, module in found
        if not isinstance(module, but)
    ]


def _recorded(module: nn.Module, bias: Tensor | None) -> Callable[[Steps, Map, Act], Map]:
    def add(steps: Steps, x: Map, act: Act) -> Map:
        rectified = act == Act(0.0) and getattr(module, "rectifies", False)
        y = steps.record(module, x, bias, *((True,) if rectified else ()))
        if act == Act() or rectified:
            return y
        confined = Map(steps.memory(y.shape), y.shape, y.last)
        steps.add("combine_maps", y, None, None, None, None, confined, 1, 1, y.numel, act.low, act.high)
        return confined

    return add


def _full(matrix: Tensor) -> Blocks:
    """A dense matrix (outputs, columns) as blocks, none left out."""
    outputs, columns = matrix.shape
    rows = -(-outputs // DENSE)
    padded = functional.pad(matrix, (0, 0, 0, rows * DENSE - outputs)).reshape(rows, DENSE, columns)
    start = torch.arange(rows + 1, dtype=torch.int32) * columns
    column = torch.arange(columns, dtype=torch.int32).repeat(rows)
    return Blocks(start, column, padded.transpose(1, 2).reshape(-1, DENSE).contiguous())


@dataclass(frozen=True)
class Listed:
    """A convolution whose weight is in lists.

    Attributes:
        part: the weight.
        outputs: how many.
        bias: or None.
        window: of the convolution.
        vectors: of pixels in a tile; 0 for the usual ones.
    """

    part: Blocks
    outputs: int
    bias: Tensor | None
    window: Window
    vectors: int = 0

    @property
    def kind(self) -> str:
        """In words."""
        kind = f"sparse, blocks of {self.part.block}" if self.part.block > 1 else "sparse, single weights"
        return kind + (f", tiles of {self.vectors}" if self.vectors else "")

    def add(self, steps: Steps, x: Map, act: Act) -> Map:
        """Adds `sparse_conv`, whose places are found, and checked, now."""
        part, outputs = self.part, self.outputs
        sizes, _, numbers = sparse_conv.plan(x.shape, outputs, tuple(self.window.numbers))
        y = steps.map((x.shape[0], outputs, *sizes.out(x.shape[2], x.shape[3])))
        offsets, status = torch.empty(len(part.column), dtype=torch.int32), torch.empty(1, dtype=torch.int32)
        count = (len(part.column), part.block, self.vectors)
        lists = (numbers, part.start, part.column)
        if not kernels.run("sparse_conv_offsets", *lists, offsets, *count, status) or status.item():
            raise Unfit("a list of the weight points outside of it")
        more = (steps.memory((1,), torch.int32), offsets, act.low, act.high)
        steps.add("sparse_conv", *lists, part.value, self.bias, x, y, *count, *more)
        return y


def _depthwise(steps: Steps, x: Map, act: Act, weight: Tensor, bias: Tensor | None, window: Window) -> Map:
    sizes, _, numbers = sparse_conv.plan(x.shape, len(weight), tuple(window.numbers))
    y = steps.map((x.shape[0], len(weight), *sizes.out(x.shape[2], x.shape[3])))
    steps.add("depthwise_conv", numbers, weight.contiguous(), bias, x, y, act.low, act.high)
    return y


Pairs = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]


def geometry_of(node: Node, weight: Tensor) -> Pairs:
    """Returns kernel, stride, padding and dilation of a convolution without groups.

    Raises:
        Unfit: it isn't one.
    """
    window = window_of(node, tuple(weight.shape))
    if window is None or window.dims != 2 or window.groups != 1:
        raise Unfit("a binary convolution of groups, or with other than the same zeros at both ends")
    return window.kernel, window.stride, window.padding, window.dilation


def add_binary(steps: Steps, x: Map, weight: Tensor, bias: Tensor | None, geometry: Pairs, scaled: bool) -> Map:
    """Adds a convolution of signs: packing, K if wanted, XNOR and bit count; its result has its channels last.

    Args:
        steps: to add to.
        x: whose signs are convolved.
        weight: one magnitude a filter, of either sign.
        bias: or None.
        geometry: by `geometry_of`.
        scaled: multiply by XNOR-Net's K.

    Raises:
        Unfit: the weight is something else.
    """
    rows = weight.flatten(1)
    scale = rows.abs().amax(1)
    if not torch.equal(rows.abs(), scale[:, None].expand_as(rows)):
        raise Unfit("a filter has more than one magnitude")
    kernel, stride, padding, dilation = geometry
    _, channels, height, width = x.shape
    if min(Window(kernel, stride, padding, dilation).out(height, width)) < 1 or channels != weight.shape[1]:
        raise Unfit("its window doesn't fit")
    if scaled and dilation != (1, 1):
        raise Unfit("K with dilation")
    made = xnor_layer(weight, Sides(stride, padding, dilation))
    own = plan(x.shape, 1, (XOR, 0), tuple(made.geometry), len(weight), LAST if x.last else FIRST, scaled)
    y = steps.map(own.out, True)
    extra = (scale.contiguous(), bias, None, None, None, None, y, None)
    steps.add("bit_conv", own.sizes, None, x, *made.layer, *extra)
    return y
