"""A systolic array of a TPU's kind, cycle by cycle: weights stand, inputs go right, partial sums go down."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput.core.errors import DeviceError
from lilliput.hardware.device import Device
from lilliput.hardware.layer import Layer

Values = NDArray[np.int64]
ACCUMULATORS = 4096
"""Sums for each column in TPU v1; half of them are filled while the other half is emptied."""


@dataclass(frozen=True)
class Grid:
    """An array of rows x columns of multiply-accumulators.

    Attributes:
        rows: products that are added up, K of a product of matrices at a time.
        columns: outputs at a time.
        load: cycles in which the weights of one tile arrive; at least one for each row.
        double: the next tile's weights arrive while this one computes.

    >>> Grid(4, 6).tile_cycles(10)
    18
    """

    rows: int
    columns: int
    load: int = 0
    double: bool = True

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise DeviceError(f"a systolic array of {self.rows} x {self.columns}; both must be at least 1")
        if self.load < 0:
            raise DeviceError(f"a tile's weights can't arrive in {self.load} cycles")

    @classmethod
    def of(cls, device: Device) -> Grid:
        """Makes the array of a device, whose weights come from DRAM.

        >>> Grid.of(Device.load("tpu_v1")).load  # 65536 bytes at 34 GB/s and 700 MHz
        1350
        """
        seconds = device.processors * device.word_bits / 8 / device.bandwidth
        return cls(device.rows, device.columns, math.ceil(seconds * device.clock))

    @property
    def loading(self) -> int:
        """Cycles until a tile's weights stand: shifted in row by row, or as fast as memory gives them."""
        return max(self.rows, self.load)

    def tile_cycles(self, inputs: int) -> int:
        """Returns the cycles from the first input of a tile to its last result: T + R + C - 2.

        Args:
            inputs: T, vectors that go through.
        """
        return inputs + self.rows + self.columns - 2

    def starts(self, inputs: int, tiles: int) -> list[int]:
        """Returns in which cycle each tile's first input goes in.

        With double buffering a tile follows as soon as its weights stand and the tile before has taken its inputs in;
        without, once the tile before is through and its own weights have been loaded.
        """
        step = max(inputs, self.loading) if self.double else self.tile_cycles(inputs) + self.loading
        return [self.loading + tile * step for tile in range(tiles)]

    def cycles(self, inputs: int, depth: int, outputs: int) -> int:
        """Returns the cycles of a product of matrices (inputs x depth) (depth x outputs), from the first weight on.

        Args:
            inputs: M, vectors.
            depth: K; as many folds as K / rows.
            outputs: N; as many folds as N / columns.

        >>> Grid(4, 4, double=False).cycles(1, 8, 4)  # 2 (4 + 7)
        22
        """
        tiles = -(-depth // self.rows) * -(-outputs // self.columns)
        return self.starts(inputs, tiles)[-1] + self.tile_cycles(inputs)

    def layer_cycles(self, layer: Layer, accumulators: int = ACCUMULATORS) -> int:
        """Returns the cycles of a layer as a product of matrices: places x ((C / groups) R S) x (K / groups).

        Args:
            layer: any; its groups come one after another.
            accumulators: sums for each column; where the places don't fit into half of them, weights are loaded again.
        """
        room = max(1, accumulators // 2)
        places = layer.batch * layer.output_size[0] * layer.output_size[1]
        filters = layer.filters // layer.groups
        full, rest = divmod(places, room)
        total = full * self.cycles(room, layer.depth, filters) if full else 0
        total += self.cycles(rest, layer.depth, filters) if rest else 0
        return total * layer.groups

    def utilisation(self, layer: Layer) -> float:
        """Returns the part of the multiply-accumulators that work, on average over the layer.

        >>> 0.97 < Grid(256, 256).utilisation(Layer(1024, 1024, size=(256, 256))) < 1
        True
        """
        return layer.macs / (self.layer_cycles(layer) * self.rows * self.columns)

    def multiply(self, left: Tensor, right: Tensor) -> tuple[Tensor, int]:
        """Multiplies whole-number matrices by moving numbers from register to register, cycle by cycle.

        Args:
            left: (M, K), integer.
            right: (K, N), integer: the weights.

        Returns:
            The product (M, N), int64, and the cycle after the last result came out.

        >>> Grid(2, 2).multiply(torch.tensor([[1, 2]]), torch.tensor([[3], [4]]))
        (tensor([[11]]), 5)
        """
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            raise DeviceError(f"matrices of shape {tuple(left.shape)} and {tuple(right.shape)} can't be multiplied")
        inputs, (depth, outputs) = len(left), right.shape
        folds = [(k, n) for n in range(0, outputs, self.columns) for k in range(0, depth, self.rows)]
        weights = np.zeros((len(folds), self.rows, self.columns), dtype=np.int64)
        feeds = np.zeros((len(folds), inputs, self.rows), dtype=np.int64)
        for tile, (k, n) in enumerate(folds):
            part = right[k : k + self.rows, n : n + self.columns].numpy()
            weights[tile, : part.shape[0], : part.shape[1]] = part
            feeds[tile, :, : part.shape[0]] = left[:, k : k + self.rows].numpy()
        results, last = self._stream(weights, feeds)
        product = np.zeros((inputs, outputs), dtype=np.int64)
        for tile, (_, n) in enumerate(folds):
            wide = min(self.columns, outputs - n)
            product[:, n : n + wide] += results[tile, :, :wide]
        return torch.from_numpy(product), last

    def _stream(self, weights: Values, feeds: Values) -> tuple[Values, int]:
        """Sends each tile's vectors through; a number carries which tile and vector it belongs to, or -1."""
        tiles, inputs = feeds.shape[:2]
        starts = self.starts(inputs, tiles)
        row, column = np.arange(self.rows), np.arange(self.columns)
        value = np.zeros((self.rows, self.columns), dtype=np.int64)
        tag, sums = np.full_like(value, -1), np.zeros_like(value)
        results = np.zeros((tiles, inputs, self.columns), dtype=np.int64)
        came, cycle = 0, 0
        while came < tiles * inputs * self.columns:
            # All registers take over at once what their left and upper neighbours held.
            value[:, 1:], tag[:, 1:] = value[:, :-1].copy(), tag[:, :-1].copy()
            above = np.vstack([np.zeros((1, self.columns), dtype=np.int64), sums[:-1]])
            tag[:, 0] = -1
            for i in row:
                # Row i is fed i cycles late, so that its products meet the sum on its way down.
                begun = [t for t, start in enumerate(starts) if 0 <= cycle - i - start < inputs]
                if begun:
                    vector = cycle - i - starts[begun[0]]
                    value[i, 0], tag[i, 0] = feeds[begun[0], vector, i], begun[0] * inputs + vector
            busy = tag >= 0
            own = weights[np.maximum(tag, 0) // inputs, row[:, None], column]
            sums = np.where(busy, above + own * value, 0)
            out = column[busy[-1]]
            results[tag[-1, out] // inputs, tag[-1, out] % inputs, out] = sums[-1, out]
            came += len(out)
            cycle += 1
        return results, cycle
