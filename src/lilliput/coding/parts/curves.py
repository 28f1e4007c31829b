"""Histograms as curves: log2 frequencies at a few knots, straight lines between, and levels between two curves.

Weights of a network have smooth histograms, and those of its rows and columns differ mostly in width. So a histogram
is stored as the logarithm of its frequencies at knots that lie densely around a centre and ever wider apart away from
it, and histograms of many levels are interpolated between a few such curves (anchors). Everything that a decoder needs
is integer arithmetic: the same bits give the same frequencies on every machine.
"""

import functools
from dataclasses import dataclass

import numpy as np

from lilliput.coding.parts.bits import BitReader, BitWriter, rice_bits, unzigzag, zigzag
from lilliput.core.errors import FileError

UNIT = 16
"""Curves are held in 1/16 octave."""
DEPTH = 18 * UNIT
"""A frequency this far below its curve's highest point counts as this far below."""
MANTISSA = np.array(
    [16777216, 17520007, 18295684, 19105703, 19951585, 20834917, 21757357, 22720638,
     23726566, 24777031, 25874004, 27019544, 28215802, 29465022, 30769550, 32131834],
    np.int64,
)  # fmt: skip
"""round(2^24 * 2^(i/16)): the only place where a power of two with a fraction is needed."""
STEEPEST = 1 << 20
"""Largest difference between two knots that is accepted."""


@functools.lru_cache(256)
def knots(size: int, centre: int, finesse: int) -> np.ndarray:
    """Symbols where a curve of `size` symbols is given, rising, from 0 to size - 1.

    Away from the centre the distance grows by max(1, distance >> finesse) from knot to knot.

    >>> knots(20, 4, 1).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 17, 19]
    """
    distances, d = [0], 0
    while d < size:
        d += max(1, d >> finesse)
        distances.append(d)
    steps = np.array(distances)
    found = np.unique(np.clip(np.concatenate([centre - steps, centre + steps]), 0, size - 1))
    found.flags.writeable = False  # it is cached
    return found


