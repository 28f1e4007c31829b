"""Which way each layer of an artifact runs fastest: kernels, ONNX Runtime and torch measured against one another."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import LilliputError, MethodError, NotInstalled
from lilliput.core.packed import Packed
from lilliput.export.few_bits import FLOATS, INTEGERS, Few, few_layers
from lilliput.export.quantized import coded_layers, levels_in, without_levels
from lilliput.export.sizes import infos_of
from lilliput.file.artifact import Artifact
from lilliput.graph.factors import Factored, factored
from lilliput.graph.ir import Graph, InputRef, NodeRef, Ref, refs_of
from lilliput.graph.layers import layer_of
from lilliput.graph.program import Program
from lilliput.kernels.found import TOLERANCE, serving, serving_dense
from lilliput.run.algorithm import asked, module_for
from lilliput.run.clock import race
from lilliput.run.examples import example_inputs
from lilliput.run.layer_steps import BY_FLOATS
from lilliput.run.line import Line, Part, in_kernel, in_onnx, in_torch
from lilliput.run.openvino import in_openvino
from lilliput.run.pieces import Piece, pieces_of
from lilliput.run.programs import WORDS, Programs, programs

GAIN = 1.03
"""A compressed network that isn't faster than this many times the uncompressed one has no gain."""

ONNX, OPENVINO, TORCH = "ONNX Runtime", "OpenVINO", "torch"


@dataclass(frozen=True)
class Layer:
    """How one layer runs.

    Attributes:
        name: of its weight.
        by: what runs it, in words.
        seconds: of the layer by a kernel, alone; None where no kernel serves it.
        beside: of the same layer with floats in ONNX Runtime or torch.
    """

    name: str
    by: str
    seconds: float | None = None
    beside: float | None = None

    def __str__(self) -> str:
        if self.seconds is None or self.beside is None:
            return f"{self.name}: {self.by}"
        return f"{self.name}: {self.by}, {self.seconds * 1e6:.0f} µs (floats: {self.beside * 1e6:.0f} µs)"


@dataclass(frozen=True)
class Chosen:
    """How a network runs.

    Attributes:
        line: runs it; None: as the dense engine does.
        layers: each layer.
        seconds: median latency of the ways that were measured, by name.
        way: the one that was chosen.
        notes: what isn't as it could be.
    """

    line: Line | None
    layers: tuple[Layer, ...]
    seconds: Mapping[str, float]
    way: str
    notes: tuple[str, ...] = ()

    @property
    def gain(self) -> float | None:
        """How many times as fast as the same network uncompressed in ONNX Runtime; None where that wasn't measured."""
        if "uncompressed" not in self.seconds or self.way not in self.seconds:
            return None
        return self.seconds["uncompressed"] / self.seconds[self.way]


