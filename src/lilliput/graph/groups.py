"""Which parameters' channels must be cut together, found for any model that can be traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lilliput.graph.atoms import Classes
from lilliput.graph.cut import state_of
from lilliput.graph.flow import Choices, Flow, results_of
from lilliput.graph.ir import Graph
from lilliput.graph.record import record
from lilliput.graph.run import GraphModule, bind_example
from lilliput.graph.trace import trace
from lilliput.graph.verify import runnable

# How often other ways of cutting a dimension are tried.
_ROUNDS = 5


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter or buffer that a group cuts.

    Attributes:
        parameter: its name in the state dict.
        axis: which axis.
        owners: the channel, by its number in the group, to which each of `indices` belongs; ascending.
        indices: those along the axis that the group holds.
    """

    parameter: str
    axis: int
    owners: NDArray[np.int64]
    indices: NDArray[np.int64]

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """For each channel of the group the indices that go with it."""
        ends = np.flatnonzero(np.diff(self.owners)) + 1
        return tuple(tuple(part.tolist()) for part in np.split(self.indices, ends))

    def removed(self, gone: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Returns the indices that go.

        Args:
            gone: for each channel whether it goes.
        """
        return self.indices[gone[self.owners]]


@dataclass(frozen=True)
class Group:
    """Channels that can be removed one by one, each from all members at once; or that are kept whole.

    Attributes:
        name: of the first parameter whose outputs they are.
        size: how many channels.
        members: what each removal cuts; none if kept whole.
        reason: completes "kept whole because ..."; None if they can be removed.
    """

    name: str
    size: int
    members: tuple[Member, ...] = ()
    reason: str | None = None

    @property
    def line(self) -> str:
        """What becomes of it, for a report."""
        return f"{self.name}: kept whole because {self.reason}" if self.reason else f"{self.name}: {self.size} channels"


def groups(model: nn.Module, example: Any) -> list[Group]:
    """Finds the channels that must be cut together.

    Each index of each axis of each parameter is followed through the traced graph (see `flow`); indices that an
    operator combines belong to one channel, channels that occur in the same axes make a group. After DepGraph (Fang
    et al. 2023, arXiv 2301.12900).

    Args:
        model: any module; it is not changed.
        example: as for `trace`.

    Returns:
        Groups in the order of the graph; those kept whole say why.

    Raises:
        ModelError: the model can't be traced.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> one, two = groups(model, torch.rand(1, 4))
        >>> [(member.parameter, member.axis) for member in one.members], one.members[0].places
        ([('0.weight', 0), ('0.bias', 0), ('2.weight', 1)], ((0,), (1,), (2,)))
        >>> two.line
        "2.weight: kept whole because they are the network's outputs"
    """
    return analyse(model, example).groups


@dataclass(frozen=True)
class Analysis:
    """All that is known about the cuts of a model.

    Args:
        graph: of the model, at the example's sizes.
        flow: what became of the atoms.
        classes: of the atoms.
        groups: see `groups`.
        units: for each group the class of each of its channels.
        tensors: what the graph uses, by name.
    """

    graph: Graph
    flow: Flow
    classes: Classes
    groups: list[Group]
    units: list[NDArray[np.int64]]
    tensors: Mapping[str, Tensor]


def analyse(model: nn.Module, example: Any, *, exported: bool = False, copied: nn.Module | None = None) -> Analysis:
    """Records or traces a model and finds its groups.

    Args:
        model: any module, a `GraphModule` as it is.
        example: as for `trace`.
        exported: whether the graph must be one that a file may hold.
        copied: a copy that may be run; made if there is none.

    Raises:
        ModelError: the model can't be traced.
    """
    graph, results, inputs, state = _seen(model, example, exported, copied)
    used = graph.tensors
    shapes = {name: tuple(state[name].shape) for name in used}
    cuttable = set(state) if isinstance(model, GraphModule) else set(model.state_dict())
    sizes = [tuple(tensor.shape) for tensor in inputs]
    best: Analysis | None = None
    most = -1
    choices: Choices = {}
    for _ in range(_ROUNDS):
        flow = Flow(graph, results, shapes, dict(choices), input_shapes=sizes).walk()
        for name, axes in flow.parameters.items():
            if name not in cuttable:
                flow.block(axes, "they meet a constant of the model's code")
        classes = flow.atoms.solve()
        found, units = _collect(flow, classes)
        reach = sum(len(member.indices) for group in found if group.size > 1 for member in group.members)
        if reach > most:
            best, most = Analysis(graph, flow, classes, found, units, state), reach
        useful = np.zeros(flow.atoms.count, bool)
        for group, roots in zip(found, units):
            useful[roots] = group.size > 1
        failed = [key for key, site in flow.sites.items() if not useful[classes.root[site.label]].any()]
        failed = [key for key in failed if choices.get(key, 0) + 1 < flow.sites[key].ways]
        if not failed:
            break
        for key in failed:
            choices[key] = choices.get(key, 0) + 1
    assert best is not None
    return best


def _seen(
    model: nn.Module, example: Any, exported: bool, copied: nn.Module | None
) -> tuple[Graph, list[Any], list[Tensor], dict[str, Tensor]]:
    """A graph, what its nodes gave, its inputs, and its tensors by name."""
    state = state_of(model)
    if isinstance(model, GraphModule):
        inputs = bind_example(model.graph, example)
        return model.graph, results_of(model.graph, state, inputs), inputs, state
    if not exported:
        recorded = record(model, example, runnable(model) if copied is None else copied)
        if recorded is not None:
            return recorded.graph, recorded.results, recorded.inputs, recorded.tensors | state
    graph, constants = trace(model, example, open_sizes={}, compare=False)
    state |= constants
    inputs = bind_example(graph, example)
    return graph, results_of(graph, state, inputs), inputs, state


def _collect(flow: Flow, classes: Classes) -> tuple[list[Group], list[NDArray[np.int64]]]:
    """Classes that occur in the same axes, as groups."""
    stuck = classes.stuck
    axes = [(name, axis) for name, value in flow.parameters.items() for axis in range(len(value.shape))]
    held: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    found: list[tuple[int, Group, NDArray[np.int64]]] = []
    for number, (name, axis) in enumerate(axes):
        label = flow.parameters[name].labels[axis]
        if label is None:
            continue
        roots = classes.root[label]
        indices = np.flatnonzero(~stuck[roots])
        if len(indices):
            held.append((np.full(len(indices), number), indices, roots[indices]))
        elif axis == 0 and len(flow.parameters[name].shape) > 1:
            why = classes.first_reason(roots) or "they can't be told apart"
            found.append((number, Group(name, len(label), reason=why), np.zeros(0, np.int64)))
    if held:
        numbers, indices, roots = (np.concatenate(part) for part in zip(*held))
        found += _groups(axes, numbers, indices, roots)
    found.sort(key=lambda entry: entry[0])
    return [group for _, group, _ in found], [roots for _, _, roots in found]


def _groups(
    axes: Sequence[tuple[str, int]],
    numbers: NDArray[np.int64],
    indices: NDArray[np.int64],
    roots: NDArray[np.int64],
) -> list[tuple[int, Group, NDArray[np.int64]]]:
    """Groups of all that can go, given as axis, index along it, and class; each with the place of its first axis."""
    unique, dense = _numbered(roots)
    pairs = np.sort(dense * len(axes) + numbers)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    starts = np.searchsorted(pairs, np.arange(len(unique)) * len(axes))
    # The set of axes in which a class occurs, as a sum of one random number for each.
    codes = np.random.default_rng(0).integers(0, 2**63, len(axes), dtype=np.uint64)
    _, kinds = _numbered(np.add.reduceat(codes[pairs % len(axes)], starts))
    # By kind, axis, class and index; along each axis the indices ascend already.
    entry = np.argsort((kinds[dense] * len(axes) + numbers) * len(unique) + dense, kind="stable")
    numbers, indices, dense = numbers[entry], indices[entry], dense[entry]
    kind_of = kinds[dense]
    breaks = np.flatnonzero((np.diff(kind_of) != 0) | (np.diff(numbers) != 0)) + 1
    local = np.empty(len(unique), np.int64)
    units = []
    for kind in range(int(kinds.max()) + 1):
        members_of = np.flatnonzero(kinds == kind)
        local[members_of] = np.arange(len(members_of))
        units.append(unique[members_of])
    members: dict[int, list[tuple[int, Member]]] = {}
    for begin, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(entry)]):
        number = int(numbers[begin])
        member = Member(*axes[number], local[dense[begin:end]], indices[begin:end])
        members.setdefault(int(kind_of[begin]), []).append((number, member))
    result = []
    for kind, held in members.items():
        name = next((axes[number][0] for number, _ in held if axes[number][1] == 0), held[0][1].parameter)
        group = Group(name, len(units[kind]), tuple(member for _, member in held))
        if group.size == 1:
            group = Group(name, 1, (), "all its channels depend on one another")
        result.append((held[0][0], group, units[kind]))
    return result


def _numbered(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Different values in the order in which they occur first; and for each value its number in that order."""
    unique, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return unique[order], place[inverse]


def removed_indices(chosen: Sequence[tuple[Group, NDArray[np.int64]]]) -> dict[tuple[str, int], NDArray[np.int64]]:
    """Lists what goes from which axis.

    Args:
        chosen: groups, each with the channels to remove.

    Returns:
        Ascending indices by parameter and axis.
    """
    found: dict[tuple[str, int], list[NDArray[np.int64]]] = {}
    for group, channels in chosen:
        gone = np.zeros(group.size, bool)
        gone[channels] = True
        for member in group.members:
            found.setdefault((member.parameter, member.axis), []).append(member.removed(gone))
    return {key: np.sort(np.concatenate(parts)) for key, parts in found.items()}
