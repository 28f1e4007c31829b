"""A graph compiled into a list of closures over numbered places, each freeing what it was the last to use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from lilliput.graph.bounds import SHAPES, bound_of
from lilliput.graph.ir import Graph, InputRef, Node, NodeRef, Ref, TensorRef, refs_of
from lilliput.graph.operators import operators
from lilliput.graph.recurrent import guarded

Values = list[Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One node, ready to run.

    Args:
        run: computes the result from the list of all values.
        place: where the result goes.
        free: places that nothing reads afterwards.
        bound: how many elements the result will have at most, from the same values.
    """

    run: Callable[[Values], Any]
    place: int
    free: tuple[int, ...]
    bound: Callable[[Values], int]


class Program:
    """The steps of a graph. Places are numbered: inputs, then tensors, then nodes.

    Args:
        graph: what to compile.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors = graph.tensors
        self._tensor_place = {name: len(graph.inputs) + index for index, name in enumerate(self.tensors)}
        self.first_node = len(graph.inputs) + len(self.tensors)
        self._free = self._last_uses()
        self._made: dict[tuple[torch.dtype | None, torch.device], list[Step]] = {}

    def place(self, ref: Ref) -> int:
        """Returns where a reference's value stands.

        Args:
            ref: any reference of the graph.
        """
        if isinstance(ref, TensorRef):
            return self._tensor_place[ref.name]
        return ref.index + self.first_node if isinstance(ref, NodeRef) else ref.index

    def values(self, inputs: list[Any], tensors: list[Any]) -> Values:
        """Returns the list of all values before the first step.

        Args:
            inputs: one for each input of the graph.
            tensors: one for each name of `tensors`.
        """
        return [*inputs, *tensors, *[None] * len(self.graph.nodes)]

    def steps(self, dtype: torch.dtype | None, device: torch.device) -> list[Step]:
        """Returns the steps for a module of a dtype on a device; on `meta` only shapes are found.

        Args:
            dtype: floating dtype that stands for the one traced.
            device: where new tensors are made.
        """
        key = (dtype, device)
        if key not in self._made:
            made = []
            for index, node in enumerate(self.graph.nodes):
                call = operators()[node.operator].call
                if device.type == "meta":
                    call = SHAPES.get(node.operator, call)
                call = guarded(node.operator, call)
                run = self._compile(call, node, dtype, device)
                bound = self._compile(bound_of(node.operator, call), node, dtype, device)
                made.append(Step(run, self.first_node + index, self._free[index], bound))
            self._made[key] = made
        return self._made[key]

    def _last_uses(self) -> list[tuple[int, ...]]:
        """For each node, the places of inputs and nodes that it is the last to use."""
        kept = {self.place(ref) for ref in refs_of(self.graph.output)}
        free: list[tuple[int, ...]] = []
        for index in range(len(self.graph.nodes) - 1, -1, -1):
            refs = self.graph.nodes[index].refs()
            used = {self.place(ref) for ref in refs if not isinstance(ref, TensorRef)} | {self.first_node + index}
            free.append(tuple(used - kept))
            kept |= used
        return free[::-1]

    def _compile(
        self, call: Callable[..., Any], node: Node, dtype: torch.dtype | None, device: torch.device
    ) -> Callable[[Values], Any]:
        args = [self._getter(argument, dtype) for argument in node.args]
        kwargs = {name: self._getter(argument, dtype) for name, argument in node.kwargs.items()}
        if operators()[node.operator].creates:
            kwargs["device"] = (device, None)
        places = [getter for _, getter in args if isinstance(getter, int)]
        if not kwargs and len(places) == len(args):
            return _of_places(call, places)
        return _general(call, args, kwargs)

    def _getter(self, argument: Any, dtype: torch.dtype | None) -> tuple[Any, Any]:
        """A constant and None, or the place of a value, or a function of all values."""
        if isinstance(argument, NodeRef | InputRef | TensorRef):
            return None, self.place(argument)
        if isinstance(argument, torch.dtype):
            # A constant of the model's own dtype follows the module to another one.
            return (dtype if dtype is not None and argument == self.graph.dtype else argument), None
        if isinstance(argument, tuple):
            items = [self._getter(item, dtype) for item in argument]
            if all(getter is None for _, getter in items):
                return [constant for constant, _ in items], None
            return None, lambda values: [_get(values, item) for item in items]
        return argument, None


def _get(values: Values, item: tuple[Any, Any]) -> Any:
    constant, getter = item
    if getter is None:
        return constant
    return values[getter] if isinstance(getter, int) else getter(values)


def _of_places(call: Callable[..., Any], places: list[int]) -> Callable[[Values], Any]:
    if len(places) == 1:
        place = places[0]
        return lambda values: call(values[place])
    if not places:
        return lambda values: call()
    pick = itemgetter(*places)
    return lambda values: call(*pick(values))


def _general(
    call: Callable[..., Any], args: list[tuple[Any, Any]], kwargs: dict[str, tuple[Any, Any]]
) -> Callable[[Values], Any]:
    constants = [constant for constant, _ in args]
    moving = [(index, item) for index, item in enumerate(args) if item[1] is not None]
    fixed = {name: constant for name, (constant, _) in kwargs.items()}
    named = [(name, item) for name, item in kwargs.items() if item[1] is not None]

    def run(values: Values) -> Any:
        given = constants.copy()
        for index, item in moving:
            given[index] = _get(values, item)
        if named:
            return call(*given, **fixed | {name: _get(values, item) for name, item in named})
        return call(*given, **fixed)

    return run