@dataclass(eq=False)
class Chooser:
    """Builds the ways of running an artifact, and chooses.

    Attributes:
        artifact: with a graph.
        timed: measure; else each layer that a kernel serves goes to the first that does.
        tolerance: kernels that state a larger error are left out.
        workspace: bytes that a dense convolution may take beside its input, output and weight; None for any.
    """

    artifact: Artifact
    timed: bool = True
    tolerance: float = 0.01
    workspace: int | None = None

    def __post_init__(self) -> None:
        assert self.artifact.graph is not None
        self.whole: Graph = self.artifact.graph
        self.notes: list[str] = []

    @cached_property
    def found(self) -> Factored:
        """The graph with chains in the place of factorized layers."""
        return factored(self.whole, self.artifact.weights)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All weights, unpacked, and factors."""
        state = {name: self.artifact.weight(name) for name in self.artifact.weights}
        return {**state, **self.found.tensors, **self.artifact.constants}

    @cached_property
    def infos(self) -> list[Any]:
        """Of the graph's nodes."""
        return infos_of(self.found.graph, self.tensors)

    @cached_property
    def example(self) -> list[Tensor]:
        """One input: a batch of one."""
        return example_inputs(self.whole)

    def choose(self) -> Chosen:
        """Returns the fastest way that gives what the dense engine gives."""
        if not installed():
            self.notes.append(
                "ONNX Runtime isn't installed, so that what no kernel serves runs in plain torch, some two times "
                "slower: pip install 'lilliput[onnx]'"
            )
        found = self.programs
        # Where programs run all of it, kernels one by one would be the same, and slower.
        kernels = {} if found is not None and found.whole and self.timed else self.kernels()
        ways: dict[str, Callable[[], Line]] = {TORCH: lambda: self.line({}, TORCH)}
        if installed():
            ways[ONNX] = lambda: self.line({}, ONNX)
        if self.timed and installed("openvino"):
            ways[OPENVINO] = lambda: self.line({}, OPENVINO)
        if kernels:
            ways["kernels"] = lambda: self.line(kernels, ONNX if installed() else TORCH)
        if found is not None:
            ways[WORDS] = lambda: found.line
        if not self.timed:
            served = {kernel.name for kernel in kernels.values()}
            better = found is not None and all(found.kinds.get(name, BY_FLOATS) != BY_FLOATS for name in served)
            order = (*((WORDS,) if better and served else ()), "kernels", ONNX, TORCH)
            way = next(name for name in order if name in ways)
            return Chosen(ways[way](), self.layers(way, kernels), {}, way, tuple(self.notes))
        if installed() and self.rewritten:
            ways["floats"] = lambda: Line(self.whole, self.plain(self.whole), self.tensors)
        lines = {name: make() for name, make in ways.items()}
        calls = {name: self.of(line) for name, line in lines.items()}
        same = "floats" if self.rewritten else ONNX
        if installed() and levels_in(self.whole):
            stripped = without_levels(self.whole)
            calls["uncompressed"] = self.of(Line(stripped, self.plain(stripped), self.tensors))
        seconds = race(calls)
        if installed():
            # Without levels the same network with floats is the uncompressed one.
            seconds.setdefault("uncompressed", seconds[same])
        way = min(lines, key=seconds.__getitem__)
        made = Chosen(lines[way], self.layers(way, kernels), seconds, way, tuple(self.notes))
        if made.gain is not None and self.differs and made.gain < GAIN:
            words = f"no gain: {made.gain:.2f} times the speed of the uncompressed network in ONNX Runtime"
            made = Chosen(made.line, made.layers, seconds, way, (*self.notes, words))
        return made

    @property
    def differs(self) -> bool:
        """Whether anything here is compressed."""
        return any(isinstance(weight, Packed) for weight in self.artifact.weights.values())

    @cached_property
    def coded(self) -> Mapping[str, Any]:
        """The weights that ONNX Runtime gets as integers."""
        return coded_layers(self.found.graph, self.artifact.weights, levels_in(self.found.graph))[0]

    @property
    def rewritten(self) -> bool:
        """Whether ONNX Runtime gets another network than one of floats."""
        return bool(self.found.replaced or self.coded or self.few)

    @cached_property
    def few(self) -> Mapping[str, Few]:
        """The weights that ONNX Runtime gets in 2, 4 or 8 bits."""
        return few_layers(self.found.graph, self.artifact.weights, self.coded, self.level)

    @property
    def level(self) -> int:
        """How ONNX Runtime multiplies by those: by integers where more than 1 % of error is allowed.

        Inputs are put on levels then that the artifact doesn't have, which moves a layer's result by 0.7 %, and
        those of a deep network by more.
        """
        return INTEGERS if self.tolerance > 0.01 else FLOATS

    def of(self, line: Line) -> Callable[[], Any]:
        """A call of a line on the example."""
        return lambda: line(self.example)

    def kernels(self) -> dict[int, Kernel]:
        """Finds for each layer the fastest kernel that serves it and is faster than floats."""
        graph, offers = self.found.graph, {}
        for index, node in enumerate(graph.nodes):
            layer = layer_of(node)
            weight = None if layer is None else self.artifact.weights.get(layer.weight)
            if layer is None or weight is None or layer.weight in self.found.replaced:
                continue
            inputs = self.artifact.quantizers.get(layer.name)
            served = serving(weight, node, inputs) if isinstance(weight, Packed) else serving_dense(weight, node)
            made = [(name, module.eval()) for name, module in served if not self.timed or name != "winograd"]
            if made or (self.timed and asked(node, self.tensors[layer.weight])):
                offers[index] = made
        if not offers:
            return {}
        seen = self.seen(offers)
        if self.timed:
            offers = self.with_algorithms(offers, seen)
        pieces = {p.nodes[0]: p for p in pieces_of(graph, self.infos, offers) if p.alone}
        found = {}
        for index, made in offers.items():
            best = self.best(pieces[index], made, seen[index]) if index in pieces else None
            if best is not None:
                found[index] = best
        return found

    def with_algorithms(
        self, offers: Mapping[int, list[tuple[str, nn.Module]]], seen: Mapping[int, tuple[Tensor, Tensor]]
    ) -> dict[int, list[tuple[str, nn.Module]]]:
        """Adds to what is offered, for dense convolutions, the algorithm that is fastest at their sizes."""
        found = {}
        for index, made in offers.items():
            node = self.found.graph.nodes[index]
            layer = layer_of(node)
            assert layer is not None
            weight = self.tensors[layer.weight]
            module = module_for(node, weight, seen[index][0], self.workspace) if asked(node, weight) else None
            every = made if module is None else [*made, ("convolution", module.eval())]
            if every:
                found[index] = every
        return found

    def best(self, piece: Piece, made: Sequence[tuple[str, nn.Module]], seen: tuple[Tensor, Tensor]) -> Kernel | None:
        """The fastest kernel of those that serve a layer; None if floats are faster."""
        layer = layer_of(self.found.graph.nodes[piece.nodes[0]])
        assert layer is not None
        x, wanted = seen
        right = {}
        rectified = {}
        for name, module in made:
            call = in_kernel(piece, module, self.found.graph, self.tensors)
            if getattr(module, "rectifies", False):
                rectified[name] = in_kernel(piece, module, self.found.graph, self.tensors, rectify=True)
            reason = self.refused(call, module, x, wanted)
            if reason is None:
                right[name] = call, str(getattr(module, "kind", name))
            else:
                self.notes.append(f"{layer.weight}: kernel {name} is left out: {reason}")
        if not right:
            return None
        if not self.timed:
            name = next(iter(right))
            return Kernel(layer.weight, *right[name], rectified=rectified.get(name))
        calls: dict[str, Callable[[], Any]] = {name: _bound(call, x) for name, (call, _) in right.items()}
        calls[""] = _bound(self.stretch(piece, ONNX if installed() else TORCH, {})[0], x)
        seconds = race(calls, seconds=0.02)
        name = min(right, key=lambda one: seconds[one])
        if seconds[name] >= seconds[""]:
            return None
        return Kernel(layer.weight, *right[name], seconds[name], seconds[""], rectified.get(name))

    def refused(
        self, call: Callable[[list[Any]], list[Any]], module: nn.Module, x: Tensor, wanted: Tensor
    ) -> str | None:
        """Why a kernel is left out."""
        tolerance = float(getattr(module, "tolerance", TOLERANCE))
        if tolerance > self.tolerance:
            return f"its error may be {tolerance:g}, more than {self.tolerance:g}"
        try:
            found = call([x])[0]
        except MethodError as error:
            return str(error)
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            return f"it gives {tuple(found.shape)} of {found.dtype}, not {tuple(wanted.shape)} of {wanted.dtype}"
        size = float(torch.linalg.vector_norm(wanted.double()))
        apart = float(torch.linalg.vector_norm(found.double() - wanted.double()))
        if not apart <= tolerance * size + 1e-30:
            return f"its result is {apart / max(size, 1e-30):.2g} away from the dense layer's, more than {tolerance:g}"
        return None

    def seen(self, places: Mapping[int, Any]) -> dict[int, tuple[Tensor, Tensor]]:
        """What goes into some layers, and what comes out, on the example."""
        graph = self.found.graph
        program = Program(graph)
        values = program.values(list(self.example), [self.tensors[name] for name in program.tensors])
        found = {}
        with torch.no_grad():
            for index, step in enumerate(program.steps(graph.dtype, torch.device("cpu"))):
                result = step.run(values)
                if index in places:
                    layer = layer_of(graph.nodes[index])
                    assert layer is not None
                    found[index] = values[program.place(layer.source)], result
                values[step.place] = result
                for gone in step.free:
                    values[gone] = None
        return found

    def line(self, kernels: Mapping[int, Kernel], engine: str) -> Line:
        """Builds the network with some kernels."""
        from_rules = _unknown(self.found.graph) if engine != TORCH else set()
        merged = self.merged(kernels)
        pieces = pieces_of(self.found.graph, self.infos, set(kernels) | from_rules | set(merged))
        parts = []
        several = bool(kernels) and self.timed and engine == ONNX
        inputs = self.recorded(pieces) if several else {}
        for place, piece in enumerate(pieces):
            index = piece.nodes[0]
            if piece.alone and index in kernels:
                kernel = kernels[index]
                call = kernel.rectified if index in merged.values() else kernel.call
                parts.append(Part(piece, call, kernel.kind))
            elif index in merged:
                parts.append(Part(piece, list, kernels[merged[index]].kind))
            elif piece.alone:
                parts.append(Part(piece, in_torch(piece, self.tensors), TORCH))
            else:
                call, words = self.stretch(piece, engine, self.artifact.weights)
                if several and words == ONNX:
                    other = in_torch(piece, self.tensors)
                    seconds = race({"a": _called(call, inputs[place]), "b": _called(other, inputs[place])}, 0.01)
                    call, words = (call, words) if seconds["a"] <= seconds["b"] else (other, TORCH)
                parts.append(Part(piece, call, words))
        return Line(self.found.graph, parts, self.tensors)

    def merged(self, kernels: Mapping[int, Kernel]) -> dict[int, int]:
        """The ReLUs that a kernel does on the way, each with the place of its layer; nothing else needs that result."""
        graph = self.found.graph
        uses = Counter(ref for node in graph.nodes for ref in node.refs() if isinstance(ref, NodeRef))
        uses.update(ref for ref in refs_of(graph.output) if isinstance(ref, NodeRef))
        found = {}
        for index, node in enumerate(graph.nodes):
            ref = node.args[0] if node.operator == "aten.relu.default" and node.args else None
            if not isinstance(ref, NodeRef) or uses[ref] != 1 or ref.index not in kernels:
                continue
            if kernels[ref.index].rectified is not None:
                found[index] = ref.index
        return found

    def recorded(self, pieces: Sequence[Piece]) -> dict[int, list[Any]]:
        """What goes into each piece on the example."""
        inputs: dict[int, list[Any]] = {}
        values: dict[Ref, Any] = {InputRef(place): tensor for place, tensor in enumerate(self.example)}
        for place, piece in enumerate(pieces):
            inputs[place] = [values[ref] for ref in piece.takes]
            values.update(zip(piece.gives, in_torch(piece, self.tensors)(inputs[place])))
        return inputs

    def stretch(self, piece: Piece, engine: str, packed: Mapping[str, Any]) -> tuple[Any, str]:
        """What runs a piece, and its name: torch where ONNX can't say it."""
        if engine != TORCH:
            try:
                if engine == ONNX:
                    return in_onnx(piece, self.tensors, packed, self.level), engine
                products = "integers" if self.level == INTEGERS else "floats"
                return in_openvino(piece, self.tensors, packed, products=products), engine
            except LilliputError as error:
                self.notes.append(f"a stretch of {len(piece.nodes)} operators runs in torch: {error}")
        return in_torch(piece, self.tensors), TORCH

    def plain(self, graph: Graph) -> list[Part]:
        """A whole graph with floats in ONNX Runtime."""
        infos = infos_of(graph, self.tensors)
        pieces = pieces_of(graph, infos, _unknown(graph))
        return [
            Part(p, *((in_torch(p, self.tensors), TORCH) if p.alone else self.stretch(p, ONNX, {}))) for p in pieces
        ]

    @cached_property
    def programs(self) -> Programs | None:
        """The network with programs in it, see `run.programs`."""
        graph, engine = self.found.graph, ONNX if installed() else TORCH
        if self.workspace is not None:
            return None  # a program's dense convolutions take what memory they need

        def between(piece: Piece, given: list[Any]) -> Part:
            call, words = self.stretch(piece, engine, self.artifact.weights)
            if self.timed and words == ONNX:
                other = in_torch(piece, self.tensors)
                seconds = race({"a": _called(call, given), "b": _called(other, given)}, 0.01)
                call, words = (call, words) if seconds["a"] <= seconds["b"] else (other, TORCH)
            return Part(piece, call, words)

        rest = (self.example, self.tensors, self.artifact.weights, self.timed)
        return programs(graph, self.infos, *rest, between)

    def layers(self, way: str, kernels: Mapping[int, Kernel]) -> tuple[Layer, ...]:
        """How each layer runs in the way that was chosen."""
        coded = self.coded if way in {ONNX, "kernels"} else {}
        if way == OPENVINO:
            coded, _ = coded_layers(self.found.graph, self.artifact.weights, levels_in(self.found.graph), sums=True)
        graph = self.whole if way == "floats" else self.found.graph
        found = []
        for index, node in enumerate(graph.nodes):
            layer = layer_of(node)
            if layer is None:
                continue
            kernel = kernels.get(index) if way == "kernels" else None
            kind = self.programs.kinds.get(layer.weight) if way == WORDS and self.programs is not None else None
            if kind is not None:
                found.append(Layer(layer.weight, f"{WORDS}, {kind}"))
            elif kernel is not None:
                found.append(Layer(layer.weight, kernel.kind, kernel.seconds, kernel.beside))
            else:
                engine = way if way in {TORCH, OPENVINO} else ONNX if installed() else TORCH
                words = "integers" if layer.weight in coded else "floats"
                few = self.few.get(layer.weight) if way in {ONNX, "kernels"} else None
                found.append(Layer(layer.weight, f"{engine}, {words if few is None else f'{few.bits} bits'}"))
        return tuple(found)


@dataclass(frozen=True)
class Kernel:
    """A kernel that runs a layer.

    Attributes:
        name: of the weight.
        call: runs it.
        kind: in words.
        seconds: that it takes; None if nothing was timed.
        beside: that floats take.
        rectified: the same with max(0, y) for its result y, where the kernel can do that on the way.
    """

    name: str
    call: Any
    kind: str
    seconds: float | None = None
    beside: float | None = None
    rectified: Any = None


def _bound(call: Callable[[list[Any]], list[Any]], x: Tensor) -> Callable[[], Any]:
    return lambda: call([x])


def _called(call: Callable[[list[Any]], list[Any]], given: list[Any]) -> Callable[[], Any]:
    return lambda: call(given)


def installed(package: str = "onnxruntime") -> bool:
    """Whether an engine can be used, which takes its graphs from ONNX."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", package))


def _unknown(graph: Graph) -> set[int]:
    """The nodes whose operator has no counterpart in ONNX."""
    try:
        rules = importlib.import_module("lilliput.export.onnx").RULES
    except NotInstalled:
        return set()
    return {index for index, node in enumerate(graph.nodes) if node.operator not in rules}
