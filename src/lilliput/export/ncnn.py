"""A graph as ncnn's pair of files, and its table of scales: the layers, and how they are written.

`ncnn_rules` says which layers an operator becomes. ncnn knows no batch: a network is translated for one example, and
an axis of size 1 (the first that there is) doesn't appear in its tensors.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.errors import ModelError
from lilliput.export.ncnn_table import Scales, write_table
from lilliput.export.quantized import Levels, levels_before, levels_in
from lilliput.export.sizes import Info, infos_at
from lilliput.graph.ir import Graph, InputRef, NodeRef, TensorRef, refs_of
from lilliput.graph.layers import arguments_of, is_margin, layer_of

MAGIC = 7767517
HALF, INT8 = 0x01306B47, 0x000D4B38
"""Marks before a weight of 16-bit floats, and of 8-bit integers; 0 before float32."""
PRODUCTS = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
FUSED = {"ReLU": 1, "Clip": 3, "Sigmoid": 4, "Mish": 5, "HardSwish": 6}
"""Functions that a product does on the way, with the numbers that ncnn gives them; 2 is a ReLU with a slope."""
EIGHT = 254
"""Steps of levels from which on they count as 8 bits."""

Shape = tuple[int, ...]


@dataclass(eq=False)
class Layer:
    """One line of the .param file.

    Attributes:
        kind: ncnn's name of it.
        name: its own.
        takes: numbers of tensors.
        gives: numbers of tensors.
        settings: by ncnn's numbers; -23300 - n for a list of numbers.
        data: what it has in the .bin file.
        scales: of a product in 8 bits.
    """

    kind: str
    name: str
    takes: list[int]
    gives: list[int]
    settings: dict[int, Any] = field(default_factory=dict)
    data: list[bytes] = field(default_factory=list)
    scales: Scales | None = None


@dataclass(frozen=True)
class Files:
    """What `to_ncnn` makes.

    Attributes:
        param: the layers, as text.
        weights: for the .bin file.
        table: scales of the layers in 8 bits, as ncnn's own tools have them; empty without such layers.
        inputs: names of tensors and their shapes in ncnn.
        outputs: names of tensors and their shapes in torch, for a batch of one.
    """

    param: str
    weights: bytes
    table: str
    inputs: tuple[tuple[str, Shape], ...]
    outputs: tuple[tuple[str, Shape], ...]


def to_ncnn(graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Any], half: bool = False) -> Files:
    """Translates a graph.

    Where a layer's input is on levels of 8 bits and `quantize/uniform` packed its weight symmetrically, ncnn gets the
    codes and multiplies integers. Its integers are symmetric, -127 .. 127: levels with a zero point, or without a
    sign, become symmetric ones over the same range, up to twice as coarse. 8-bit levels before other layers are left
    out, coarser ones are written as what they are.

    Args:
        graph: of float32 inputs, fixed sizes but for the batch.
        tensors: what it uses, by name.
        packed: weights as an artifact holds them.
        half: float weights are stored with 16 bits.

    Raises:
        ModelError: something has no counterpart; says what.
    """
    net = Net(graph, tensors, packed, half)
    net.run()
    return _files(net)


class Net:
    """The layers so far.

    Args:
        graph: what is translated.
        tensors: what it uses, by name.
        packed: weights as an artifact holds them.
        half: float weights are stored with 16 bits.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Any], half: bool) -> None:
        self.graph, self.tensors, self.packed, self.half = graph, tensors, packed, half
        self.infos = infos_at(graph, tensors, _single(graph))
        # Of two examples: what grows follows the batch.
        self.pairs = infos_at(graph, tensors, dict.fromkeys(graph.symbols, 2)) if graph.symbols else self.infos
        self.levels = {i: one for i, one in levels_in(graph).items() if one.high - one.low >= EIGHT}
        self.layers: list[Layer] = []
        self.shapes: list[Shape] = []
        self.values: dict[Any, Any] = {}

    def run(self) -> None:
        """Translates all nodes that the outputs need."""
        from lilliput.export.ncnn_rules import translated

        for place in range(len(self.graph.inputs)):
            shape = form(self.shape(InputRef(place)))
            self.values[InputRef(place)] = self.add("Input", [], shape, _sides(shape), name=f"in{place}")
        for place, ref in enumerate(refs_of(self.graph.output)):
            if self.graph.symbols and not (self.shape(ref) and self.follows(ref, 0)):
                raise ModelError(f"ncnn takes one example at a time, and output {place} isn't of each example")
        for index in self.needed():
            if isinstance(self.infos[index], Info | list):
                self.values[NodeRef(index)] = translated(self, index)

    def needed(self) -> list[int]:
        """The nodes that are translated: without those that only put values on 8-bit levels, or pad for a product."""
        found: set[int] = set()
        waiting = [ref.index for ref in refs_of(self.graph.output) if isinstance(ref, NodeRef)]
        while waiting:
            index = waiting.pop()
            if index in found:
                continue
            found.add(index)
            node, layer = self.graph.nodes[index], layer_of(self.graph.nodes[index])
            if index in self.levels:
                refs: list[Any] = [self.levels[index].source]
            elif layer is not None and layer.kind == "convolution":
                refs = [self.margin(layer.source)[0]]
            else:
                refs = list(node.refs())
            waiting += [ref.index for ref in refs if isinstance(ref, NodeRef)]
        return sorted(found)

    def margin(self, ref: Any) -> tuple[Any, tuple[int, int, int, int]]:
        """What is padded with zeros before a convolution, and by how much: left, right, top, bottom."""
        pads = [0, 0, 0, 0]
        while isinstance(ref, NodeRef) and is_margin(self.graph.nodes[ref.index]):
            bound = arguments_of(self.graph.nodes[ref.index])
            sizes = [*bound["pad"], 0, 0, 0, 0][:4]
            if any(bound["pad"][4:]):
                break
            pads = [one + two for one, two in zip(pads, sizes)]
            ref = bound["self"]
        return ref, (pads[0], pads[1], pads[2], pads[3])

    def levels_of(self, ref: Any) -> Levels | None:
        """The 8-bit levels on which a product's input is."""
        place = levels_before(self.graph, ref, self.levels)
        return None if place is None else self.levels[place]

    def shape(self, ref: Any) -> Shape:
        """The shape in torch, for a batch of one."""
        if isinstance(ref, InputRef):
            return tuple(1 if isinstance(size, str) else size for size in self.graph.inputs[ref.index].shape)
        if isinstance(ref, TensorRef):
            return tuple(self.tensors[ref.name].shape)
        found = self.infos[ref.index]
        if not isinstance(found, Info):
            raise ModelError("ncnn: a number, or a list of tensors, where one tensor is needed")
        return tuple(int(size) for size in found.shape if size is not None)

    def follows(self, ref: Any, axis: int) -> bool:
        """Whether an axis grows with the batch."""
        if isinstance(ref, TensorRef):
            return False
        if isinstance(ref, InputRef):
            return isinstance(self.graph.inputs[ref.index].shape[axis], str)
        return bool(self.infos[ref.index].shape[axis] != self.pairs[ref.index].shape[axis])

    def number(self, value: Any) -> Any:
        """A number, or numbers, that may follow the batch."""
        if isinstance(value, tuple | list):
            return [self.number(item) for item in value]
        return self.infos[value.index] if isinstance(value, NodeRef) else value

    def value(self, ref: Any) -> int:
        """The number of the tensor that a reference stands for."""
        if isinstance(ref, TensorRef) and ref not in self.values:
            self.values[ref] = self.constant(self.tensors[ref.name], form(self.shape(ref)))
        found = self.values[ref]
        if not isinstance(found, int):
            raise ModelError("ncnn: a list of tensors where one is needed")
        return found

    def add(
        self,
        kind: str,
        takes: Sequence[int],
        shape: Shape,
        settings: Mapping[int, Any] | None = None,
        data: Sequence[bytes] = (),
        name: str = "",
    ) -> int:
        """Adds a layer; returns the number of the tensor that it gives.

        Args:
            kind: ncnn's name of it.
            takes: numbers of tensors.
            shape: of what it gives, in ncnn.
            settings: see `Layer`.
            data: see `Layer`.
            name: its own; by default the kind and a number.
        """
        name = name or f"{kind.lower()}_{len(self.layers)}"
        self.shapes.append(shape)
        gives = len(self.shapes) - 1
        self.layers.append(Layer(kind, name, list(takes), [gives], dict(settings or {}), list(data)))
        return gives

    def constant(self, tensor: Tensor, shape: Shape) -> int:
        """Adds a tensor that is always the same."""
        return self.add("MemoryData", [], shape, _sides(shape), [raw(tensor)])

    def reshape(self, source: int, shape: Shape) -> int:
        """Gives the same numbers another shape, in ncnn."""
        if self.shapes[source] == shape:
            return source
        if math.prod(self.shapes[source]) != math.prod(shape):
            raise ModelError(f"ncnn: {self.shapes[source]} can't become {shape}: examples don't stay apart")
        before = next(layer for layer in self.layers if source in layer.gives)
        return self.add("Reshape", before.takes if before.kind == "Reshape" else [source], shape, _sides(shape))

    def weight(self, tensor: Tensor) -> bytes:
        """A float weight for the .bin file."""
        if not self.half:
            return struct.pack("<I", 0) + raw(tensor)
        values = tensor.detach().half()
        if not bool(torch.isfinite(values).all()):
            return struct.pack("<I", 0) + raw(tensor)
        return struct.pack("<I", HALF) + _whole(values.contiguous().numpy().tobytes())


