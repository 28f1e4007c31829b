"""Energy of each layer on a device, of the original network and of the compressed one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.data import call
from lilliput.core.packed import Packed
from lilliput.file.artifact import Artifact
from lilliput.graph.ir import Graph
from lilliput.hardware.assess import assess
from lilliput.hardware.device import Device
from lilliput.hardware.energy import LEVELS, Energy
from lilliput.run.load import fill
from lilliput.search.layers import as_run, code_bits, layers_of

PARTS = ("arithmetic", *LEVELS)
"""Where energy goes."""

OPEN = 64
"""An open size that isn't the first axis, if it may be."""


@dataclass(frozen=True)
class Spent:
    """Energy of one layer, by part, in the device's unit.

    Attributes:
        before: of the original, with the device's own number of bits.
        after: of the compressed one, with the bits of its codes and without its zeros; none where it was cut away.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class Bill:
    """Energy of a network, for one input.

    Attributes:
        device: its name.
        unit: of all figures.
        layers: by name, in the order in which they run.
    """

    device: str
    unit: str
    layers: Mapping[str, Spent]

    @property
    def before(self) -> float:
        """Of all layers of the original."""
        return sum(sum(spent.before.values()) for spent in self.layers.values())

    @property
    def after(self) -> float:
        """Of all layers of the compressed network."""
        return sum(sum(spent.after.values()) for spent in self.layers.values())


def bill(artifact: Artifact, original: nn.Module, device: Device) -> Bill:
    """Runs both networks once on noise and assesses their layers.

    Args:
        artifact: with a graph, which tells the sizes of what goes in.
        original: the network it was made of.
        device: on which.

    Raises:
        ModelError: no layer that a model of hardware knows.
        DeviceError: a layer that the device can't run.
    """
    assert artifact.graph is not None
    values = inputs(artifact.graph)
    example = values[0] if len(values) == 1 else tuple(values)
    smaller = fill(copy.deepcopy(original), artifact)
    before = _assessed(copy.deepcopy(original), example, device, {})
    after = _assessed(smaller, example, device, artifact.weights)
    names = list(dict.fromkeys([*before, *after]))
    spent = {name: Spent(before.get(name, {}), after.get(name, {})) for name in names}
    return Bill(device.name, device.costs.unit, spent)


def _assessed(
    model: nn.Module, example: Any, device: Device, weights: Mapping[str, Packed | Tensor]
) -> dict[str, dict[str, float]]:
    """By layer, the energy of each part; of factorized ones, of the chain of factors."""
    model.eval()
    layers, _ = layers_of(model, lambda: call(model, example), device.word_bits, code_bits(weights))
    found: dict[str, dict[str, float]] = {}
    for layer in as_run(layers, weights, device.word_bits):
        energy = _parts(assess(layer, device).energy)
        held = found.setdefault(layer.name, dict.fromkeys(PARTS, 0.0))
        found[layer.name] = {part: held[part] + energy[part] for part in PARTS}
    return found


def inputs(graph: Graph) -> list[Tensor]:
    """Returns noise of the shapes that a graph takes: a batch of one, other open sizes as near to 64 as may be.

    Whole numbers are zeros, which any embedding takes.
    """
    generator, found = torch.Generator().manual_seed(0), []
    for spec in graph.inputs:
        shape = []
        for axis, size in enumerate(spec.shape):
            if isinstance(size, int):
                shape.append(size)
                continue
            low, high = graph.symbols[size]
            wanted = max(low or 1, 1 if axis == 0 else OPEN)
            shape.append(wanted if high is None else min(wanted, high))
        value = torch.zeros(shape, dtype=spec.dtype)
        found.append(value.normal_(generator=generator) if spec.dtype.is_floating_point else value)
    return found


def _parts(energy: Energy) -> dict[str, float]:
    return {"arithmetic": energy.arithmetic} | {level: float(getattr(energy, level).total) for level in LEVELS}
