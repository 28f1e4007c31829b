"""A network as a file of LiteRT (TensorFlow Lite), with its own scales, for one example.

Pictures are (batch, height, width, channels) there: layers for pictures work on that, and a transposition at the edge
keeps the order of the original's inputs. Weights of 8 bits stay so. Where a layer's input is on levels of 8 bits and
its result goes on such levels again, perhaps past an activation or a pool, the layer is computed with integers;
elsewhere its weight is dequantized and floats are multiplied: the format has no product of integers that gives floats.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.export.quantized import Codes, Levels, coded_layers, codes_of, levels_in, needed
from lilliput.export.rules import Unsupported, rules
from lilliput.export.sizes import Info, closed, infos_of
from lilliput.export.tflite import TYPES, VERSIONS, Array, Entry, Operation, Scales, file_of
from lilliput.graph.ir import Graph, InputRef, NodeRef, TensorRef, refs_of
from lilliput.graph.layers import CONVOLUTIONS, LINEAR, arguments_of
from lilliput.graph.operators import operators
from lilliput.graph.shapes import users_of

Arguments = Mapping[str, Any]
Rule = Callable[["Writer", Arguments], Any]
RULES: dict[str, Rule] = {}
LAST = (0, 2, 3, 1)
FIRST = (0, 3, 1, 2)
rule = rules(RULES)


@dataclass(eq=False)
class Value:
    """A tensor of our graph and its places in the file.

    Attributes:
        shape: as in our graph.
        last: whether it was made with the channels last.
        levels: on which it is, if it has codes.
        places: by whether channels are last and whether these are codes.
        array: of a constant.
    """

    shape: tuple[int, ...]
    last: bool = False
    levels: Levels | None = None
    places: dict[tuple[bool, bool], int] = field(default_factory=dict)
    array: Array | None = None


def to_litert(graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Any]) -> bytes:
    """Returns the bytes of the file.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        packed: its weights as an artifact holds them, by name.

    Raises:
        ModelError: an operator, or a setting of one, has no counterpart; says which.
        NotInstalled: the package flatbuffers is missing.
    """
    for module in ("litert_layers", "litert_shapes"):
        importlib.import_module(f"lilliput.export.{module}")
    fixed = closed(graph, tensors)
    writer = Writer(fixed, tensors, packed)
    missing = sorted({fixed.nodes[i].operator for i in writer.needed if i not in writer.levels} - RULES.keys())
    if missing:
        raise Unsupported(f"no counterpart in LiteRT for {', '.join(missing[:5])}")
    return writer.file()


def scales_of(levels: Levels) -> Scales:
    """What int8 codes on levels mean; codes from 0 to 255 are moved down by 128."""
    return Scales(np.float32(levels.scale), levels.zero - (128 if levels.high > 127 else 0))


def whole(levels: Levels) -> bool:
    """Whether levels are all codes of 8 bits, or all but the lowest."""
    moved = 128 if levels.high > 127 else 0
    return levels.high - moved == 127 and levels.low - moved in (-128, -127)


class Writer:
    """The file so far.

    Args:
        graph: of fixed sizes.
        tensors: what it uses, by name.
        packed: its weights as an artifact holds them, by name.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Any]) -> None:
        self.graph, self.tensors = graph, tensors
        self.infos = infos_of(graph, tensors)
        self.levels = levels_in(graph)
        self.coded, _ = coded_layers(graph, packed, self.levels, sums=True)
        self.held = {name: codes_of(part) for name, part in packed.items()}
        self.users, _ = users_of(graph)
        self.needed = needed(graph, self.levels)
        self.targets: dict[int, Levels] = {}
        self.acts: dict[int, tuple[int, int]] = {}
        self._plan()
        self.entries: list[Entry] = []
        self.operations: list[Operation] = []
        self.values: dict[Any, Any] = {}
        self.index = -1

    def file(self) -> bytes:
        """Translates all nodes; returns the bytes."""
        inputs = []
        for place, spec in enumerate(self.graph.inputs):
            value = Value(tuple(int(size) for size in spec.shape))
            value.places[False, False] = self.entry(spec.name, value.shape, str(spec.dtype).removeprefix("torch."))
            inputs.append(value.places[False, False])
            self.values[InputRef(place)] = value
        for index in self.needed:
            self.index, node = index, self.graph.nodes[index]
            bound = arguments_of(node)
            names = [parameter.name for parameter in operators()[node.operator].parameters]
            self._add(node.operator, {name: bound[name] for name in names if name in bound})
        outputs = [self.floats(ref) for ref in refs_of(self.graph.output)]
        wanted, kept = set(outputs), []
        for one in reversed(self.operations):
            if wanted.intersection(one.outputs):
                kept.append(one)
                wanted.update(one.inputs)
        wanted.update(inputs)
        return file_of(*self._packed(sorted(wanted - {-1}), kept[::-1], inputs, outputs))

    def _packed(
        self, places: list[int], operations: list[Operation], inputs: list[int], outputs: list[int]
    ) -> tuple[list[Entry], list[Operation], list[int], list[int]]:
        """Only the tensors that are needed, results named after their nodes."""
        names: dict[int, str] = {}
        for ref, value in self.values.items():
            if isinstance(ref, NodeRef) and isinstance(value, Value):
                for (last, coded), place in value.places.items():
                    names[place] = f"node_{ref.index}{'_last' * last}{'_codes' * coded}"
        moved = {place: number for number, place in enumerate(places)} | {-1: -1}
        entries = [replace(self.entries[place], name=names.get(place, self.entries[place].name)) for place in places]
        return (
            entries,
            [
                replace(one, inputs=tuple(map(moved.__getitem__, one.inputs)), outputs=(moved[one.outputs[0]],))
                for one in operations
            ],
            [moved[place] for place in inputs],
            [moved[place] for place in outputs],
        )

    def _add(self, operator: str, bound: Arguments) -> None:
        ref = NodeRef(self.index)
        if self.index in self.levels:
            self.values[ref] = self.put(self.levels[self.index])
        elif ref not in self.values:
            try:
                self.values[ref] = RULES[operator](self, bound)
            except Unsupported as error:
                raise Unsupported(f"{operator} at node {self.index} can't become LiteRT: {error}") from None
            if self.index in self.acts:
                self.values[NodeRef(self.acts[self.index][1])] = self.values[ref]

    def _plan(self) -> None:
        """Finds which layers give codes, and which activations are a part of the layer before."""
        for index, node in enumerate(self.graph.nodes):
            sole = self.users[index]
            if self.fuses(node) and len(set(sole)) == 1 and sole[0] < len(self.graph.nodes):
                act = act_of(self.graph.nodes[sole[0]])
                if act and sole[0] not in self.levels:
                    self.acts[index] = (act, sole[0])
        for levels in self.levels.values():
            ref: Any = levels.source
            while whole(levels) and isinstance(ref, NodeRef) and len(set(self.users[ref.index])) == 1:
                node, bound = self.graph.nodes[ref.index], arguments_of(self.graph.nodes[ref.index])
                if self.fuses(node) or node.operator.startswith(("aten.mean.dim", "aten.adaptive_avg_pool2d")):
                    self.targets[ref.index] = levels
                if not act_of(node) and node.operator.split(".")[1] not in {"max_pool2d", "flatten", "view", "reshape"}:
                    break
                ref = bound["self"]

    @staticmethod
    def fuses(node: Any) -> bool:
        """Whether a node is a layer or a sum, which take an activation along."""
        return node.operator in CONVOLUTIONS | {LINEAR, "aten.add.Tensor"}

    @property
    def target(self) -> Levels | None:
        """The levels that the present node's result goes on."""
        return self.targets.get(self.index)

    @property
    def act(self) -> int:
        """The number of the activation behind the present node."""
        return self.acts.get(self.index, (0, 0))[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the present node's result."""
        info = self.infos[self.index]
        if not isinstance(info, Info) or info.dtype not in (torch.float32, torch.int64, torch.int32):
            raise Unsupported("a result that isn't one tensor of floats")
        return tuple(int(size) for size in info.shape if size is not None)

    def put(self, levels: Levels) -> Value:
        """Returns a tensor on levels."""
        source = self.value(levels.source)
        if source.levels is levels:
            return source
        last = source.last
        if not whole(levels):
            ends = [
                self.constant(np.array((e - levels.zero) * levels.scale, np.float32)) for e in (levels.low, levels.high)
            ]
            given = self.floats(levels.source, last)
            for operator, end in zip(("MAXIMUM", "MINIMUM"), ends):
                given = self.emit(operator, [given, end], source.shape, last).places[last, False]
        else:
            # From codes to other codes at once.
            given = source.places[last, True] if source.levels is not None else self.floats(levels.source, last)
        return self.emit("QUANTIZE", [given], source.shape, last, levels)

    def value(self, ref: Any) -> Value:
        """Returns what is known of a tensor."""
        if isinstance(ref, TensorRef) and ref not in self.values:
            array = self.tensors[ref.name].detach().numpy()
            self.values[ref] = Value(tuple(array.shape), array=array)
        found = self.values[ref]
        if not isinstance(found, Value):
            raise Unsupported("a list of tensors where one is needed")
        return found

    def floats(self, ref: Any, last: bool = False) -> int:
        """Returns the place of a tensor as floats.

        Args:
            ref: to it.
            last: with the channels last.
        """
        value = self.value(ref)
        key = (last, False)
        if key in value.places:
            return value.places[key]
        if value.array is not None:
            array = value.array
            if last:
                array = array.reshape((1,) * (4 - array.ndim) + array.shape).transpose(LAST)
            value.places[key] = self.constant(array)
        elif (not last, False) in value.places:
            value.places[key] = self.turned(value.places[not last, False], value, last)
        else:
            given = self.codes(ref, value.last)
            made = self.emit("DEQUANTIZE", [given], value.shape, value.last).places[value.last, False]
            value.places[value.last, False] = made
            return self.floats(ref, last)
        return value.places[key]

    def codes(self, ref: Any, last: bool = False) -> int:
        """Returns the place of a tensor as codes; it must have some.

        Args:
            ref: to it.
            last: with the channels last.
        """
        value = self.value(ref)
        if (last, True) not in value.places:
            value.places[last, True] = self.turned(value.places[not last, True], value, last, value.levels)
        return value.places[last, True]

    def turned(self, place: int, value: Value, last: bool, levels: Levels | None = None) -> int:
        """Moves the channels of a picture to the end, or back; only reshapes where that is the same."""
        if value.shape[1] == 1 or value.shape[2:] == (1, 1):
            sides = tuple(value.shape[axis] for axis in LAST) if last else value.shape
            return self.emit(
                "RESHAPE", [place, self.constant(np.array(sides, np.int32))], value.shape, last, levels
            ).places[last, levels is not None]
        order = self.constant(np.array(LAST if last else FIRST, np.int32))
        return self.emit("TRANSPOSE", [place, order], value.shape, last, levels).places[last, levels is not None]

    def entry(
        self, name: str, shape: Sequence[int], dtype: str, data: Array | None = None, scales: Scales | None = None
    ) -> int:
        """Adds a tensor; returns its place."""
        if dtype not in TYPES:
            raise Unsupported(f"no counterpart of {dtype}")
        self.entries.append(Entry(name, tuple(shape), dtype, data, scales))
        return len(self.entries) - 1

    def constant(self, array: Array, scales: Scales | None = None) -> int:
        """Adds a constant; returns its place."""
        return self.entry(f"constant_{len(self.entries)}", array.shape, str(array.dtype), array, scales)

    def emit(
        self,
        operator: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        last: bool = False,
        levels: Levels | None = None,
        **options: Any,
    ) -> Value:
        """Adds an operator; returns its result.

        Args:
            operator: its name.
            inputs: places of tensors; -1: left out.
            shape: of the result, in the order of our graph.
            last: the channels are last.
            levels: on which the result is, as codes.
            options: of the operator.
        """
        value = Value(tuple(shape), last, levels)
        sides = [shape[axis] for axis in LAST] if last else shape
        dtype, scales = ("float32", None) if levels is None else ("int8", scales_of(levels))
        name = f"inner_{len(self.operations)}"
        value.places[last, levels is not None] = self.entry(name, sides, dtype, None, scales)
        eight = any(place >= 0 and self.entries[place].dtype == "int8" for place in inputs)
        version = VERSIONS.get(operator, 1) if eight else 1
        self.operations.append(Operation(operator, tuple(inputs), (len(self.entries) - 1,), options, version))
        return value

    def weight(self, name: str, turn: Callable[[Array], Array], axis: int) -> int:
        """Returns the place of a layer's weight as floats, dequantized in the file where it has 8 bits.

        Args:
            name: of the weight.
            turn: brings it into the order of the operator.
            axis: of the outputs then.
        """
        held = self.held.get(name)
        if held is None:
            return self.constant(np.ascontiguousarray(turn(self.tensors[name].detach().numpy())))
        place = self.eight(held, turn, axis)
        self.entries.append(Entry(f"{name}_floats", self.entries[place].shape, "float32"))
        self.operations.append(Operation("DEQUANTIZE", (place,), (len(self.entries) - 1,), {}, VERSIONS["DEQUANTIZE"]))
        return len(self.entries) - 1

    def eight(self, held: Codes, turn: Callable[[Array], Array], axis: int) -> int:
        """Returns the place of a weight in 8 bits; see `weight`."""
        scale = np.where(held.scale > 0, held.scale, np.float32(1))
        return self.constant(np.ascontiguousarray(turn(held.codes)), Scales(scale, 0, axis))


def act_of(node: Any) -> int:
    """The number of a node's activation, 0 for other nodes."""
    word, bound = node.operator.split(".")[1], arguments_of(node)
    if word in {"hardtanh", "clamp"}:
        ends = tuple(bound[key] for key in (("min_val", "max_val") if word == "hardtanh" else ("min", "max")))
        return 3 if ends == (0, 6) else 1 if ends == (0, None) else 0
    return {"relu": 1, "relu6": 3}.get(word, 0)
