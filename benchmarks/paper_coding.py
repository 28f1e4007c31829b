"""Deep Compression's own coding of shared weights: relative index and Huffman, its bytes counted stream by stream."""

import math
from typing import Any

import numpy as np

from lilliput.coding.choose import entropy_bits
from lilliput.coding.huffman import Huffman
from lilliput.coding.relative import WIDTHS, entries
from lilliput.core.packed import Packed, unpack


def paper_coding(codes: np.ndarray, values: int) -> dict[str, Any]:
    """Counts what the paper's format takes for one layer (Han, Mao and Dally 2016, arXiv 1510.00149).

    A relative index of a fixed width and numbers of shared values of a fixed width, fillers where a gap is too wide;
    then both streams Huffman coded. Either time the width of the index that makes it smallest is taken. The shared
    values are float32.

    Args:
        codes: Numbers of shared values, any shape; 0 means pruned.
        values: How many shared values there are.

    Returns:
        `kept`; `fixed_bytes` and `huffman_bytes`, codebook included; bits of value and index for each kept weight, by
        fixed width and Huffman coded; `position_bits`: what the positions of as many kept weights cost if they were
        drawn independently, H(p) / p; and `entropy_bytes`, the order-0 entropy of all the codes.
    """
    flat = codes.reshape(-1)
    kept = int(np.count_nonzero(flat))
    width = math.ceil(math.log2(values + 1))
    fixed, coded = [], []
    for gap_width in WIDTHS:
        gaps, numbers = entries(flat, gap_width)
        fixed.append((gaps.size * gap_width, gaps.size * width))
        coded.append((8 * Huffman().cost(gaps), 8 * Huffman().cost(numbers)))
    index, value = min(fixed, key=sum)
    coded_index, coded_value = min(coded, key=sum)
    density = kept / flat.size
    return {
        "kept": kept,
        "fixed_bytes": -(-index // 8) - (-value // 8) + 4 * values,
        "huffman_bytes": (coded_index + coded_value) // 8 + 4 * values,
        "bits": {
            "value, fixed": round(value / kept, 2),
            "index, fixed": round(index / kept, 2),
            "value, Huffman": round(coded_value / kept, 2),
            "index, Huffman": round(coded_index / kept, 2),
        },
        "position_bits": round(binary_entropy(density) / density, 2),
        "entropy_bytes": entropy_bits(codes) / 8,
    }


def binary_entropy(p: float) -> float:
    """Bits of a draw of probability p, 0 < p <= 1.

    >>> binary_entropy(0.5)
    1.0
    """
    return -p * math.log2(p) - ((1 - p) * math.log2(1 - p) if p < 1 else 0.0)


def codes_of(packed: Packed) -> tuple[np.ndarray, int]:
    """Returns the codes of a pruned and shared weight, and how many shared values it has."""
    shared = packed.parts["values"]
    if not isinstance(shared, Packed):
        raise TypeError(f"{packed.method} holds no shared values")
    return shared.tensor("codes").numpy(), unpack(shared.parts["codebook"]).numel()
