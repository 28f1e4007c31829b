"""Cross-layer equalization: channels are scaled so that the weights that make and take them reach equally far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range
from lilliput.core.layers import tensors_of
from lilliput.graph.ir import Graph
from lilliput.graph.scaling import Space, spaces_of

SLIGHT = 1e-4
"""A change of all factors by less than this part ends the rounds."""


@dataclass(frozen=True)
class Equalize:
    """Divides each channel by s = sqrt(r1 / r2) where it is made, multiplies by it where it is taken.

    Nagel et al. 2019 (arXiv 1906.04721), section 4.1: r1 is the largest |weight| of the row that makes the channel, r2
    that of the column that takes it; both are sqrt(r1 r2) afterwards. Where a sum joins several makers or takers, the
    largest of each counts. What the network computes stays the same. Needs no data. Only channels between which all
    is homogeneous can be scaled: ReLU, not ReLU6 or a sigmoid. Worth it for weights with one scale a tensor.

    Attributes:
        rounds: over all channels, at most: a layer's rows and columns are scaled in turn.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[8.0, 1.0], [1.0, 1.0]])), model[2].weight.data.fill_(2.0)
    >>> from lilliput.graph.trace import trace
    >>> Equalize().rewrite(model, trace(model, torch.rand(1, 2))[0])
    ['2 channels in 1 place equalized']
    >>> float(model[0].weight[0].detach().abs().max()), float(model[2].weight[:, 0].detach().abs().max())
    (4.0, 4.0)
    """

    rounds: int = 20

    when: ClassVar[str] = "before"
    needs_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("quantize/passes/equalize", "rounds", self.rounds, 1, 1000)

    def rewrite(
        self, model: nn.Module, graph: Graph, data: Any = None, reference: nn.Module | None = None
    ) -> list[str]:
        """Scales weights and biases in place.

        Args:
            model: plain, in eval mode.
            graph: of the model.
            data: isn't used.
            reference: isn't used.

        Returns:
            What was done, in a line.
        """
        state = tensors_of(model)
        spaces = spaces_of(graph, state)
        for _ in range(self.rounds):
            if not max((_scaled(space, state) for space in spaces), default=0.0) > SLIGHT:
                break
        count, places = sum(space.channels for space in spaces), len(spaces)
        return [f"{count} channels in {places} place{'s' if places != 1 else ''} equalized"]


def _scaled(space: Space, state: Mapping[str, Tensor]) -> float:
    """Equalizes one space; returns by how much the factors differ from 1, as a logarithm."""
    made, taken = space.made(state).double(), space.taken(state).double()
    live = (made > 0) & (taken > 0)
    factors = torch.where(live, (made / taken.clamp_min(1e-300)).sqrt(), torch.ones_like(made))
    factors = factors.clamp(1e-6, 1e6)
    space.divide(factors, state)
    return float(factors.log().abs().max())
