"""Whole residual blocks: where a branch goes around nothing but itself, and removing it.

A sum x + f(x) is x where f gives zero. If all that a module holds is in such branches, the module can be replaced by
one that gives back its input, followed by the ReLU behind the sum if there is one. As with channels, removing is
verified: the smaller model must compute what the graph computes with x in the place of the sum. A layer that works on
the sum, as the norm of a post-norm transformer, is no part of the branch: norm(x) isn't x, so such blocks stay whole.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.cut import Skip
from lilliput.core.errors import MethodError
from lilliput.graph.bounds import first_line
from lilliput.graph.cut import Cuts, apply_cuts, compose, note_cuts, noted_cuts
from lilliput.graph.ir import Graph, InputRef, NodeRef, TensorRef, map_node, map_refs
from lilliput.graph.layers import arguments_of
from lilliput.graph.ranking import Score, score_of
from lilliput.graph.run import GraphModule, bind_example
from lilliput.graph.shapes import shapes_of, users_of
from lilliput.graph.simplify import drop_dead
from lilliput.graph.skip import inside
from lilliput.graph.trace import trace
from lilliput.graph.verify import equal, lively, run, runnable

Kept = Mapping[int, NodeRef | InputRef]
"""For each sum that goes, what stays of it."""


@dataclass(frozen=True)
class Block:
    """A module whose weights are all in residual branches.

    Attributes:
        name: of the module.
        sums: nodes of the graph at which its branches end, each with what goes around the branch.
        weights: parameters and buffers that go with it.
        skip: what takes its place.
        reason: completes "kept whole because ..."; None if it can be removed.
    """

    name: str
    sums: tuple[tuple[int, NodeRef | InputRef], ...]
    weights: tuple[str, ...]
    skip: Skip
    reason: str | None = None


def blocks(model: nn.Module, example: Any) -> list[Block]:
    """Finds the residual blocks that can be removed, and those that look like it but can't.

    Args:
        model: any module; it is not changed. A `GraphModule`'s blocks go by the names of its tensors.
        example: as for `trace`.

    Raises:
        ModelError: the model can't be traced.

    >>> class Residual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner = nn.Linear(4, 4)
    ...     def forward(self, x):
    ...         return x + self.inner(x)
    >>> [block.name for block in blocks(nn.Sequential(nn.Linear(4, 4), Residual()), torch.rand(1, 4))]
    ['1']
    """
    return _Finder(model, example).found()


def cut_blocks(
    model: nn.Module, share: float, example: Any, *, match: str | Callable[[str], bool] = "*", criterion: Any = None
) -> tuple[nn.Module, Cuts]:
    """Removes a share of the residual blocks, those whose weights score lowest in the mean.

    Args:
        model: any module; it is not changed. A `GraphModule`, as `load` gives it, is cut without a class, and then
            doesn't fit the class any more: a file of it runs, but `load(..., into=)` refuses it.
        share: of the blocks that fit, 0 <= share <= 1; rounded down.
        example: as for `trace`.
        match: shell pattern for the module's name, or a function of it.
        criterion: as for `cut`.

    Returns:
        The smaller model, and the cuts, with a line for each block that went or couldn't go.

    Raises:
        ModelError: the model can't be traced.
        MethodError: a share out of range, an unknown criterion, or no block fits.
    """
    if not 0 <= share <= 1:
        raise MethodError(f"cut: a share must be between 0 and 1, it is {share}")
    finder = _Finder(model, example)
    fits = match if callable(match) else lambda name: fnmatchcase(name, match)
    every = finder.found()
    fitting = [block for block in every if fits(block.name)]
    able = [block for block in fitting if block.reason is None]
    if not fitting:
        there = ", ".join(block.name for block in every[:3]) or "none"
        raise MethodError(f"cut: no residual block fits; there is {there}")
    state = dict(model.named_parameters(remove_duplicate=False))
    scores = {block.name: _score(block, state, score_of(criterion)) for block in able}
    wanted = sorted(able, key=lambda block: scores[block.name])[: int(share * len(able))]
    gone, failed = finder.accepted([block for block in able if block in wanted])
    lines = [f"{block.name}: removed the whole block" for block in gone]
    whole = [(block.name, block.reason) for block in fitting if block.reason] + list(failed.items())
    lines += [f"{name}: kept whole because {reason}" for name, reason in whole]
    # A graph doesn't tell where the user's modules end: only a class can say which of them is the block.
    skips = () if isinstance(model, GraphModule) else tuple(block.skip for block in gone)
    cuts = Cuts(lines=tuple(lines), blocks=skips)
    smaller = finder.made(model, gone)
    note_cuts(smaller, compose(noted_cuts(model), cuts))
    return smaller, cuts


def without(graph: Graph, kept: Kept) -> Graph:
    """Returns the graph with something that comes before in the place of each of some nodes.

    Args:
        graph: any graph.
        kept: for the node's index what takes its place.
    """

    def move(ref: Any) -> Any:
        while isinstance(ref, NodeRef) and ref.index in kept:
            ref = kept[ref.index]
        return ref

    nodes = tuple(map_node(node, move) for node in graph.nodes)
    smaller = drop_dead(replace(graph, nodes=nodes, output=map_refs(graph.output, move)))
    used = set(smaller.tensors)
    return replace(smaller, aliases={name: to for name, to in graph.aliases.items() if to in used})


class _Finder:
    """A traced model and its residual sums."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model, self.example = model, example
        # With values where there are nearly zeros, so that no mistake is hidden by them.
        self.probe = runnable(model)
        apply_cuts(self.probe, Cuts((), lively(self.probe)))
        state: dict[str, Tensor] = dict(self.probe.named_parameters(remove_duplicate=False))
        state |= dict(self.probe.named_buffers(remove_duplicate=False))
        if isinstance(model, GraphModule):
            self.graph: Graph = model.graph
        else:
            self.graph, constants = trace(model, example, open_sizes={}, compare=False)
            state |= constants
        self.state = state
        self.own = set(model.state_dict())
        self.shapes = shapes_of(self.graph, state, bind_example(self.graph, example))
        self.users, _ = users_of(self.graph)
        self.before = _ancestors(self.graph)

    def found(self) -> list[Block]:
        """The innermost modules that can be removed, and those that can't and hold none that can."""
        sums: dict[str, list[tuple[int, NodeRef | InputRef]]] = {}
        for index in range(len(self.graph.nodes)):
            kept = self.around(index)
            name = "" if kept is None else _module_of(self.gone({index: kept}))
            if name and kept is not None:
                sums.setdefault(name, []).append((index, kept))
        found = []
        for name in self.outwards(sums):
            own = [pair for other, pairs in sums.items() if inside(other, (Skip(name),)) for pair in pairs]
            found.append(self.block(name, tuple(sorted(own, key=lambda pair: pair[0]))))
        able = [block.name for block in found if block.reason is None]
        return [block for block in found if not _covered(block, able)]

    def outwards(self, names: Mapping[str, Any]) -> list[str]:
        """Modules of branches, and those around them as long as they hold no other weights: one may have the sum."""
        found: dict[str, None] = {}
        for name in names:
            held = {tensor for tensor in self.graph.tensors if tensor.startswith(f"{name}.")}
            while name and held == {tensor for tensor in self.graph.tensors if tensor.startswith(f"{name}.")}:
                found[name] = None
                name = name.rpartition(".")[0]  # noqa: PLW2901
        return list(found)

    def around(self, index: int) -> NodeRef | InputRef | None:
        """What goes around the branch that ends at a node, if it is a sum of it and its branch; else None."""
        node = self.graph.nodes[index]
        if node.operator != "aten.add.Tensor":
            return None
        bound = arguments_of(node)
        one, two = bound["self"], bound["other"]
        for kept, branch, plain in ((one, two, True), (two, one, bound.get("alpha", 1) == 1)):
            if not plain or not isinstance(kept, NodeRef | InputRef) or not isinstance(branch, NodeRef):
                continue
            if self.shape(kept) is None or not self.shape(kept) == self.shape(branch) == self.shape(NodeRef(index)):
                continue
            bit = self.bit(kept)
            if not self.before[branch.index] >> bit & 1:
                continue
            inner = {k for k in range(index) if self.before[k] >> bit & 1}
            inner &= {k for k in range(index) if self.before[branch.index] >> k & 1} | {branch.index}
            if all(user in inner or user == index for k in inner for user in self.users[k]):
                return kept
        return None

    def block(self, name: str, sums: tuple[tuple[int, NodeRef | InputRef], ...]) -> Block:
        """A module with what is known of it."""
        gone = self.gone(dict(sums))
        skip = Skip(name, "relu" if any(self.rectified(*pair) for pair in sums) else "")
        block = Block(name, sums, tuple(sorted(gone)), skip)
        rest = [other for other in self.graph.tensors if other.startswith(f"{name}.") and other not in gone]
        if rest:
            return replace(block, reason=self.why_not(rest[0], sums))
        if any(not other.startswith(f"{name}.") for other in gone if other in self.own):
            return replace(block, reason="its branch uses weights from elsewhere")
        if not isinstance(self.model, GraphModule):
            given = _given(self.probe, name, self.example)
            if given is None:
                return replace(block, reason="it gives more than one tensor, or is called more than once")
            if not self.ends(given[0], sums[-1][0]):
                return replace(block, reason="it is a branch without the sum behind it")
            block = replace(block, skip=replace(skip, packed=given[1]))
        trouble = self.trouble([block])
        return replace(block, reason=trouble) if trouble else block

    def why_not(self, weight: str, sums: Sequence[tuple[int, Any]]) -> str:
        """Why a module's weight isn't in a branch; most often it is a norm behind the sum."""
        after = {NodeRef(index) for index, _ in sums}
        for node in self.graph.nodes:
            if TensorRef(weight) in node.refs() and after & set(node.refs()):
                return f"{weight} works on its sum (post-norm), and would be left alone without the branch"
        return f"{weight} is not in a branch that can be left out"

    def ends(self, given: Tensor, index: int) -> bool:
        """Whether what a module gave is the value of a sum, or the ReLU of it."""
        graph = drop_dead(replace(self.graph, output=NodeRef(index)))
        with torch.no_grad():
            value = run(
                GraphModule(graph, {name: self.state[name] for name in graph.tensors}, limit=None), self.example
            )[0]
        return equal(given, value) or (self.followed(index) and equal(given, torch.relu(value)))

    def rectified(self, index: int, kept: NodeRef | InputRef) -> bool:
        """Whether a ReLU follows that does something to what stays."""
        return self.followed(index) and not self.is_relu(kept)

    def followed(self, index: int) -> bool:
        """Whether a ReLU, and nothing else, uses a node."""
        users = self.users[index]
        return len(users) == 1 and users[0] < len(self.graph.nodes) and self.is_relu(NodeRef(users[0]))

    def is_relu(self, ref: Any) -> bool:
        """Whether a reference is the result of a ReLU."""
        return isinstance(ref, NodeRef) and self.graph.nodes[ref.index].operator == "aten.relu.default"

    def accepted(self, wanted: Sequence[Block]) -> tuple[list[Block], dict[str, str]]:
        """Those that can go together, and why others can't."""
        if not self.trouble(wanted):
            return list(wanted), {}
        gone: list[Block] = []
        failed: dict[str, str] = {}
        for block in wanted:
            trouble = self.trouble([*gone, block])
            if trouble:
                failed[block.name] = trouble
            else:
                gone.append(block)
        return gone, failed

    def trouble(self, gone: Sequence[Block]) -> str:
        """What is wrong with the model without some blocks; empty if it computes what it should."""
        kept = {index: ref for block in gone for index, ref in block.sums}
        smaller = without(self.graph, kept)
        try:
            with torch.no_grad():
                reference = GraphModule(smaller, {name: self.state[name] for name in smaller.tensors}, limit=None)
                wanted = run(reference, self.example)
                got = run(self.made(self.probe, gone).eval(), self.example)
        # Whatever the user's own code raises where a block isn't what it was.
        except Exception as error:
            return f"the model can't run without it ({type(error).__name__}: {first_line(error)[:120]})"
        if len(wanted) != len(got) or any(not equal(one, two) for one, two in zip(wanted, got)):
            return "removing it doesn't give what a branch of zeros gives"
        return ""

    def made(self, model: nn.Module, gone: Sequence[Block]) -> nn.Module:
        """A smaller model."""
        if isinstance(model, GraphModule):
            graph = without(self.graph, {index: ref for block in gone for index, ref in block.sums})
            tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
            tensors |= dict(model.named_buffers(remove_duplicate=False))
            lost = {name for block in gone for name in block.weights}
            left = {
                name: value for name, value in tensors.items() if name not in lost and name not in self.graph.aliases
            }
            return GraphModule(graph, left if model is self.probe else {n: v.clone() for n, v in left.items()})
        smaller = runnable(model) if model is self.probe else copy.deepcopy(model)
        apply_cuts(smaller, Cuts(blocks=tuple(block.skip for block in gone)))
        return smaller

    def gone(self, kept: Kept) -> set[str]:
        """Tensors that nothing uses once sums are left out."""
        return set(self.graph.tensors) - set(without(self.graph, kept).tensors)

    def shape(self, ref: NodeRef | InputRef) -> Any:
        if isinstance(ref, InputRef):
            return tuple(bind_example(self.graph, self.example)[ref.index].shape)
        return None if self.shapes is None else self.shapes[ref.index]

    def bit(self, ref: NodeRef | InputRef) -> int:
        return ref.index + (len(self.graph.nodes) if isinstance(ref, InputRef) else 0)