def form(shape: Sequence[int]) -> Shape:
    """Returns the shape that a tensor has in ncnn: without its first axis of size 1.

    Raises:
        ModelError: five axes would be left.

    >>> form((1, 3, 8, 8)), form((17, 1, 24)), form((5,)), form(())
    ((3, 8, 8), (17, 24), (5,), (1,))
    """
    gone = removed(shape)
    found = tuple(size for axis, size in enumerate(shape) if axis != gone) or (1,)
    if len(found) > 4:
        raise ModelError(f"ncnn: a tensor of {len(found)} axes besides the batch")
    return found


def removed(shape: Sequence[int]) -> int | None:
    """Returns the axis that doesn't appear in ncnn."""
    return list(shape).index(1) if 1 in shape and len(shape) > 1 else None


def raw(tensor: Tensor) -> bytes:
    """Numbers as they stand in the .bin file without a mark: float32."""
    return tensor.detach().float().contiguous().numpy().tobytes()


def _single(graph: Graph) -> dict[str, int]:
    """The batch is one, and there are no other open sizes."""
    odd = [spec.dtype for spec in graph.inputs if spec.dtype != torch.float32]
    if odd:
        raise ModelError(f"ncnn takes float32 inputs, not {odd[0]}")
    batch = {spec.shape[0] for spec in graph.inputs if spec.shape}
    others = sorted({s for spec in graph.inputs for s in spec.shape if isinstance(s, str)} - batch)
    if others or any(isinstance(size, int) and size != 1 for size in batch):
        raise ModelError(
            f"ncnn takes one example at a time, of fixed sizes; open or fixed to others: {others or batch}"
        )
    if any(low > 1 for low, _ in graph.symbols.values()):
        raise ModelError("ncnn takes one example at a time; this network needs more")
    return dict.fromkeys(graph.symbols, 1)


