"""The encoder's choice of a model for rANS: alphabet, precision, curves and levels, whatever costs the fewest bits."""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from lilliput.coding.parts import curves, levels
from lilliput.coding.parts.alphabet import Alphabet
from lilliput.coding.parts.bits import BitWriter
from lilliput.coding.parts.curves import Curves
from lilliput.core.errors import FileError

FIXED_BITS = 8 + 6 + 16
"""Header length, precision and lanes, and what a lane's state costs beyond the information in it."""
LANE_SHARE = 0.002
"""Most that the states of all lanes may take of a stream."""
MOST_LANES = 4096
MOST_SYMBOLS = 4096
"""Larger alphabets aren't modelled: their histogram would cost more than it saves."""
WORTH = 2e-4
"""Share of the stream that a bit more precision must save: tables that fit the cache decode faster."""
NEWTON_STEPS = 8

Maps = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Levels (uint8) of rows, inner and positions."""


@dataclass(frozen=True)
class Model:
    """All that the header of a stream says, and what the stream is expected to cost.

    Attributes:
        letters: the alphabet.
        family: histograms of all levels.
        precision: log2 of the sum of frequencies.
        maps: levels of rows, inner and positions, uint8.
        data_bits: expected size of the words.
        side_bits: size of the header.
    """

    letters: Alphabet
    family: Curves
    precision: int
    maps: Maps
    data_bits: float
    side_bits: int

    @property
    def total_bits(self) -> int:
        """Expected size of the whole payload."""
        return int(min(self.data_bits, 2**62)) + self.side_bits + FIXED_BITS


def lanes_for(data_bits: float) -> int:
    """The largest power of two whose 32-bit states keep within `LANE_SHARE` of the stream, at least 1."""
    lanes = 1
    while lanes < MOST_LANES and 2 * lanes * 32 <= LANE_SHARE * data_bits:
        lanes *= 2
    return lanes


def cross_entropy(counts: np.ndarray, frequencies: np.ndarray, precision: int) -> float:
    """Bits of these counts under these frequencies: sum of n (precision - log2 f)."""
    return float((counts * (precision - np.log2(frequencies))).sum())


def fit_plain(letters: Alphabet) -> Model:
    """The best model with one histogram, the alphabet listed or filled, whichever is smaller."""
    maps = (np.zeros(1, np.uint8), np.zeros(1, np.uint8), np.zeros(1, np.uint8))
    candidates = [fit_levels(letters, letters.counts[None], maps, 1)]
    span = int(letters.values[-1]) - int(letters.values[0]) + 1
    if len(letters) < span <= min(2 * len(letters), MOST_SYMBOLS):
        filled = letters.filled()
        candidates.append(fit_levels(filled, filled.counts[None], maps, 1))
    return min(candidates, key=lambda model: model.total_bits)


def fit_levels(letters: Alphabet, counts: np.ndarray, maps: Maps, anchors: int, like: Model | None = None) -> Model:
    """The cheapest curves and precision for these counts.

    Args:
        letters: the alphabet.
        counts: (levels, symbols) how often each symbol occurs at each level.
        maps: levels of the three axes.
        anchors: number of curves between which the levels lie.
        like: a model of the same alphabet with one level: then only settings near its own are tried.
    """
    writer = BitWriter()
    letters.write(writer)
    fixed = 8 * len(writer.to_bytes()) + (sum(levels.size(one) for one in maps) if len(counts) > 1 else 0)
    size = counts.shape[1]
    precision = like.precision if like else max(12, (2 * size - 1).bit_length())
    best: Model | None = None
    for finesse in _finesses(size, like):
        smooth = fit_curves(counts, anchors, finesse)
        for resolution in (1, 2, 3):
            coarse = np.rint(smooth.knots * 2.0 ** (resolution - smooth.resolution)).astype(np.int64)
            family = replace(smooth, resolution=resolution, knots=coarse)
            model = _priced(Model(letters, family, precision, maps, 0.0, fixed + family.bits()), counts)
            best = model if best is None or model.total_bits < best.total_bits else best
    assert best is not None
    for finer in range(precision + 1, 16) if like is None else ():
        model = _priced(replace(best, precision=finer), counts)
        if model.total_bits >= best.total_bits - WORTH * best.data_bits:
            break
        best = model
    return best


def _finesses(size: int, like: Model | None) -> tuple[int, ...]:
    """Values of `Curves.finesse` worth a trial."""
    if like is not None:
        return (like.family.finesse, 15) if size <= 16 else (like.family.finesse,)
    return (15,) if size <= 8 else (1, 15) if size <= 32 else (1, 2, 3, 15)


def _priced(model: Model, counts: np.ndarray) -> Model:
    try:
        frequencies = model.family.frequencies(model.precision)
    except FileError:  # a decoder would refuse curves so steep
        return replace(model, data_bits=math.inf)
    return replace(model, data_bits=cross_entropy(counts, frequencies, model.precision))


def fit_curves(counts: np.ndarray, anchors: int, finesse: int) -> Curves:
    """Maximum likelihood curves, in 1/16 octave at resolution 4.

    Newton steps on ln p_l(x) = sum over anchors a and knots k of hat_a(l) hat_k(x) v_ak, minus its normaliser. The
    Hessian is lumped onto the knots, which bounds it from above, so every step goes downhill.
    """
    total, size = counts.shape
    overall = counts.sum(axis=0)
    centre = int(overall.argmax())
    positions = curves.knots(size, centre, finesse)
    prior = (overall + 0.25) / (overall.sum() + 0.25 * size)
    smoothed = counts + 0.5 * prior
    if positions.size == size and anchors == 1:
        values = np.log(smoothed.sum(axis=0))[None]
    else:
        values = _newton(smoothed, prior, _hats(size, tuple(positions.tolist())), anchors)
    middle = int(np.searchsorted(positions, centre))
    scaled = np.rint((values - values[:, middle : middle + 1]) / np.log(2) * curves.UNIT)
    return Curves(size, centre, finesse, 4, total, np.clip(scaled, -curves.DEPTH, curves.DEPTH).astype(np.int64))


def _newton(smoothed: np.ndarray, prior: np.ndarray, hats: np.ndarray, anchors: int) -> np.ndarray:
    """Values at (anchors, knots) that maximise the likelihood of the counts `smoothed`, from `prior` on."""
    total = len(smoothed)
    along = _hats(total, tuple(np.linspace(0, total - 1, anchors).tolist()))
    pairs = (along[:, :, None] * along[:, None, :]).reshape(total, -1)
    weight = smoothed.sum(axis=1, keepdims=True)
    start = np.log(np.maximum(prior @ hats / hats.sum(axis=0), 1e-9))
    values = np.repeat(start[None], anchors, axis=0)
    target = along.T @ smoothed @ hats
    for _ in range(NEWTON_STEPS):
        heights = along @ values @ hats.T
        p = np.exp(heights - heights.max(axis=1, keepdims=True))
        p *= weight / p.sum(axis=1, keepdims=True)
        mass = p @ hats
        gradient = target - along.T @ mass
        hessian = (mass.T @ pairs).reshape(-1, anchors, anchors) + 1e-3 * np.eye(anchors)
        values += np.clip(np.linalg.solve(hessian, gradient.T[..., None])[..., 0].T, -2, 2)
    return values


@functools.lru_cache(128)
def _hats(size: int, positions: tuple[float, ...]) -> np.ndarray:
    """Linear interpolation from values at `positions` to 0 .. size - 1 as a matrix: (size, len(positions))."""
    if len(positions) == 1:
        return np.ones((size, 1))
    return np.stack([np.interp(np.arange(size), positions, row) for row in np.eye(len(positions))], axis=1)
