"""`cut`: a smaller model by its groups, each verified against zeroed channels and rolled back where it fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lilliput.core.cut import Cut, Resize
from lilliput.core.errors import MethodError
from lilliput.graph.atoms import Label
from lilliput.graph.bounds import first_line
from lilliput.graph.constants import constants_of
from lilliput.graph.cut import Cuts, compose, cut_tensors, note_cuts, noted_cuts, smaller_copy, state_of
from lilliput.graph.groups import Analysis, Group, analyse, removed_indices
from lilliput.graph.ranking import Score, axis_scores, channel_sums, score_of
from lilliput.graph.rewrite import rewrite
from lilliput.graph.run import GraphModule
from lilliput.graph.sizes import labels_by_class, resizes
from lilliput.graph.verify import Trial, equal, run

Chosen = tuple[Group, NDArray[np.int64], NDArray[np.int64]]
"""A group, the channels that go, and their classes."""
Share = float | Mapping[str, float] | Callable[[Group], float]


def cut(
    model: nn.Module,
    share: Share,
    example: Any,
    *,
    criterion: Any = None,
    multiple: int = 1,
    seconds: float = 300.0,
    absorb: bool = False,
) -> tuple[nn.Module, Cuts]:
    """Removes a share of the channels of each group that can lose some.

    In eval mode the smaller model computes what the model computes with those channels set to zero in all parameters
    that hold them. That is verified: all groups at once, and where it fails by halves, until the groups that fail are
    found; they are kept whole, and the reason said.

    Args:
        model: any module; it is not changed. A `GraphModule`, as `load` gives it, is cut without a class.
        share: of the channels of each group that go, 0 to 1; or by pattern of a member's name, the first match wins;
            or a function of the group.
        example: as for `trace`.
        criterion: scores weights, higher is kept: a name in `prune`, an object with `score(weight, stats)`, or the
            scores themselves by the weight's name; by default squares, so that a channel's score is the sum of
            squares of all that goes with it.
        multiple: the number of channels that stay is rounded up to a multiple of it.
        seconds: after which no further half is tried, if all groups at once have failed.
        absorb: what a channel gives when only its incoming weights are zero (its bias, through norms and activations)
            goes into the biases, or running means, behind it, where that is exact; so less is lost.

    Returns:
        The smaller model, and the cuts: data for a file, with a line for each group.

    Raises:
        ModelError: the model can't be traced.
        MethodError: a share out of range, an unknown criterion.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> smaller, cuts = cut(model, 0.5, torch.rand(1, 4))
        >>> smaller[0].out_features, smaller[2].in_features, cuts.lines[0]
        (3, 3, '0.weight: removed 3 of 6 channels')
    """
    until = time.monotonic() + seconds
    if multiple < 1:
        raise MethodError(f"cut: multiple must be at least 1, it is {multiple}")
    trial = Trial(model, example)
    # What is absorbed is found on layers, which a recording doesn't have.
    analysis = analyse(model, example, exported=absorb, copied=trial.model)
    wanted = _wanted(model, analysis, share, score_of(criterion), multiple)
    work = _Work(model, analysis, trial.enliven(), until)
    with torch.no_grad():
        work.extend(wanted)
        values, lines = work.absorbed() if absorb else ({}, [])
        cuts = replace(work.cuts(work.accepted), values=values)
        smaller = work.made(cuts)
    for path, module in smaller.named_modules():
        module.training = model.get_submodule(path).training
    cuts = replace(cuts, lines=(*_lines(analysis, work), *lines))
    note_cuts(smaller, compose(noted_cuts(model), cuts))
    return smaller, cuts


def _wanted(model: nn.Module, analysis: Analysis, share: Share, score: Score, multiple: int) -> list[Chosen]:
    """The weakest channels of each group."""
    numbers = [_number(group, share, multiple) if group.members else 0 for group in analysis.groups]
    members = [member for group, number in zip(analysis.groups, numbers) if number for member in group.members]
    scores = axis_scores(dict(model.named_parameters(remove_duplicate=False)), members, score)
    wanted: list[Chosen] = []
    for group, units, number in zip(analysis.groups, analysis.units, numbers):
        if number:
            gone = np.sort(np.argsort(channel_sums(group, scores), kind="stable")[:number])
            wanted.append((group, gone, units[gone]))
    return wanted


def _number(group: Group, share: Share, multiple: int) -> int:
    """How many channels go."""
    part: float = 0.0
    if isinstance(share, Mapping):
        names = [member.parameter for member in group.members]
        part = next((value for key, value in share.items() if any(fnmatchcase(name, key) for name in names)), 0.0)
    else:
        part = share(group) if callable(share) else share
    if not 0 <= part <= 1:
        raise MethodError(f"cut: a share must be between 0 and 1, it is {part}")
    first = group.members[0].owners
    step = multiple // math.gcd(multiple, int((first == first[0]).sum()))
    kept = max(group.size - int(part * group.size), 1)
    return max(group.size - math.ceil(kept / step) * step, 0)


@dataclass
class _Work:
    """What was accepted so far, and how a step is tried.

    Attributes:
        model: the user's, unchanged.
        analysis: its groups.
        trial: what is run.
        until: when to stop.
        accepted: groups that are cut.
        sizes: attributes that follow.
        reasons: why others are kept.
        tried: how many steps.
    """

    model: nn.Module
    analysis: Analysis
    trial: Trial
    until: float
    accepted: list[Chosen] = field(default_factory=list)
    sizes: dict[tuple[str, str], Resize] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    tried: int = 0

    # What the network with zeroed channels gave, for the last choice of channels.
    _wanted: tuple[Sequence[Chosen], list[Tensor]] | None = None

    @cached_property
    def labels(self) -> dict[int, list[Label]]:
        """The labels in which each class occurs."""
        return labels_by_class(self.analysis)

    def extend(self, batch: Sequence[Chosen]) -> None:
        """Accepts groups all at once, or by halves."""
        if not batch:
            return
        if (self.accepted or self.tried) and time.monotonic() > self.until:
            self.reasons |= {group.name: "the time given for verification ran out" for group, _, _ in batch}
            return
        failure = ""
        tried: list[Any] = []
        chosen = [*self.accepted, *batch]
        for boldness in (0, 1, 2) if len(batch) == 1 else (0, 1):
            sizes = self.guess(batch, boldness)
            if sizes in tried:
                continue
            tried.append(sizes)
            trouble = self.trouble(chosen, sizes)
            self.tried += 1
            if not trouble:
                self.accepted = chosen
                self.sizes = self.fewest(sizes)
                return
            failure = failure or trouble
        if len(batch) == 1:
            self.reasons[batch[0][0].name] = failure
            return
        middle = len(batch) // 2
        self.extend(batch[:middle])
        self.extend(batch[middle:])

    def fewest(self, sizes: dict[tuple[str, str], Resize]) -> dict[tuple[str, str], Resize]:
        """Takes back each guess that isn't needed."""
        for name in dict.fromkeys(attribute for _, attribute in sizes.keys() - self.sizes.keys()):
            fewer = {key: size for key, size in sizes.items() if key[1] != name or key in self.sizes}
            if fewer != sizes and not self.trouble(self.accepted, fewer):
                sizes = fewer
        return sizes

    def gone(self, chosen: Sequence[Chosen]) -> Any:
        """For each atom whether it is removed."""
        roots = np.zeros(self.analysis.flow.atoms.count, bool)
        for _, _, classes in chosen:
            roots[classes] = True
        return roots[self.analysis.classes.root]

    def guess(self, batch: Sequence[Chosen], boldness: int) -> dict[tuple[str, str], Resize]:
        """Attributes that follow, with those of the groups accepted before."""
        if isinstance(self.model, GraphModule) or not boldness:
            return dict(self.sizes)
        gone = self.gone([*self.accepted, *batch])
        found = dict(self.sizes)
        for group, _, classes in batch:
            labels = {id(label): label for label in self.labels.get(int(classes[0]), [])}
            for change in resizes(self.model, group, labels.values(), gone, boldness):
                key = change.module, change.attribute
                before = found.get(key, change)
                if before.old == change.old:
                    both = zip(change.old, before.new, change.new)
                    change = replace(change, new=tuple(a if b == o else b for o, a, b in both))  # noqa: PLW2901
                found[key] = change
        return found

    def cuts(self, chosen: Sequence[Chosen], sizes: Mapping[tuple[str, str], Resize] | None = None) -> Cuts:
        """The cuts as data."""
        removed = removed_indices([(group, channels) for group, channels, _ in chosen])
        shapes = self.analysis.flow.shapes
        cuts = []
        for (name, axis), indices in removed.items():
            stay = np.ones(shapes[name][axis], bool)
            stay[indices] = False
            cuts.append(Cut(name, axis, tuple(np.flatnonzero(stay).tolist()), len(stay)))
        return Cuts(tuple(cuts), sizes=tuple((self.sizes if sizes is None else sizes).values()))

    def made(self, cuts: Cuts) -> nn.Module:
        """A smaller model, of memory of its own."""
        if not isinstance(self.model, GraphModule):
            return smaller_copy(self.model, cuts)
        return self.rewritten(self.accepted, self.model, cuts)

    def rewritten(self, chosen: Sequence[Chosen], model: nn.Module, cuts: Cuts) -> nn.Module:
        """A smaller graph."""
        tensors = state_of(model)
        graph = rewrite(self.analysis.flow, self.gone(chosen))
        tensors = {name: value for name, value in tensors.items() if name not in graph.aliases}
        tensors = {name: value.clone() for name, value in cut_tensors(tensors, cuts.cuts).items()}
        return GraphModule(graph, tensors | dict(cuts.values))

    def ran(self, chosen: Sequence[Chosen], cuts: Cuts) -> list[Tensor]:
        """What the smaller model gives."""
        if isinstance(self.model, GraphModule):
            return run(self.rewritten(chosen, self.trial.model, cuts), self.trial.example)
        return self.trial.run(cuts)

    def absorbed(self) -> tuple[dict[str, Tensor], list[str]]:
        """New biases and means, if they do what they should."""
        removed = removed_indices([(group, channels) for group, channels, _ in self.accepted])
        silenced, values = constants_of(self.analysis, removed, self.trial.example)
        cuts = self.cuts(self.accepted)
        kept = {one.parameter: list(one.kept) for one in cuts.cuts if one.axis == 0}
        smaller = {name: value[kept[name]] if name in kept else value for name, value in values.items()}
        self.trial = Trial(self.model, self.trial.example).keep()
        wanted = self.trial.run(Cuts((), silenced))
        got = self.ran(self.accepted, replace(cuts, values=smaller))
        if all(equal(one, two) for one, two in zip(wanted, got)):
            return smaller, []
        return {}, ["constants of removed channels are not absorbed: the network doesn't give the same outputs then"]

    def trouble(self, chosen: Sequence[Chosen], sizes: Mapping[tuple[str, str], Resize]) -> str:
        """What is wrong with the smaller model; empty if it computes what the zeroed one does."""
        cuts = self.cuts(chosen, sizes)
        try:
            got = self.ran(chosen, cuts)
            if self._wanted is None or self._wanted[0] is not chosen:
                self._wanted = chosen, self.trial.run_zeroed(cuts)
        # Whatever the user's own code raises at sizes that it doesn't know.
        except Exception as error:
            return f"the model can't run without some of them ({type(error).__name__}: {first_line(error)[:120]})"
        wanted = self._wanted[1]
        if len(wanted) != len(got) or any(not equal(one, two) for one, two in zip(wanted, got)):
            return "removing some of them doesn't give what zeroing them gives"
        return ""


def _lines(analysis: Analysis, work: _Work) -> list[str]:
    lost = {group.name: len(channels) for group, channels, _ in work.accepted}
    lines = []
    for group in analysis.groups:
        reason = group.reason or work.reasons.get(group.name)
        if group.name in lost and not group.reason:
            lines.append(f"{group.name}: removed {lost[group.name]} of {group.size} channels")
        elif reason:
            lines.append(f"{group.name}: kept whole because {reason}")
    return lines
