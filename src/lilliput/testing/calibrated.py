"""Stats for the suites: what a method needs of a weight, collected from a layer that holds it, on fixed random data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import LilliputError
from lilliput.core.stats import Stats
from lilliput.observe.collect import collect
from lilliput.testing.spread import generator

LAYERS: dict[int, Any] = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class Probe(nn.Module):
    """One layer, a ReLU, and the mean over places: a network as small as can be."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        inputs, window = weight.shape[1], tuple(weight.shape[2:])
        self.layer = LAYERS[weight.ndim](inputs, len(weight), *([window] if window else []), bias=False)
        value = weight.detach().float()
        self.layer.weight = nn.Parameter(value / (value.abs().max().clamp(min=1e-30)))

    def forward(self, value: Tensor) -> Tensor:
        """Returns (examples, outputs)."""
        result: Tensor = torch.relu(self.layer(value))
        return result if result.ndim == 2 else result.flatten(2).mean(2)


def stats_for(steps: tuple[Any, ...], weight: Tensor) -> Stats | None:
    """Returns what these steps need of a weight, the same each time; None if they need nothing.

    A weight that is no layer's gets stats that say that they are missing.
    """
    needs = frozenset[str]().union(*(step.needs for step in steps))
    if not needs:
        return None
    if weight.ndim not in LAYERS or not weight.numel():
        return Stats(missing=dict.fromkeys(needs, "this is no layer's weight"))
    key = needs, weight.dtype, tuple(weight.shape), hash(tuple(weight.double().flatten().tolist()))
    if key not in _KNOWN:
        _KNOWN[key] = _collected(needs, weight)
    return _KNOWN[key]


_KNOWN: dict[Any, Stats] = {}
"""What was collected already."""


def _collected(needs: frozenset[str], weight: Tensor) -> Stats:
    source = generator(sum(weight.shape))
    window = tuple(2 * size for size in weight.shape[2:])
    inputs = torch.randn(24, weight.shape[1], *window, generator=source)
    inputs = (inputs + 0.5 * inputs.roll(1, 1)) * torch.rand(weight.shape[1], *[1] * len(window), generator=source)
    targets = torch.randint(len(weight), (24,), generator=source)
    data = list(zip(torch.split(inputs, 12), torch.split(targets, 12)))
    try:
        return collect(Probe(weight), {"layer.weight": needs}, data)["layer.weight"]
    except LilliputError as error:
        return Stats(missing=dict.fromkeys(needs, str(error)))
