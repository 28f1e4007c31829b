"""What goes into a layer: the columns that its weight meets, their ranges and moments, and their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.observe.call import Call, Layer

MOST = 1 << 23
"""Unfolded inputs that exist at a time."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Ranges and moments of each column, over all samples (of a convolution: all places).

    Attributes:
        count: samples.
        low: (groups, columns).
        high: (groups, columns).
        mean: (groups, columns), float64.
        square: mean of the squares, (groups, columns), float64.
    """

    count: int
    low: Tensor
    high: Tensor
    mean: Tensor
    square: Tensor


@dataclass(frozen=True, eq=False)
class Gram:
    """X^T X / n of a layer's inputs.

    Attributes:
        matrix: (groups, columns, columns), symmetric; columns in the order of `weight.flatten(1)`.
        count: samples n.
    """

    matrix: Tensor
    count: int


@dataclass(frozen=True, eq=False)
class Samples:
    """Some of the rows that a layer's weight is multiplied with, each as likely as any other.

    Attributes:
        rows: (groups, samples, columns); columns in the order of `weight.flatten(1)`.
    """

    rows: Tensor


def pieces(module: Layer, value: Tensor) -> Iterator[Tensor]:
    """Yields the rows that a layer's weight is multiplied with, a bounded part at a time.

    Args:
        module: linear, or a convolution of 1 to 3 dimensions with any stride, padding, dilation and groups.
        value: what goes into it.

    Yields:
        (groups, samples, columns), such that output = rows @ weight.reshape(groups, -1, columns)^T.

    >>> [part.shape for part in pieces(nn.Conv2d(2, 3, 3), torch.ones(5, 2, 4, 4))]
    [torch.Size([1, 20, 18])]
    """
    if isinstance(module, nn.Linear):
        yield value.reshape(1, -1, module.in_features)
        return
    sizes = len(module.kernel_size)
    if value.ndim == sizes + 1:
        value = value[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    sides = module._reversed_padding_repeated_twice
    padded = functional.pad(value, sides, mode=mode) if any(sides) else value
    windows = padded
    for axis, (size, step, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation), 2):
        windows = windows.unfold(axis, (size - 1) * gap + 1, int(step))[..., ::gap]
    examples, places = windows.shape[0], windows.shape[2 : 2 + sizes].numel()
    channels, area = module.in_channels // module.groups, windows.shape[2 + sizes :].numel()
    stride = max(1, MOST // max(module.groups * places * channels * area, 1))
    for start in range(0, examples, stride):
        part = windows[start : start + stride]
        part = part.reshape(len(part), module.groups, channels, *part.shape[2:])
        # Places lie one after the other in memory, as they do in the input: that is fast to copy and to multiply.
        axes = (1, 2, *range(3 + sizes, 3 + 2 * sizes), 0, *range(3, 3 + sizes))
        yield part.permute(axes).reshape(module.groups, channels * area, -1).mT


class MomentsOf:
    """Collects `Moments`; see there."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: tuple[Tensor, Tensor] | None = None
        self.ends: tuple[Tensor, Tensor] | None = None

    def see(self, call: Call) -> None:
        """Takes one call of the layer."""
        for rows in pieces(call.module, call.input):
            if not rows.shape[1]:
                continue
            sums = rows.sum(1, dtype=torch.float64), torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
            ends = rows.amin(1), rows.amax(1)
            self.count += rows.shape[1]
            if self.sums is None or self.ends is None:
                self.sums, self.ends = sums, ends
            else:
                self.sums = self.sums[0] + sums[0], self.sums[1] + sums[1]
                self.ends = torch.minimum(self.ends[0], ends[0]), torch.maximum(self.ends[1], ends[1])

    def result(self) -> Moments | None:
        """Returns what was seen, or None if nothing was."""
        if self.sums is None or self.ends is None:
            return None
        return Moments(self.count, *self.ends, self.sums[0] / self.count, self.sums[1] / self.count)


class GramOf:
    """Collects `Gram`: one matrix of columns x columns a group is all that is kept."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None

    def see(self, call: Call) -> None:
        """Takes one call of the layer."""
        for part in pieces(call.module, call.input):
            rows = part if part.dtype == torch.float64 else part.float()
            if self.total is None:
                self.total = rows.new_zeros(rows.shape[0], rows.shape[2], rows.shape[2])
            if len(rows) > 1:
                self.total.baddbmm_(rows.mT, rows)
            else:
                self.total[0].addmm_(rows[0].T, rows[0])
            self.count += rows.shape[1]

    def result(self) -> Gram | None:
        """Returns what was seen, or None if nothing was."""
        if self.total is None or not self.count:
            return None
        matrix, self.total = self.total.div_(self.count), None
        return Gram(matrix, self.count)


class SamplesOf:
    """Collects `Samples`: rows with the largest of random keys, so that memory is bounded and no batch preferred."""

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self.source = torch.Generator().manual_seed(0)
        self.keys: Tensor | None = None
        self.rows: Tensor | None = None

    def see(self, call: Call) -> None:
        """Takes one call of the layer."""
        for part in pieces(call.module, call.input):
            keys = torch.rand(part.shape[1], generator=self.source)
            rows = part
            if self.keys is not None and self.rows is not None:
                # Only what could still be among the largest is looked at and copied.
                near = (
                    (keys > self.keys.min()) if len(self.keys) == self.most else torch.ones_like(keys, dtype=torch.bool)
                )
                rows = torch.cat([self.rows, part[:, near.to(part.device)]], 1)
                keys = torch.cat([self.keys, keys[near]])
            chosen = keys.topk(min(self.most, len(keys))).indices
            self.keys, self.rows = keys[chosen], rows[:, chosen.to(rows.device)].clone()

    def result(self) -> Samples | None:
        """Returns what was seen, or None if nothing was."""
        if self.rows is None or not self.rows.shape[1]:
            return None
        return Samples(self.rows)
