"""Which parameters' channels must be cut together, found for any model that can be traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from lilliput.graph.atoms import Classes
from lilliput.graph.flow import Choices, Flow, results_of
from lilliput.graph.ir import Graph
from lilliput.graph.run import GraphModule, bind_example
from lilliput.graph.trace import trace

# How often other ways of cutting a dimension are tried.
_ROUNDS = 5


@dataclass(frozen=True)
class Member:
    """A parameter or buffer that a group cuts.

    Attributes:
        parameter: its name in the state dict.
        axis: which axis.
        places: for each channel of the group the indices that go with it.
    """

    parameter: str
    axis: int
    places: tuple[tuple[int, ...], ...]


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
    units: list[list[int]]
    tensors: Mapping[str, Tensor]


def analyse(model: nn.Module, example: Any) -> Analysis:
    """Traces a model and finds its groups.

    Args:
        model: any module, a `GraphModule` as it is.
        example: as for `trace`.

    Raises:
        ModelError: the model can't be traced.
    """
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state |= dict(model.named_buffers(remove_duplicate=False))
    if isinstance(model, GraphModule):
        graph = model.graph
    else:
        graph, constants = trace(model, example, open_sizes={}, compare=False)
        state |= constants
    inputs = bind_example(graph, example)
    results = results_of(graph, state, inputs)
    shapes = {name: tuple(state[name].shape) for name in graph.tensors}
    cuttable = set(state) if isinstance(model, GraphModule) else set(model.state_dict())
    best: Analysis | None = None
    most = -1
    choices: Choices = {}
    for _ in range(_ROUNDS):
        sizes = [tuple(tensor.shape) for tensor in inputs]
        flow = Flow(graph, results, shapes, dict(choices), input_shapes=sizes).walk()
        for name, axes in flow.parameters.items():
            if name not in cuttable:
                flow.block(axes, "they meet a constant of the model's code")
        classes = flow.atoms.solve()
        found, units = _collect(flow, classes)
        reach = sum(len(places) for group in found if group.size > 1 for m in group.members for places in m.places)
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


def _collect(flow: Flow, classes: Classes) -> tuple[list[Group], list[list[int]]]:
    """Classes that occur in the same axes, as groups."""
    stuck = classes.stuck
    axes = [(name, axis) for name, value in flow.parameters.items() for axis in range(len(value.shape))]
    places: dict[int, dict[int, list[int]]] = {}
    kept: list[tuple[int, Group]] = []
    for number, (name, axis) in enumerate(axes):
        label = flow.parameters[name].labels[axis]
        if label is None:
            continue
        roots = classes.root[label]
        free = ~stuck[roots]
        for index, root in zip(free.nonzero()[0].tolist(), roots[free].tolist()):
            places.setdefault(root, {}).setdefault(number, []).append(index)
        if axis == 0 and not free.any() and len(flow.parameters[name].shape) > 1:
            reason = next((why for why in map(classes.why, map(int, roots)) if why), "they can't be told apart")
            kept.append((number, Group(name, len(label), reason=reason)))
    kinds: dict[tuple[int, ...], list[int]] = {}
    for root, held in places.items():
        kinds.setdefault(tuple(held), []).append(root)
    found: list[tuple[int, Group, list[int]]] = [(number, group, []) for number, group in kept]
    for signature, roots_of in kinds.items():
        members = tuple(
            Member(*axes[number], tuple(tuple(places[root][number]) for root in roots_of)) for number in signature
        )
        first = next((number for number in signature if axes[number][1] == 0), signature[0])
        name = axes[first][0]
        if len(roots_of) == 1:
            group = Group(name, 1, (), "all its channels depend on one another")
        else:
            group = Group(name, len(roots_of), members)
        found.append((signature[0], group, roots_of))
    found.sort(key=lambda entry: entry[0])
    return [group for _, group, _ in found], [roots for _, _, roots in found]


def removed_indices(chosen: Sequence[tuple[Group, Sequence[int]]]) -> Mapping[tuple[str, int], set[int]]:
    """Lists what goes from which axis.

    Args:
        chosen: groups, each with the channels to remove.

    Returns:
        Indices by parameter and axis.
    """
    gone: dict[tuple[str, int], set[int]] = {}
    for group, channels in chosen:
        for member in group.members:
            into = gone.setdefault((member.parameter, member.axis), set())
            for channel in channels:
                into.update(member.places[channel])
    return gone
