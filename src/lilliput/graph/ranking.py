"""How much each channel of a group counts: the sum of the scores of all that would go with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.method import find
from lilliput.graph.groups import Group, Member

Score = Callable[[str, Tensor], Tensor | None]
"""`score(name, weight)`: of the weight's shape, higher is kept; None where there is none."""


def squares(name: str, weight: Tensor) -> Tensor:
    """The score that needs no criterion: w^2."""
    return weight.detach().float().square()


def score_of(criterion: Any) -> Score:
    """Returns the score that a criterion stands for.

    Args:
        criterion: None for squares, a name in `prune`, an object with `score(weight, stats)`, or scores by name.

    Raises:
        MethodError: an unknown criterion.
    """
    if criterion is None:
        return squares
    if isinstance(criterion, Mapping):
        return lambda name, weight: criterion.get(name)
    method = find("prune", criterion)() if isinstance(criterion, str) else criterion
    return lambda name, weight: method.score(weight.detach(), None)


def axis_scores(
    state: Mapping[str, Tensor], members: Iterable[Member], score: Score
) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Adds up the scores at each index of each axis that groups hold.

    Args:
        state: parameters by name; members that aren't there don't count.
        members: of the groups.
        score: of weights; asked once for each.

    Returns:
        Sums by parameter and axis, (size of the axis,).

    Raises:
        MethodError: scores aren't numbers; names the weight.
    """
    axes: dict[str, set[int]] = {}
    for member in members:
        axes.setdefault(member.parameter, set()).add(member.axis)
    found = {}
    for name, several in axes.items():
        weight = state.get(name)
        scores = score(name, weight) if weight is not None and weight.is_floating_point() else None
        if weight is None or scores is None or scores.shape != weight.shape:
            continue
        for axis in several:
            others = [d for d in range(weight.dim()) if d != axis]
            sums = scores.float().sum(others) if others else scores.float()
            if bool(sums.isnan().any()):
                raise MethodError(f"cut: the criterion gives NaN for {name}; check weights and data")
            found[name, axis] = sums.detach().cpu().double().numpy()
    return found


def channel_sums(group: Group, sums: Mapping[tuple[str, int], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Adds up, for each channel, the scores of what goes with it in all members.

    Args:
        group: of channels.
        sums: what `axis_scores` gave.

    Returns:
        One score for each channel.
    """
    total = np.zeros(group.size)
    for member in group.members:
        along = sums.get((member.parameter, member.axis))
        if along is not None:
            total += np.bincount(member.owners, along[member.indices], group.size)
    return total


def channel_scores(group: Group, state: Mapping[str, Tensor], score: Score) -> Tensor:
    """Adds up, for each channel of one group, the scores of what goes with it in all members.

    Args:
        group: of channels.
        state: parameters by name; members that aren't there don't count.
        score: of weights.

    Returns:
        Float, (channels,).

    Raises:
        MethodError: scores aren't numbers; names the weight.

    >>> from lilliput.graph.groups import Member
    >>> group = Group("w", 2, (Member("w", 0, np.array([0, 1]), np.array([0, 1])),))
    >>> channel_scores(group, {"w": torch.tensor([[1.0, 2.0], [3.0, 0.0]])}, squares)
    tensor([5., 9.])
    """
    return torch.from_numpy(channel_sums(group, axis_scores(state, group.members, score))).float()
