"""Follows channel indices through a graph: each dimension of each result gets an atom for each index (`Label`).

Parameters bring the atoms, an operator's rule passes them on, joins those that it combines and blocks those that it
mixes. Nothing here knows an architecture: residual sums, concatenation, shuffles, flattening and attention heads are
what the rules of their operators make of them. After DepGraph (Fang et al. 2023, arXiv 2301.12900), which works by
layers where this works by indices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lilliput.graph.atoms import FIXED, Atoms, Label
from lilliput.graph.ir import Graph, InputRef, Node, NodeRef, TensorRef, refs_of
from lilliput.graph.layers import arguments_of
from lilliput.graph.program import Program
from lilliput.graph.record import shape_of


class Axes(NamedTuple):
    """A tensor's dimensions: sizes, and for each a label, or None where no index can go."""

    shape: tuple[int, ...]
    labels: tuple[Label | None, ...]


Rule = Callable[["Flow", Node, Mapping[str, Any]], Any]
# What a dimension might be cut by, where more than one way is right: node, place within it -> which of the ways.
Choices = dict[tuple[int, int], int]


@dataclass
class Site:
    """A node that can be cut in several ways.

    Args:
        ways: how many.
        label: the atoms that stand for the dimension in the way chosen.
    """

    ways: int
    label: Label


@dataclass
class Flow:
    """The state of one walk through a graph.

    Args:
        graph: what is walked through.
        results: for each node its shape, a list of shapes, or a number; see `results_of`.
        shapes: of the graph's tensors, by name.
        choices: by which way each site is cut, the first by default.
    """

    graph: Graph
    results: list[Any]
    shapes: Mapping[str, tuple[int, ...]]
    choices: Choices = field(default_factory=dict)
    atoms: Atoms = field(default_factory=Atoms)
    values: list[Any] = field(default_factory=list)
    parameters: dict[str, Axes] = field(default_factory=dict)
    sites: dict[tuple[int, int], Site] = field(default_factory=dict)
    input_shapes: Sequence[tuple[int, ...]] = ()

    def walk(self) -> Flow:
        """Walks through all nodes and blocks the outputs."""
        from lilliput.graph.rules import rules

        table = rules()
        for node in self.graph.nodes:
            result = self.result
            if isinstance(result, int | float):
                self.values.append(result)
                continue
            rule = table.get(node.operator)
            # An operator without a rule may be one that no table knows.
            self.values.append(_unknown(self, node) if rule is None else rule(self, node, arguments_of(node)))
        for ref in refs_of(self.graph.output):
            self.block(self.of(ref), "they are the network's outputs")
        return self

    @property
    def result(self) -> Any:
        """Shape of the result of the node that is being looked at."""
        return self.results[len(self.values)]

    def of(self, argument: Any) -> Any:
        """Returns the axes, the list of axes or the number that an argument stands for.

        Args:
            argument: a reference, or a plain value, which is returned.
        """
        if isinstance(argument, NodeRef):
            return self.values[argument.index]
        if isinstance(argument, InputRef):
            shape = tuple(self.input_shapes[argument.index])
            return Axes(shape, (None,) * len(shape))
        if isinstance(argument, TensorRef):
            if argument.name not in self.parameters:
                shape = self.shapes[argument.name]
                labels = tuple(self.atoms.new(size) if size > 1 else None for size in shape)
                self.parameters[argument.name] = Axes(shape, labels)
            return self.parameters[argument.name]
        return argument

    def numbers(self, argument: Any) -> list[int]:
        """Returns an argument, one number or several, as a list of integers.

        Args:
            argument: integers or references to them.
        """
        items = argument if isinstance(argument, tuple) else (argument,)
        return [int(self.of(item)) for item in items]

    def operands(self, node: Node) -> list[Axes]:
        """Lists the tensors that go into a node.

        Args:
            node: any.
        """
        found = [self.of(ref) for ref in node.refs()]
        return [item for item in found if isinstance(item, Axes)]

    def block(self, value: Any, reason: str) -> None:
        """Keeps all indices of a tensor, or of several.

        Args:
            value: axes, lists of them, or anything else, which is passed over.
            reason: completes "kept whole because ...".
        """
        if isinstance(value, Axes):
            for label in value.labels:
                self.atoms.block(label, reason)
        elif isinstance(value, list):
            for item in value:
                self.block(item, reason)

    def fixed(self) -> Any:
        """Returns the axes of the present result with no index that can go."""
        return _fixed(self.result)

    def unify(self, parts: Sequence[Label | None], reason: str) -> Label | None:
        """Joins labels of one length; if one is None the others are blocked.

        Args:
            parts: the labels.
            reason: what joins them, as "aten.add.Tensor".
        """
        known = [part for part in parts if part is not None]
        text = f"{short(reason)} joins them with something of a fixed size"
        if len(known) < len(parts):
            for part in known:
                self.atoms.block(part, text)
            return None
        if not known:
            return None
        for other in known[1:]:
            self.atoms.join(known[0], other, text)
        return next((part for part in known if not self.atoms.is_soft(part)), known[0])

    def broadcast(self, operands: Sequence[Axes], shape: tuple[int, ...], reason: str) -> tuple[Label | None, ...]:
        """Joins the labels of tensors that are broadcast to a shape.

        Args:
            operands: the tensors.
            shape: to which.
            reason: what joins them.
        """
        labels: list[Label | None] = []
        for back in range(len(shape), 0, -1):
            size = shape[-back]
            parts = [item.labels[-back] for item in operands if len(item.shape) >= back and item.shape[-back] == size]
            labels.append(self.unify(parts, reason) if size > 1 else None)
        return tuple(labels)

    def choose(self, place: int, ways: int) -> int:
        """Returns which way the present node is cut.

        Args:
            place: within the node.
            ways: how many there are.
        """
        return self.choices.get((len(self.values), place), 0) % ways

    def note(self, place: int, ways: int, label: Label) -> None:
        """Remembers a site, so that another way can be tried.

        Args:
            place: within the present node.
            ways: how many there are.
            label: its atoms.
        """
        if ways > 1:
            self.sites[len(self.values), place] = Site(ways, label)


def short(operator: str) -> str:
    """Returns an operator's name without namespace and overload.

    Args:
        operator: as "aten.add.Tensor".
    """
    return operator.split(".")[1] if operator.startswith("aten.") else operator


def solid(label: Label | None, size: int) -> Label:
    """Returns a label with a fixed index for each index of a dimension that has none.

    Args:
        label: the label, or None.
        size: of the dimension.
    """
    return np.full(size, FIXED, np.int64) if label is None else label


def _fixed(result: Any) -> Any:
    if isinstance(result, tuple):
        return Axes(result, (None,) * len(result))
    return [_fixed(item) for item in result] if isinstance(result, list) else result


def _unknown(flow: Flow, node: Node) -> Any:
    for ref in node.refs():
        flow.block(flow.of(ref), f"{short(node.operator)} mixes them")
    return flow.fixed()


def results_of(graph: Graph, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> list[Any]:
    """Runs a graph once to see the shapes of all results.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        inputs: what goes in.

    Returns:
        For each node a shape, a list of shapes, or the number that it gave.
    """
    program = Program(graph)
    held = [tensors[name] for name in program.tensors]
    dtype = next((tensor.dtype for tensor in held if tensor.is_floating_point()), None)
    values = program.values(list(inputs), held)
    results: list[Any] = []
    with torch.no_grad():
        for step in program.steps(dtype, (held or list(inputs))[0].device):
            values[step.place] = step.run(values)
            results.append(shape_of(values[step.place]))
            for place in step.free:
                values[place] = None
    return results
