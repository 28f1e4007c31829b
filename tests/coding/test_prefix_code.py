"""Prefix codes against the published fixtures, brute force and the bounds of information theory."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.coding.choose import entropy_bits
from lilliput.coding.huffman import Huffman
from lilliput.coding.parts.prefix_code import code_lengths, code_words, decoding_table
from lilliput.core.errors import FileError


def test_fixture_of_six_symbols() -> None:
    frequencies = np.array([45, 13, 12, 16, 9, 5])
    lengths = code_lengths(frequencies, 15)
    assert lengths.tolist() == [1, 3, 3, 3, 4, 4]
    words = [f"{c:0{n}b}" for c, n in zip(code_words(lengths), lengths)]
    assert words == ["0", "100", "101", "110", "1110", "1111"]
    assert int(lengths @ frequencies) == 224


@pytest.mark.parametrize(
    ("limit", "lengths", "bits"),
    [(7, [7, 7, 6, 5, 4, 3, 2, 1], 132), (5, [5, 5, 5, 5, 4, 4, 2, 1], 134), (4, [4, 4, 4, 4, 3, 3, 2, 2], 135)],
)
def test_fibonacci(limit: int, lengths: list[int], bits: int) -> None:
    frequencies = np.array([1, 1, 2, 3, 5, 8, 13, 21])
    found = code_lengths(frequencies, limit)
    assert sorted(found.tolist()) == sorted(lengths)
    assert int(found @ frequencies) == bits


@given(st.lists(st.integers(1, 60), min_size=2, max_size=5), st.integers(3, 5))
@settings(max_examples=60, deadline=None)
def test_package_merge_is_optimal(frequencies: list[int], limit: int) -> None:
    n = len(frequencies)
    best = min(
        sum(f * length for f, length in zip(frequencies, lengths))
        for lengths in itertools.product(range(1, limit + 1), repeat=n)
        if sum(2.0**-length for length in lengths) <= 1
    )
    found = code_lengths(np.array(frequencies), limit)
    assert found.max() <= limit
    assert int(found @ np.array(frequencies)) == best


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=300))
@settings(max_examples=60, deadline=None)
def test_kraft_and_entropy(frequencies: list[int]) -> None:
    counts = np.array(frequencies)
    free = code_lengths(counts, len(frequencies))
    limited = code_lengths(counts, 15)
    assert sum(2.0**-n for n in free.tolist()) == 1
    assert sum(2.0**-n for n in limited.tolist()) == 1
    p = counts / counts.sum()
    entropy = float(-(p * np.log2(p)).sum())
    assert entropy - 1e-9 <= float(free @ p) < entropy + 1
    assert float(limited @ p) >= float(free @ p) - 1e-12


def test_one_symbol_has_length_one() -> None:
    assert code_lengths(np.array([7]), 15).tolist() == [1]


def test_too_many_symbols_for_the_limit() -> None:
    with pytest.raises(ValueError, match="no prefix code"):
        code_lengths(np.ones(9, int), 3)


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 2], [0, 1], [16, 1]])
def test_decoder_refuses_lengths_that_are_no_code(lengths: list[int]) -> None:
    with pytest.raises(FileError):
        decoding_table(np.array(lengths), 15)


def test_stream_is_within_a_bit_of_entropy() -> None:
    random = np.random.default_rng(0)
    weights = np.rint(random.normal(0, 12, (300, 200))).astype(np.int8)
    size = len(Huffman().encode(weights) or b"")
    assert entropy_bits(weights) / 8 < size < entropy_bits(weights) / 8 + weights.size / 8


@pytest.mark.parametrize("distinct", [4096, 4097, 65536])
def test_large_alphabets(distinct: int) -> None:
    values = np.random.default_rng(distinct).permutation(np.arange(distinct)).astype(np.int32) - 1000
    data = Huffman().encode(values)
    assert data is not None
    assert (Huffman().decode(data, values.shape, values.dtype) == values).all()
