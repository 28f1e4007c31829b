"""Canonical prefix codes of limited length: package-merge, code words and the decoding table."""

import numpy as np

from lilliput.core.errors import FileError


def code_lengths(frequencies: np.ndarray, limit: int) -> np.ndarray:
    """Code lengths with the least total for these frequencies and none above `limit` (package-merge).

    Larmore and Hirschberg 1990: a list starts as the sorted leaves; limit - 1 times its neighbours are paired into
    packages and merged with the leaves again; a symbol's length is how often it is among the first 2n - 2 items.

    Args:
        frequencies: (n,) positive.
        limit: at least log2 n.

    Returns:
        (n,) int64; a single symbol gets length 1.

    >>> code_lengths(np.array([45, 13, 12, 16, 9, 5]), 15).tolist()
    [1, 3, 3, 3, 4, 4]
    """
    n = len(frequencies)
    if n > 1 << limit:
        raise ValueError(f"{n} symbols have no prefix code of at most {limit} bits")
    if n == 1:
        return np.ones(1, np.int64)
    order = np.argsort(frequencies, kind="stable")
    leaves = np.asarray(frequencies, np.int64)[order]
    weights, rounds = leaves, [np.ones(n, bool)]
    for _ in range(limit - 1):
        paired = weights[: len(weights) // 2 * 2]
        packages = paired[::2] + paired[1::2]
        both = np.concatenate([packages, leaves])  # of equal weights, packages first
        merged = np.argsort(both, kind="stable")
        weights = both[merged]
        rounds.append(merged >= packages.size)
    lengths = np.zeros(n, np.int64)
    taken = 2 * n - 2
    for is_leaf in reversed(rounds):
        leaf_count = int(is_leaf[:taken].sum())
        lengths[order[:leaf_count]] += 1
        taken = 2 * (taken - leaf_count)
    return lengths


def code_words(lengths: np.ndarray) -> np.ndarray:
    """Canonical code words: rising by (length, symbol), each the last one + 1, shifted to its length.

    >>> [f"{c:b}" for c in code_words(np.array([1, 3, 3, 3, 4, 4]))]
    ['0', '100', '101', '110', '1110', '1111']
    """
    words = np.zeros(len(lengths), np.int64)
    code, before = 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)).tolist():
        code <<= int(lengths[symbol]) - before
        before = int(lengths[symbol])
        words[symbol] = code
        code += 1
    return words


def decoding_table(lengths: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbol and length for each of the 2^limit possible next bits; length 0 where no code word fits.

    Raises:
        FileError: a length out of range, more code words than fit, or (with two symbols or more) fewer than fit.
    """
    if lengths.min() < 1 or lengths.max() > limit:
        raise FileError("a prefix code has a length out of range")
    room = int((1 << (limit - lengths)).sum())
    if room > 1 << limit or (len(lengths) > 1 and room < 1 << limit):
        raise FileError("the lengths of a prefix code don't make a complete code")
    order = np.lexsort((np.arange(len(lengths)), lengths))
    spans = 1 << (limit - lengths[order])
    symbols, sizes = np.zeros(1 << limit, np.uint16), np.zeros(1 << limit, np.uint8)
    symbols[:room] = np.repeat(order, spans)
    sizes[:room] = np.repeat(lengths[order], spans)
    return symbols, sizes
