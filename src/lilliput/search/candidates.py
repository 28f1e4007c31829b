"""The settings worth trying for a weight: those of all methods and their compositions that none other beats."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.coding.choose import entropy_bits
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod, find_path, methods
from lilliput.core.packed import Packed, leaves, pack_rest, unpack
from lilliput.file.leaf import Leaves
from lilliput.solve.knapsack import pareto

OPEN = 0.5
"""A step leaves its parts open if at least this part of the bytes is in floats that a next step may pack."""

MOST_ERROR = 0.5
"""Largest squared error relative to the squared norm: a layer that has lost half of its energy is hardly one."""

DISTINCT = 0.9
"""Of settings with errors above this many times one another's only the smallest is worth telling apart."""

HARMLESS = 1e-5
"""Largest squared error, relative to the squared norm, that biases and norms may take: bfloat16 makes 3e-6 at most."""

Steps = tuple[WeightMethod, ...]


@dataclass(frozen=True)
class Candidate:
    """One setting for one weight, or for a group of them.

    Attributes:
        steps: the rule's steps; none leaves the weight as it is.
        bytes: what the file's coder writes for it.
        error: squared error of the weight relative to its squared norm.
    """

    steps: Steps
    bytes: int
    error: float


@cache
def choices() -> Steps:
    """All settings that weight methods and criteria offer for a search and that need no calibration."""
    found: list[WeightMethod] = []
    for listing in methods():
        if listing.kind in {"weight method", "criterion"}:
            method = find_path(listing.path)
            found += method.choices() if method.searched and not method.needs else ()
    return tuple(found)


def candidates(weight: Tensor) -> tuple[Candidate, ...]:
    """Returns the settings for a weight that no other beats in both bytes and error, from small to large.

    Single steps, two steps where the first leaves most of its bytes open (prune, then share; factorize, then quantize),
    and after either a last step for the side information (scales and codebooks in 16 bits). Sizes are first estimated
    by the order-0 entropy; those that stay on the front are then measured with the coder itself.

    Args:
        weight: floating-point, finite, any shape.

    Returns:
        At least the setting that leaves the weight as it is.
    """
    search = _Front(weight.detach())
    for method in choices():
        first = search.packed(method)
        if first is None:
            continue
        search.offer(first)
        if first.open >= OPEN * first.bytes and first.error < MOST_ERROR:
            search.extend(first, both=True)
    for node in thinned(search.nodes, finished=False):
        if node.open:
            search.extend(node)
    found = [Candidate((), stored_bytes(weight.detach()), 0.0)]
    found += [
        Candidate(node.steps, stored_bytes(node.form), node.error) for node in thinned(search.nodes, finished=True)
    ]
    return front(found)


def shared_candidates(weights: Sequence[Tensor]) -> tuple[Candidate, ...]:
    """Returns the single steps that suit all of some weights and do them no harm, for biases and norms as a group."""
    plain = sum(stored_bytes(weight.detach()) for weight in weights)
    found = [Candidate((), plain, 0.0)]
    power = sum(float(weight.detach().double().square().sum()) for weight in weights)
    for method in choices():
        total, error = 0, 0.0
        try:
            for weight in weights:
                form = method.pack(weight.detach())
                total += stored_bytes(form)
                error += squared_error(weight.detach(), form)
        except MethodError:
            continue
        if error <= HARMLESS * power:
            found.append(Candidate((method,), total, error / (power or 1.0)))
    return front(found)


