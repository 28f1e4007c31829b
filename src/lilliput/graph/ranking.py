"""How much each channel of a group counts: the sum of the scores of all that would go with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.graph.groups import Group

Score = Callable[[str, Tensor], Tensor | None]
"""`score(name, weight)`: of the weight's shape, higher is kept; None where there is none."""


def squares(name: str, weight: Tensor) -> Tensor:
    """The score that needs no criterion: w^2."""
    return weight.detach().float().square()


def channel_scores(group: Group, state: Mapping[str, Tensor], score: Score) -> Tensor:
    """Adds up, for each channel, the scores of what goes with it in all members.

    Args:
        group: of channels.
        state: parameters by name; members that aren't there don't count.
        score: of weights.

    Returns:
        Float, (channels,).

    Raises:
        MethodError: scores aren't numbers; names the weight.

    >>> from lilliput.graph.groups import Member
    >>> group = Group("w", 2, (Member("w", 0, ((0,), (1,))),))
    >>> channel_scores(group, {"w": torch.tensor([[1.0, 2.0], [3.0, 0.0]])}, squares)
    tensor([5., 9.])
    """
    total = torch.zeros(group.size)
    for member in group.members:
        weight = state.get(member.parameter)
        if weight is None or not weight.is_floating_point():
            continue
        scores = score(member.parameter, weight)
        if scores is None or scores.shape != weight.shape:
            continue
        scores = scores.float()
        if bool(scores.isnan().any()):
            raise MethodError(f"cut: the criterion gives NaN for {member.parameter}; check weights and data")
        along = scores.movedim(member.axis, 0).flatten(1).sum(1) if weight.dim() > 1 else scores
        counts = torch.tensor([len(places) for places in member.places])
        owner = torch.arange(group.size).repeat_interleave(counts)
        flat = torch.tensor([index for places in member.places for index in places])
        total.index_add_(0, owner, along[flat].cpu())
    return total
