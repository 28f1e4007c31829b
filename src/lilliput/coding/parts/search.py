"""The encoder's search for levels: which rows, columns and kernel positions have wide histograms, which narrow ones.

The search starts from tempered copies of the overall histogram, p_l(x) ~ p(x)^t with t falling from level to level
(for a generalised Gaussian that is a change of scale), prices every row at every level, gives it the cheapest with the
cost of the map counted in, does the same for columns and positions, and repeats with the histograms that came out.
"""

import numpy as np

from lilliput.coding.parts import bits, levels, model
from lilliput.coding.parts.alphabet import Alphabet
from lilliput.coding.parts.model import Maps, Model
from lilliput.core.native import extension

PRICE = 256
"""Prices are integers in 1/256 bit, so that their sums don't depend on the order or the machine."""
DEAREST = 24
"""Most bits that a symbol is priced at."""
REACH = ((7, 0, 0), (7, 7, 0), (7, 5, 2))
"""How many levels the rows, inner and positions may lie off the middle, by the number of axes that vary."""
SPACINGS = (0.3, 0.7)
"""Steps of log2 t from level to level that are tried, of large arrays only the first."""
LARGE = 1 << 18
"""Elements from which an array is large: there the finer step is as good."""
ANCHORS = (2, 3, 5, 7)
"""Numbers of curves that are tried, as long as more of them pay: pruned weights want more than dense ones."""
ROUNDS = 2
LEAST = 256
"""Arrays of fewer elements aren't searched."""
MOST = 1 << 28
"""Arrays of more elements aren't searched."""
WIDEST = 1024
"""Alphabets with more symbols aren't searched."""


def fit(letters: Alphabet, flat: np.ndarray, shape: tuple[int, int, int]) -> Model:
    """The best model found for a flat array seen as rows x inner x positions."""
    best = plain = model.fit_plain(letters)
    if flat.size < LEAST or len(best.letters) > WIDEST or max(shape) == flat.size or flat.size > MOST:
        return plain
    letters = plain.letters
    symbols = letters.symbols(flat)
    for spacing in SPACINGS if flat.size < LARGE else SPACINGS[:1]:
        maps = find_maps(symbols, letters.counts, shape, spacing)
        total = 1 + sum(int(one.max()) for one in maps)
        if total == 1:
            continue
        counts = count(symbols, maps, total, len(letters))
        fewer: Model | None = None
        for anchors in ANCHORS:
            if anchors > total:
                break
            found = model.fit_levels(letters, counts, maps, anchors, like=plain)
            best = found if found.total_bits < best.total_bits else best
            if fewer is not None and found.total_bits >= fewer.total_bits:
                break
            fewer = found
    return best


def find_maps(symbols: np.ndarray, counts: np.ndarray, shape: tuple[int, int, int], spacing: float) -> Maps:
    """Levels of the rows, inner and positions, each from 0 on; all 0 where a map doesn't pay.

    Args:
        symbols: flat, of the given shape.
        counts: how often each symbol occurs.
        shape: rows, inner, positions.
        spacing: step of log2 t.
    """
    reach = REACH[max(sum(size > 1 for size in shape) - 1, 0)]
    reach = reach if shape[1] > 1 or shape[2] == 1 else (reach[0], reach[2], reach[1])
    total = 2 * sum(reach) + 1
    tempered = temper(counts, total, spacing)
    maps = [np.full(size, middle, np.uint8) for size, middle in zip(shape, reach)]
    live = [axis for axis in range(3) if 1 < shape[axis] <= bits.MOST_RICE and reach[axis]]
    histograms = tempered
    for turn in range(ROUNDS):
        prices = np.rint(np.minimum(-np.log2(histograms), DEAREST) * PRICE).astype(np.int32)
        for axis in live:
            costs = price(symbols, maps, prices, axis, 2 * reach[axis] + 1)
            maps[axis] = assign(costs, map_prices(maps[axis], costs.shape[1], reach[axis], first=turn == 0))
        seen = count(symbols, (maps[0], maps[1], maps[2]), total, len(counts))
        weight = max(4.0, len(counts) / 8)
        histograms = (seen + weight * tempered) / (seen.sum(axis=1, keepdims=True) + weight)
    rows, inner, positions = (one - one.min() for one in maps)
    return rows, inner, positions