@dataclass(frozen=True)
class Curves:
    """A family of histograms over `size` symbols at `levels` levels.

    Attributes:
        size: number of symbols.
        centre: the symbol around which knots are dense; every curve is 0 there.
        finesse: how dense the knots are, 0..15; 15 is every symbol.
        resolution: knots are multiples of 2^-resolution octaves, 0..4.
        levels: number of histograms.
        knots: (anchors, number of knots) int64, in steps of 2^-resolution octaves.
    """

    size: int
    centre: int
    finesse: int
    resolution: int
    levels: int
    knots: np.ndarray

    def write(self, out: BitWriter) -> None:
        """Write everything but `size`, which the alphabet gives."""
        out.fixed(self.finesse, 4)
        out.fixed(self.resolution, 3)
        out.fixed(self.centre, (self.size - 1).bit_length())
        out.fixed(self.levels - 1, LEVEL_BITS)
        if self.levels > 1:
            out.fixed(self.knots.shape[0] - 1, LEVEL_BITS)
        previous = np.zeros(self.knots.shape[1] - 1, np.int64)
        positions = knots(self.size, self.centre, self.finesse)
        middle = int(np.searchsorted(positions, self.centre))
        for anchor in self.knots:
            slopes = outward(anchor, middle)
            out.rice(zigzag(slopes - previous))
            previous = slopes

    def bits(self) -> int:
        """Number of bits that `write` writes."""
        positions = knots(self.size, self.centre, self.finesse)
        middle = int(np.searchsorted(positions, self.centre))
        total = 7 + (self.size - 1).bit_length() + LEVEL_BITS * (2 if self.levels > 1 else 1)
        previous = np.zeros(self.knots.shape[1] - 1, np.int64)
        for anchor in self.knots:
            slopes = outward(anchor, middle)
            total += rice_bits(zigzag(slopes - previous))
            previous = slopes
        return total

    def heights(self) -> np.ndarray:
        """Curve of each level, (levels, size) int64 in 1/16 octave."""
        positions = knots(self.size, self.centre, self.finesse)
        scaled = self.knots * (UNIT >> self.resolution)
        x = np.arange(self.size)
        left = np.clip(np.searchsorted(positions, x, side="right") - 1, 0, max(0, positions.size - 2))
        right = np.minimum(left + 1, positions.size - 1)
        width = np.maximum(positions[right] - positions[left], 1)
        rise = scaled[:, right] - scaled[:, left]
        anchors = scaled[:, left] + rise * (x - positions[left]) // width
        return between(anchors, self.levels)

    def frequencies(self, precision: int) -> np.ndarray:
        """Frequencies of each level, (levels, size) int64, at least 1 each, each level's sum 2^precision.

        Raises:
            FileError: the symbols are too many for the precision.
        """
        heights = self.heights()
        below = np.minimum(heights.max(axis=1, keepdims=True) - heights, DEPTH)
        octaves = -(-below // UNIT)
        weights = MANTISSA[octaves * UNIT - below] >> octaves
        return apportion(weights, 1 << precision)


LEVEL_BITS = 6
"""Width of the fields that hold the number of levels and of anchors, each less one."""


def outward(anchor: np.ndarray, middle: int) -> np.ndarray:
    """Differences from knot to knot, walking right from the centre, then left from the centre."""
    return np.concatenate([np.diff(anchor[middle:]), np.diff(anchor[: middle + 1][::-1])])


def between(anchors: np.ndarray, levels: int) -> np.ndarray:
    """Curves of `levels` levels on straight lines between evenly spaced anchors (rounded down)."""
    if levels == 1 or len(anchors) == 1:
        return np.repeat(anchors[:1], levels, axis=0)
    position = np.arange(levels)[:, None] * (len(anchors) - 1)
    lower = np.minimum(position // (levels - 1), len(anchors) - 2)
    part = position - lower * (levels - 1)
    low, high = anchors[lower[:, 0]], anchors[lower[:, 0] + 1]
    leveled: np.ndarray = low + (high - low) * part // (levels - 1)
    return leveled


def apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Integer shares of `total` in proportion to each row's weights, none below 1, by largest remainders.

    Args:
        weights: (rows, n) int64, 1 .. 2^25.
        total: sum of each row of the result, at most 2^15.

    Raises:
        FileError: n is more than half the total, or some share stays below 1 after 16 rounds.

    >>> apportion(np.array([[1000, 10, 1, 1]]), 64).tolist()
    [[61, 1, 1, 1]]
    """
    rows, size = weights.shape
    if 2 * size > total:
        raise FileError(f"{size} symbols are too many for frequencies that sum to {total}")
    small = np.zeros(weights.shape, bool)
    for _ in range(16):
        budget = total - small.sum(axis=1, keepdims=True)
        rest = np.where(small, 0, weights)
        scaled = rest * budget
        mass = rest.sum(axis=1, keepdims=True)
        grown = scaled < mass
        if (grown == small).all():
            break
        small = grown
    else:
        raise FileError("the histogram of a coded stream is too steep")
    shares: np.ndarray = np.where(small, 1, scaled // mass)
    remainders = np.where(small, -1, scaled % mass)
    left = total - shares.sum(axis=1, keepdims=True)
    order = np.argsort(-remainders, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(size), (rows, size)), axis=1)
    shares += ranks < left
    return shares


def read(source: BitReader, size: int) -> Curves:
    """The family that `Curves.write` wrote.

    Raises:
        FileError: a field out of range, or a curve steeper than any real one.
    """
    finesse, resolution = source.fixed(4), source.fixed(3)
    centre = source.fixed((size - 1).bit_length())
    levels = source.fixed(LEVEL_BITS) + 1
    anchors = source.fixed(LEVEL_BITS) + 1 if levels > 1 else 1
    if resolution > 4 or centre >= size or anchors > levels:
        raise FileError("the histogram of a coded stream has a parameter out of range")
    positions = knots(size, centre, finesse)
    middle = int(np.searchsorted(positions, centre))
    values = np.zeros((anchors, positions.size), np.int64)
    slopes = np.zeros(positions.size - 1, np.int64)
    for row in values:
        slopes = slopes + unzigzag(source.rice(positions.size - 1))
        row[middle + 1 :] = np.cumsum(slopes[: positions.size - 1 - middle])
        row[:middle] = np.cumsum(slopes[positions.size - 1 - middle :])[::-1]
        if (np.abs(slopes) > STEEPEST).any():
            raise FileError("the histogram of a coded stream is too steep")
    return Curves(size, centre, finesse, resolution, levels, values)
