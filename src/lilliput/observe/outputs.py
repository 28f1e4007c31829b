"""What comes out of a layer, after the activation function that follows: a few numbers for each of its channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.errors import DataError, MethodError
from lilliput.observe.call import Call

MOST_EXAMPLES = 1 << 14
"""Examples whose pooled activations are kept; later ones are passed over."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """Activations of each channel over all examples and places.

    Attributes:
        count: values of each channel.
        zeros: how many of them are exactly zero, (channels,), int64.
        mean: (channels,), float64.
        square: mean of the squares, (channels,), float64.
    """

    count: int
    zeros: Tensor
    mean: Tensor
    square: Tensor


@dataclass(frozen=True, eq=False)
class Peaks:
    """The largest activation of each channel in each example, by class.

    Attributes:
        counts: examples of each class, (classes,).
        means: (classes, channels), float64; 0 for a class without examples.
        squares: sum of squared distances from the class's mean, (classes, channels), float64.
    """

    counts: Tensor
    means: Tensor
    squares: Tensor


@dataclass(frozen=True, eq=False)
class Taylor:
    """First-order change of the cost if a channel's map were zero (Molchanov et al. 2017).

    Attributes:
        change: mean over the examples of |mean over places of dC/dz * z|, (channels,), float64.
        macs: multiplications for one map of one channel.
        count: examples.
    """

    change: Tensor
    macs: int
    count: int


def over_filters(values: Tensor, weight: Tensor, method: str) -> Tensor:
    """Gives every weight an equal part of the value of its output channel, so that they sum to it.

    Args:
        values: (channels,).
        weight: (channels, ...).
        method: for the message.

    Raises:
        MethodError: the stats are of another layer.
    """
    if weight.ndim < 1 or len(values) != weight.shape[0]:
        raise MethodError(f"{method}: stats of {len(values)} channels for a weight of shape {tuple(weight.shape)}")
    kind = torch.promote_types(weight.dtype, torch.float32)
    parts = values.to(kind) / max(weight[:1].numel(), 1)
    return parts.reshape(-1, *[1] * (weight.ndim - 1)).expand(weight.shape).contiguous()


class OutputsOf:
    """Collects `Outputs`."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: tuple[Tensor, Tensor, Tensor] | None = None

    def see(self, call: Call) -> None:
        """Takes one call of the layer."""
        maps = call.maps
        zeros = (maps == 0).sum((0, 2))
        mean, square = maps.sum((0, 2), dtype=torch.float64), maps.double().square().sum((0, 2))
        self.count += maps.shape[0] * maps.shape[2]
        before = self.sums
        self.sums = (
            (zeros, mean, square) if before is None else (before[0] + zeros, before[1] + mean, before[2] + square)
        )

    def result(self) -> Outputs | None:
        """Returns what was seen, or None if nothing was."""
        if self.sums is None or not self.count:
            return None
        return Outputs(self.count, self.sums[0], self.sums[1] / self.count, self.sums[2] / self.count)


class PooledOf:
    """Collects the mean over the places of each channel's map, (examples, channels), of the first examples."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.count = 0

    def see(self, call: Call) -> None:
        """Takes one call of the layer."""
        pooled = call.maps.mean(2)[: MOST_EXAMPLES - self.count]
        self.count += len(pooled)
        self.parts.append(pooled.clone())

    def result(self) -> Tensor | None:
        """Returns what was seen, or None if nothing was."""
        return torch.cat(self.parts) if self.count else None


class PeaksOf:
    """Collects `Peaks`, by Chan's update of means and squares."""

    def __init__(self) -> None:
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.means = self.squares = torch.zeros(0, 0, dtype=torch.float64)

    def see(self, call: Call) -> None:
        """Takes one call of the layer.

        Raises:
            DataError: the batch has no class numbers.
        """
        peaks, target = call.maps.amax(2).double(), call.target
        if not isinstance(target, Tensor) or target.dtype.is_floating_point or target.shape != (len(peaks),):
            raise DataError("needs targets: give (inputs, targets) with one class number for each example")
        self._grow(int(target.max()) + 1, peaks)
        for number in torch.unique(target).tolist():
            own = peaks[target == number]
            before, added = int(self.counts[number]), len(own)
            mean = own.mean(0)
            gap = mean - self.means[number]
            self.squares[number] += (own - mean).square().sum(0) + gap.square() * before * added / (before + added)
            self.means[number] += gap * added / (before + added)
            self.counts[number] += added

    def _grow(self, classes: int, peaks: Tensor) -> None:
        missing = classes - len(self.counts)
        if missing <= 0:
            return
        self.counts = torch.cat([self.counts, self.counts.new_zeros(missing)])
        empty = peaks.new_zeros(missing, peaks.shape[1])
        self.means = torch.cat([self.means.reshape(-1, peaks.shape[1]).to(peaks.device), empty])
        self.squares = torch.cat([self.squares.reshape(-1, peaks.shape[1]).to(peaks.device), empty])

    def result(self) -> Peaks | None:
        """Returns what was seen, or None if nothing was."""
        return Peaks(self.counts, self.means, self.squares) if int(self.counts.sum()) else None


class TaylorOf:
    """Collects `Taylor`: the absolute value is taken for each example, then the mean."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = self.macs = 0

    def see(self, call: Call) -> None:
        """Takes one call of the layer, with the gradient of the batch's mean cost."""
        if call.gradient is None:
            return
        maps, slope = call.maps.double(), call.maps_of(call.gradient).double()
        change = (maps * slope).mean(2).mul(len(maps)).abs().sum(0)
        self.total = change if self.total is None else self.total + change
        self.count += len(maps)
        self.macs = maps.shape[2] * call.module.weight[0].numel()

    def result(self) -> Taylor | None:
        """Returns what was seen, or None if nothing was."""
        return None if self.total is None else Taylor(self.total / self.count, self.macs, self.count)