def _sides(shape: Shape) -> dict[int, int]:
    """A shape as the settings of Input, Reshape and MemoryData."""
    keys = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[len(shape)]
    return dict(sorted(zip(keys, shape)))


def _whole(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _files(net: Net) -> Files:
    """Puts things together, and writes."""
    outputs = [net.value(ref) for ref in refs_of(net.graph.output)]
    layers = _fused(net.layers, outputs)
    layers = _alive(layers, outputs)
    _requantized(layers, outputs)
    names = {layer.gives[0]: layer.name for layer in layers if layer.kind == "Input"}
    layers, told = _split(layers, outputs, len(net.shapes))
    names |= {number: f"out{place}" for place, number in enumerate(told)}
    lines = [_line(layer, names) for layer in layers]
    count = sum(len(layer.gives) for layer in layers)
    shapes = [net.shape(ref) for ref in refs_of(net.graph.output)]
    given = [(f"in{place}", form(net.shape(InputRef(place)))) for place in range(len(net.graph.inputs))]
    kept = {layer.name for layer in layers}
    return Files(
        "\n".join([str(MAGIC), f"{len(layers)} {count}", *lines, ""]),
        b"".join(_data(layer) for layer in layers),
        write_table({layer.name: layer.scales for layer in layers if layer.scales is not None}),
        tuple(entry for entry in given if entry[0] in kept),
        tuple((names[number], shape) for number, shape in zip(told, shapes)),
    )


def _uses(layers: Sequence[Layer], outputs: Sequence[int]) -> Counter[int]:
    return Counter(number for layer in layers for number in layer.takes) + Counter(outputs)


def _alive(layers: Sequence[Layer], outputs: Sequence[int]) -> list[Layer]:
    """The layers that the outputs need."""
    wanted, found = set(outputs), []
    for layer in reversed(layers):
        if wanted.intersection(layer.gives):
            found.append(layer)
            wanted.update(layer.takes)
    return found[::-1]


def _fused(layers: Sequence[Layer], outputs: Sequence[int]) -> list[Layer]:
    """Functions behind products become a part of these, where nothing else takes the product."""
    uses = _uses(layers, outputs)
    made = {layer.gives[0]: layer for layer in layers if layer.kind in PRODUCTS}
    found = []
    for layer in layers:
        before = made.get(layer.takes[0]) if layer.takes else None
        if before is None or layer.kind not in FUSED or uses[layer.takes[0]] != 1 or 9 in before.settings:
            found.append(layer)
            continue
        values = [float(layer.settings[key]) for key in sorted(layer.settings)]
        before.settings[9] = 2 if layer.kind == "ReLU" and values else FUSED[layer.kind]
        if values:
            before.settings[-23310] = values
        before.gives = layer.gives
    return found


def _requantized(layers: Sequence[Layer], outputs: Sequence[int]) -> None:
    """A convolution whose result goes to products in 8 bits with one scale, and nowhere else, gives 8 bits itself."""
    takers: dict[int, list[Layer]] = {}
    for layer in layers:
        for number in layer.takes:
            takers.setdefault(number, []).append(layer)
    for layer in layers:
        if layer.scales is None or layer.kind == "InnerProduct" or layer.gives[0] in outputs:
            continue
        after = takers.get(layer.gives[0], [])
        scales = {other.scales.source if other.scales is not None else None for other in after}
        if len(scales) == 1 and None not in scales and all(other.kind != "InnerProduct" for other in after):
            layer.settings[8] += 100
            layer.data.append(np.array([*scales], np.float32).tobytes())


def _split(layers: Sequence[Layer], outputs: Sequence[int], count: int) -> tuple[list[Layer], list[int]]:
    """Tensors of ncnn are taken once each: those that are taken more often go through a layer Split.

    Returns:
        The layers, and the numbers of the outputs among what they give.
    """
    uses, found = _uses(layers, outputs), []
    rest: dict[int, list[int]] = {}
    for layer in layers:
        layer.takes = [rest[number].pop(0) if number in rest else number for number in layer.takes]
        found.append(layer)
        number = layer.gives[0]
        if uses[number] > 1:
            copies = list(range(count, count + uses[number]))
            count += uses[number]
            found.append(Layer("Split", f"split_{number}", [number], copies))
            rest[number] = list(copies)
    return found, [rest[number].pop(0) if number in rest else number for number in outputs]


def _line(layer: Layer, names: Mapping[int, str]) -> str:
    ends = [names.get(number, str(number)) for number in (*layer.takes, *layer.gives)]
    settings = [f"{key}={_text(value)}" for key, value in layer.settings.items()]
    return " ".join([layer.kind, layer.name, str(len(layer.takes)), str(len(layer.gives)), *ends, *settings])


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join([str(len(value)), *map(_text, value)])
    return f"{max(min(value, 3.402823466e38), -3.402823466e38):.9e}" if isinstance(value, float) else str(int(value))


def _data(layer: Layer) -> bytes:
    return b"".join(layer.data)