def _covered(block: Block, able: Sequence[str]) -> bool:
    """Whether a block holds another that can be removed, or can't be removed itself and lies in one that can."""
    others = [name for name in able if name != block.name]
    if any(inside(name, (Skip(block.name),)) for name in others):
        return True
    return block.reason is not None and any(inside(block.name, (Skip(name),)) for name in others)


def _ancestors(graph: Graph) -> list[int]:
    """For each node the nodes before it, as bits; inputs are counted behind the nodes."""
    found: list[int] = []
    for node in graph.nodes:
        bits = 0
        for ref in node.refs():
            if isinstance(ref, NodeRef):
                bits |= found[ref.index] | 1 << ref.index
            elif isinstance(ref, InputRef):
                bits |= 1 << len(graph.nodes) + ref.index
        found.append(bits)
    return found


def _module_of(names: set[str]) -> str:
    """The innermost module that holds all tensors; empty for none."""
    paths = [name.split(".")[:-1] for name in names]
    if not paths:
        return ""
    shortest = min(paths, key=len)
    depth = next((i for i, part in enumerate(shortest) if any(path[i] != part for path in paths)), len(shortest))
    return ".".join(shortest[:depth])


def _given(model: nn.Module, name: str, example: Any) -> tuple[Tensor, bool] | None:
    """The tensor that a module gives, and whether in a tuple of one; None for anything else, or several calls."""
    seen: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with torch.no_grad():
            run(model, example)
    finally:
        handle.remove()
    if len(seen) != 1:
        return None
    if isinstance(seen[0], Tensor):
        return seen[0].clone(), False
    if type(seen[0]) is tuple and len(seen[0]) == 1 and isinstance(seen[0][0], Tensor):
        return seen[0][0].clone(), True
    return None


def _score(block: Block, state: Mapping[str, Tensor], score: Score) -> float:
    """The mean score of a block's weights."""
    total, count = 0.0, 0
    for name in block.weights:
        weight = state.get(name)
        scores = None if weight is None or not weight.is_floating_point() else score(name, weight)
        if scores is not None:
            total += float(scores.double().sum())
            count += scores.numel()
    if math.isnan(total):
        raise MethodError(f"cut: the criterion gives NaN in {block.name}; check weights and data")
    return total / max(count, 1)
