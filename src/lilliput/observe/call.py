"""One call of a layer, as those who collect statistics see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""Layers whose inputs and outputs can be told apart by what multiplies the weight."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer.

    Attributes:
        module: the layer.
        input: what goes in; float.
        output: what comes out: of the layer, or of the activation function after it.
        target: the batch's targets, or None.
        gradient: of the batch's mean cost with respect to `output`, or None.
    """

    module: Layer
    input: Tensor
    output: Tensor
    target: Any = None
    gradient: Tensor | None = None

    @property
    def maps(self) -> Tensor:
        """The output as (examples, channels, places)."""
        return self.maps_of(self.output)

    def maps_of(self, value: Tensor) -> Tensor:
        """Returns a tensor of the output's shape as (examples, channels, places)."""
        if isinstance(self.module, nn.Linear):
            flat = value.reshape(value.shape[0] if value.ndim > 1 else 1, -1, value.shape[-1])
            return flat.transpose(1, 2)
        batched = value if value.ndim == len(self.module.kernel_size) + 2 else value[None]
        return batched.flatten(2)


class Observer(Protocol):
    """Collects one need of one weight, call by call, in bounded memory."""

    def see(self, call: Call) -> None:
        """Takes one call of the layer."""
        ...

    def result(self) -> Any:
        """Returns what the need holds, or None if nothing was seen."""
        ...