def front(found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Returns the candidates that no other beats or equals in both bytes and error, by rising bytes."""
    kept = pareto(np.array([c.bytes for c in found], float), np.array([c.error for c in found], float))
    return tuple(found[place] for place in kept)


def stored_bytes(form: Packed | Tensor) -> int:
    """Returns what the coder writes for a packed weight, its entry in the manifest aside."""
    found = Leaves()
    found.add("", form)
    return sum(len(leaf.data) for leaf in found)


def squared_error(weight: Tensor, form: Packed | Tensor) -> float:
    """Returns |w - unpacked|^2."""
    precise = torch.promote_types(weight.dtype, torch.float32)
    difference = unpack(form).to(precise) - weight.to(precise)
    return float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2


@dataclass(frozen=True, eq=False)
class _Node:
    """A setting as it is tried.

    Attributes:
        steps: the steps.
        form: the weight packed by them.
        bytes: estimated.
        open: bytes of the floats that a next step may pack.
        error: relative squared error.
        leaf_bytes: estimated bytes of each leaf of the form, by its identity.
    """

    steps: Steps
    form: Packed
    bytes: float
    open: int
    error: float
    leaf_bytes: dict[int, float]


@dataclass(eq=False)
class _Front:
    """The settings of one weight that may still be on the front once their open parts are packed."""

    weight: Tensor
    nodes: list[_Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.power = float(torch.linalg.vector_norm(self.weight, dtype=torch.float64)) ** 2

    def packed(self, method: WeightMethod) -> _Node | None:
        """Packs the weight by one step; None if the step can't take it."""
        try:
            return self._node((method,), method.pack(self.weight), {})
        except MethodError:
            return None

    def extend(self, node: _Node, both: bool = False) -> None:
        """Offers what a node becomes with one more step, of each method from its coarsest setting on.

        The finer settings of a method are passed over once it adds hardly any error to what is there.
        """
        for cls, settings in itertools.groupby(choices(), type):
            if cls is type(node.steps[-1]):
                continue
            for method in settings:
                longer = self._longer(node, method)
                self.offer(longer, both)
                if longer is not None and DISTINCT * longer.error <= node.error:
                    break

    def _longer(self, node: _Node, method: WeightMethod) -> _Node | None:
        try:
            form = extend(node.steps, node.form, method)
            return self._node((*node.steps, method), form, node.leaf_bytes)
        except MethodError:
            return None

    def offer(self, node: _Node | None, both: bool = False) -> None:
        """Takes a node in, unless another is smaller than it can become and no worse.

        Args:
            node: None is passed over.
            both: it is two main steps already, so that one which leaves most open is of no use.
        """
        if node is None or node.error >= MOST_ERROR or (both and node.open >= OPEN * node.bytes):
            return
        if any(other.bytes <= node.bytes - node.open and other.error <= node.error for other in self.nodes):
            return
        self.nodes = [n for n in self.nodes if not (node.bytes <= n.bytes - n.open and node.error <= n.error)]
        self.nodes.append(node)

    def _node(self, steps: Steps, form: Packed, known: dict[int, float]) -> _Node:
        error = squared_error(self.weight, form) / (self.power or 1.0)
        sizes = {id(leaf): known[id(leaf)] if id(leaf) in known else _estimate(leaf) for _, leaf in leaves(form)}
        return _Node(steps, form, sum(sizes.values()), sum(_open(steps, form)), error, sizes)


def thinned(nodes: list[_Node], finished: bool) -> list[_Node]:
    """Leaves out what is larger than another and hardly better; by rising size, that without open parts if unfinished.

    Args:
        nodes: of one weight.
        finished: no step follows.
    """
    kept: list[_Node] = []
    for node in sorted(nodes, key=lambda node: (node.bytes - (0 if finished else node.open), node.error)):
        if not kept or node.error < DISTINCT * min(other.error for other in kept):
            kept.append(node)
    return kept


def extend(steps: Steps, form: Packed, method: WeightMethod) -> Packed:
    """Packs by one more step what was packed by some: equal to packing by all of them at once.

    Args:
        steps: those that made `form`.
        form: a packed weight.
        method: the step to be added.
    """
    if len(steps) == 1:
        return pack_rest(steps[0], form, (method,))
    parts: dict[str, Any] = {
        name: extend(steps[1:], part, method) if name in steps[0].into and isinstance(part, Packed) else part
        for name, part in form.parts.items()
    }
    return replace(form, parts=parts)


def _open(steps: Steps, form: Packed) -> Iterator[int]:
    """Yields the bytes of each float that a step after these would be given."""
    for name, part in form.parts.items():
        if name not in steps[0].into:
            continue
        if isinstance(part, Packed):
            yield from _open(steps[1:], part)
        elif len(steps) == 1:
            yield part.numel() * part.element_size()


def _estimate(leaf: Tensor) -> float:
    if leaf.dtype.is_floating_point:
        return leaf.numel() * leaf.element_size()
    return entropy_bits(leaf.cpu().numpy()) / 8
