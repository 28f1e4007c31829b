"""Plans under a budget of energy: what each setting of each layer costs on a device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lilliput.core.data import call
from lilliput.core.errors import BudgetError
from lilliput.core.packed import Packed, unpack
from lilliput.hardware.assess import assess
from lilliput.hardware.dataflow import Analysis, analyse
from lilliput.hardware.device import Device
from lilliput.hardware.layer import Layer
from lilliput.search.draft import Draft, Drafter
from lilliput.search.layers import code_bits, factors_of, layers_of
from lilliput.search.losses import Guide
from lilliput.search.space import Item, Space
from lilliput.solve.knapsack import knapsack

SHARES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0)
"""Weights of energy beside size where both are limited: of the plans that hold, the one of least loss is taken."""

ROUNDS = 12
"""Times that a choice is made again because some of its losses were only estimated."""


@dataclass(frozen=True)
class Energies:
    """Energy of a network's layers on a device.

    Attributes:
        device: on which.
        costs: of each setting of each item, in the device's unit.
        rest: of layers that no item is about.
        original: of the network as it is, at the device's own number of bits.
    """

    device: Device
    costs: Sequence[Sequence[float]]
    rest: float
    original: float

    @classmethod
    def of(cls, space: Space, device: Device) -> Energies:
        """Assesses every setting: bits of its codes, and the part that isn't zero.

        A setting without codes is computed with the device's own bits; a factorized one as the chain of its factors.
        What goes into a layer has the zeros that it has uncompressed.

        Args:
            space: what can be chosen; its frame has an example.
            device: on which.

        Raises:
            BudgetError: there is no example.
            DeviceError: a layer that the device can't run.
        """
        model, example = space.frame.model, space.frame.example
        if example is None:
            raise BudgetError("a budget of energy needs the sizes of what goes into layers: give data or example=")
        layers, _ = layers_of(model, lambda: call(model, example), device.word_bits)
        found: dict[str, list[tuple[Layer, Analysis]]] = defaultdict(list)
        for layer in layers:
            found[layer.name].append((layer, analyse(layer, device)))
        original = sum(one.energy(layer, device.costs).total for runs in found.values() for layer, one in runs)
        costs = []
        for item in space.items:
            runs = [] if item.vectors else found.pop(item.weights[0].name.removesuffix(".weight"), [])
            costs.append([_of_setting(space, item, place, runs, device) for place in range(len(item.candidates))])
        rest = sum(one.energy(layer, device.costs).total for runs in found.values() for layer, one in runs)
        return cls(device, costs, rest, original)

    def total(self, chosen: Sequence[int]) -> float:
        """Returns the energy of a whole plan."""
        return self.rest + sum(row[place] for row, place in zip(self.costs, chosen))


def _of_setting(space: Space, item: Item, place: int, runs: Sequence[tuple[Layer, Analysis]], device: Device) -> float:
    if not runs:
        return 0.0
    ((name, form),) = space.forms(item, place).items()
    total = 0.0
    for layer, analysis in runs:
        chain = factors_of(layer, form, device.word_bits)
        if chain != [layer]:
            total += sum(assess(each, device).energy.total for each in chain)
            continue
        value = unpack(form) if isinstance(form, Packed) else form
        bits = min(device.word_bits, code_bits({name: form}).get(name, device.word_bits))
        density = int(torch.count_nonzero(value)) / max(value.numel(), 1)
        total += analysis.energy(replace(layer, weight_bits=bits, weight_density=density), device.costs).total
    return total


def for_energy(drafter: Drafter, energies: Energies, limit: float, size: int | None = None) -> Draft:
    """Returns the plan of least loss that takes at most `limit` of energy, and at most `size` bytes.

    Args:
        drafter: makes plans.
        energies: of its space.
        limit: in the device's unit.
        size: of the file; None for any.

    Raises:
        BudgetError: even the cheapest settings take more; names how much, or that no plan holds both.
    """
    least = energies.rest + sum(min(row) for row in energies.costs)
    if least > limit:
        raise BudgetError(
            f"no plan takes {_words(limit, energies)}; the least is {_words(least, energies)}, and "
            "narrower layers, by a budget of MACs, take less"
        )
    best: tuple[float, Draft] | None = None
    for share in SHARES if size is not None else SHARES[:1]:
        for guide in drafter.losses.guides():
            chosen = _chosen(drafter, energies, guide, (limit, size, share))
            if chosen is None or energies.total(chosen) > limit * (1 + 1e-9):
                continue
            draft = drafter.written(chosen)
            if size is not None and draft.size > size:
                continue
            loss = drafter.losses.whole(chosen)
            if best is None or loss < best[0]:
                best = loss, draft
    if best is None:
        raise BudgetError(
            f"no plan found takes {_words(limit, energies)} and {size or 0:,} bytes: allow more of one of them"
        )
    sure = best[1].confirmed()
    return sure if size is None or sure.size <= size else best[1]


def _chosen(
    drafter: Drafter, energies: Energies, guide: Guide, asked: tuple[float, int | None, float]
) -> tuple[int, ...] | None:
    """One knapsack for a limit, a size and the share of the energy; losses that were estimated are measured."""
    limit, size, share = asked
    room = limit - energies.rest
    costs: list[list[float]] = [[share * cost / room for cost in row] for row in energies.costs]
    if size is not None and share < 1:
        frame = drafter.smallest_draft().size - drafter.cost([0] * len(costs))
        left = max(1, size - frame)
        costs = [
            [cost + (1 - share) * taken / left for cost, taken in zip(row, bytes_)]
            for row, bytes_ in zip(costs, drafter.costs())
        ]
    found = knapsack(costs, guide(), 1.0)
    for _ in range(ROUNDS):
        if found is None or not drafter.losses.refine(found.chosen):
            break
        found = knapsack(costs, guide(), 1.0)
    return None if found is None else found.chosen


def _words(energy: float, energies: Energies) -> str:
    unit = energies.device.costs.unit
    return f"{energy:.4g} {unit} on {energies.device.name} ({energy / energies.original:.1%} of the uncompressed)"
