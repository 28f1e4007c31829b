"""The encoder's choice of a model for rANS: alphabet, precision, curves and levels, whatever costs the fewest bits."""

from dataclasses import dataclass, replace

import numpy as np

from lilliput.coding.parts import curves, levels
from lilliput.coding.parts.alphabet import Alphabet
from lilliput.coding.parts.bits import BitWriter
from lilliput.coding.parts.curves import Curves

FIXED_BITS = 8 + 6 + 16
"""Header length, precision and lanes, and what a lane's state costs beyond the information in it."""
LANE_SHARE = 0.002
"""Most that the states of all lanes may take of a stream."""
MOST_LANES = 4096


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
    maps: tuple[np.ndarray, np.ndarray, np.ndarray]
    data_bits: float
    side_bits: int

    @property
    def total_bits(self) -> int:
        """Expected size of the whole payload."""
        return int(self.data_bits) + self.side_bits + FIXED_BITS


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
    candidates = [_fit_histogram(letters)]
    low, high = int(letters.values[0]), int(letters.values[-1])
    if len(letters) < high - low + 1 <= min(2 * len(letters), 2048):
        candidates.append(_fit_histogram(letters.filled()))
    return min(candidates, key=lambda model: model.total_bits)


def _fit_histogram(letters: Alphabet) -> Model:
    none = tuple(np.zeros(1, np.uint8) for _ in range(3))
    return fit_levels(letters, letters.counts[None], none, 1)


def fit_levels(
    letters: Alphabet,
    counts: np.ndarray,
    maps: tuple[np.ndarray, np.ndarray, np.ndarray],
    anchors: int,
) -> Model:
    """The cheapest curves and precision for these counts.

    Args:
        letters: the alphabet.
        counts: (levels, symbols) how often each symbol occurs at each level.
        maps: levels of the three axes.
        anchors: number of curves between which the levels lie.
    """
    writer = BitWriter()
    letters.write(writer)
    fixed = 8 * len(writer.to_bytes())
    if len(counts) > 1:
        fixed += sum(levels.size(one) for one in maps)
    size = counts.shape[1]
    least = max(12, (2 * size - 1).bit_length())
    best: Model | None = None
    for finesse in (1, 2, 3, 15) if size > 8 else (15,):
        smooth = fit_curves(counts, anchors, finesse)
        if finesse == 15 and size > 512:
            continue
        for resolution in (1, 2, 3):
            family = replace(
                smooth, resolution=resolution, knots=np.rint(smooth.knots * 2.0 ** (resolution - 4)).astype(np.int64)
            )
            side = fixed + family.write_bits()
            if best is not None and side + 0.9 * best.data_bits > best.total_bits + 0.2 * best.data_bits:
                continue
            model = _priced(letters, counts, family, max(least, 12), maps, side)
            best = model if best is None or model.total_bits < best.total_bits else best
    assert best is not None
    for precision in range(best.precision + 1, 16):
        model = _priced(letters, counts, best.family, precision, maps, best.side_bits)
        if model.total_bits >= best.total_bits - 2e-4 * best.data_bits:
            break
        best = model
    return best


def _priced(letters: Alphabet, counts: np.ndarray, family: Curves, precision: int, maps: tuple, side: int) -> Model:
    frequencies = family.frequencies(precision)
    return Model(letters, family, precision, maps, cross_entropy(counts, frequencies, precision), side)


def fit_curves(counts: np.ndarray, anchors: int, finesse: int) -> Curves:
    """Maximum likelihood curves, in 1/16 octave at resolution 4.

    Newton steps on log2 p_l(x) = sum over anchors a and knots k of hat_a(l) hat_k(x) v_ak, minus its normaliser. The
    Hessian is lumped onto the knots, which bounds it from above, so every step goes downhill.
    """
    total, size = counts.shape
    overall = counts.sum(axis=0)
    centre = int(overall.argmax())
    positions = curves.knots(size, centre, finesse)
    hats = _hats(np.arange(size), positions)
    along = _hats(np.arange(total), np.linspace(0, total - 1, anchors)) if total > 1 else np.ones((1, 1))
    prior = (overall + 0.25) / (overall.sum() + 0.25 * size)
    smoothed = counts + 0.5 * prior
    weight = smoothed.sum(axis=1, keepdims=True)
    start = np.log(np.maximum(hats.T @ prior / hats.sum(axis=0), 1e-9))
    values = np.repeat(start[None], anchors, axis=0)
    for _ in range(12):
        heights = along @ values @ hats.T
        p = np.exp(heights - heights.max(axis=1, keepdims=True))
        p *= weight / p.sum(axis=1, keepdims=True)
        gradient = along.T @ (smoothed - p) @ hats
        mass = (p + 1e-3 * smoothed) @ hats
        hessian = np.einsum("la,lb,lk->kab", along, along, mass) + 1e-6 * np.eye(anchors)
        step = np.linalg.solve(hessian, gradient.T[..., None])[..., 0].T
        values += np.clip(step, -2, 2)
    middle = int(np.searchsorted(positions, centre))
    scaled = np.rint((values - values[:, middle : middle + 1]) / np.log(2) * curves.UNIT)
    return Curves(size, centre, finesse, 4, total, np.clip(scaled, -curves.DEPTH, curves.DEPTH).astype(np.int64))


def _hats(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Linear interpolation as a matrix: (len(x), len(positions)) hat functions."""
    return np.stack([np.interp(x, positions, row) for row in np.eye(len(positions))], axis=1)