def temper(counts: np.ndarray, total: int, spacing: float) -> np.ndarray:
    """Histograms p^t of `total` levels, (levels, symbols), t = 1 in the middle and falling."""
    p = np.log(counts + 0.5)
    t = 2.0 ** (-(np.arange(total) - total // 2) * spacing)
    heights = t[:, None] * (p - p.max())
    raised = np.exp(heights)
    tempered: np.ndarray = np.maximum(raised / raised.sum(axis=1, keepdims=True), 2.0**-DEAREST)
    return tempered


def map_prices(current: np.ndarray, width: int, middle: int, *, first: bool) -> np.ndarray:
    """What a level costs in the map, in bits: as the present map's Rice code has it, or a guess at first."""
    level = np.arange(width)
    if first:
        return 1 + 0.8 * np.abs(level - middle).astype(np.float64)
    centre = int(np.bincount(current).argmax())
    k = bits.rice_parameter(bits.zigzag(current.astype(np.int64) - centre))
    paid: np.ndarray = 1.0 + k + (bits.zigzag(level - centre) >> k)
    return paid


def assign(costs: np.ndarray, map_price: np.ndarray) -> np.ndarray:
    """The cheapest level of each index, or the single cheapest level of all where a map doesn't pay."""
    chosen: np.ndarray = (costs + np.rint(map_price * PRICE)).argmin(axis=1).astype(np.uint8)
    with_map = int(np.take_along_axis(costs, chosen[:, None].astype(np.intp), axis=1).sum())
    with_map += PRICE * levels.size(chosen - chosen.min())
    sums = costs.sum(axis=0)
    if with_map < int(sums.min()) + PRICE:
        return chosen
    return np.full(len(costs), int(sums.argmin()), np.uint8)


def count(symbols: np.ndarray, maps: Maps, total: int, size: int) -> np.ndarray:
    """How often each symbol occurs at each level, (total, size) int64."""
    rows, inner, positions = maps
    columns = (inner[:, None] + positions).reshape(-1)
    out = np.zeros((total, size), np.int64)
    native = extension(symbols.size)
    if native is not None:
        native.rans_count(symbols, rows, columns, out)
        return out
    table = symbols.reshape(rows.size, columns.size)
    for start in range(0, rows.size, chunk_rows(columns.size)):
        stop = start + chunk_rows(columns.size)
        place = (rows[start:stop, None] + columns).astype(np.int64) * size + table[start:stop]
        out += np.bincount(place.reshape(-1), minlength=total * size).reshape(total, size)
    return out


def price(symbols: np.ndarray, maps: list[np.ndarray], prices: np.ndarray, axis: int, width: int) -> np.ndarray:
    """What each index along an axis costs at each level of its own, the other axes as they are.

    Args:
        symbols: flat, of the shape that the maps have.
        maps: levels of the three axes; that of `axis` is ignored.
        prices: (levels, symbols) int32.
        axis: 0, 1 or 2.
        width: levels 0 .. width - 1 are priced.

    Returns:
        (length of the axis, width) int64.
    """
    out = np.zeros((maps[axis].size, width), np.int64)
    native = extension(symbols.size)
    if native is not None:
        native.rans_price(symbols, *maps, np.ascontiguousarray(prices.T), axis, out)
        return out
    rows, inner, positions = (one if i != axis else np.zeros_like(one) for i, one in enumerate(maps))
    columns = (inner[:, None] + positions).reshape(-1)
    table = symbols.reshape(rows.size, columns.size)
    for start in range(0, rows.size, chunk_rows(columns.size)):
        stop = start + chunk_rows(columns.size)
        place = (rows[start:stop, None] + columns).astype(np.int64) * prices.shape[1] + table[start:stop]
        for level in range(width):
            paid = prices[level:].reshape(-1)[place].reshape(-1, inner.size, positions.size)
            others = tuple(i for i in range(3) if i != axis)
            along = paid.sum(axis=others, dtype=np.int64)
            out[start:stop, level] += along if axis == 0 else 0
            if axis:
                out[:, level] += along
    return out


def chunk_rows(columns: int) -> int:
    """Rows that are handled at once."""
    return max(1, (1 << 18) // columns)
