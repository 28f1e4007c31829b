"""Sparse codings: equality with scipy, the size formulas, gaps at the edges and the expected number of fillers."""

import numpy as np
import pytest
import scipy.sparse

from lilliput.coding.csc import Csc
from lilliput.coding.csr import Csr
from lilliput.coding.parts.compressed_rows import size_bits, survey_arrays
from lilliput.coding.relative import Relative, entries, expected_fillers


def sparse_matrix(density: float, shape: tuple[int, int] = (40, 70)) -> np.ndarray:
    random = np.random.default_rng(int(1000 * density))
    return ((random.random(shape) < density) * random.integers(-7, 8, shape)).astype(np.int8)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_survey_arrays_are_those_of_scipy(density: float) -> None:
    matrix = sparse_matrix(density)
    for ours, theirs in (
        (survey_arrays(matrix), scipy.sparse.csr_array(matrix)),
        (survey_arrays(matrix.T), scipy.sparse.csc_array(matrix)),
    ):
        theirs.sort_indices()
        assert (ours[0] == theirs.data).all()
        assert (ours[1] == theirs.indptr + 1).all()
        assert (ours[2] == theirs.indices + 1).all()
    values, starts, columns = survey_arrays(matrix)
    assert values.size + starts.size + columns.size == 2 * np.count_nonzero(matrix) + len(matrix) + 1


def test_size_formulas() -> None:
    matrix = sparse_matrix(0.1)
    a, (m, n) = int(np.count_nonzero(matrix)), matrix.shape
    value_bits = int(matrix[matrix != 0].max() - matrix[matrix != 0].min()).bit_length()
    for coding, rows, columns in ((Csr(), m, n), (Csc(), n, m)):
        parts = (a * value_bits, a * int(np.ceil(np.log2(columns))), (rows + 1) * int(np.ceil(np.log2(a + 1))))
        assert size_bits(a, rows, columns, value_bits) == parts
        data = coding.encode(matrix)
        assert data is not None
        assert len(data) == 2 + 1 + 1 + sum(-(-bits // 8) for bits in parts)  # a, minimum and width before the arrays


@pytest.mark.parametrize("width", range(2, 9))
def test_gaps_at_the_edge_of_a_filler(width: int) -> None:
    span = 1 << width
    gaps = [span - 1, span, span + 1, 2 * span - 1, 2 * span, 0]
    flat = np.zeros(sum(gaps) + len(gaps), np.int8)
    flat[np.cumsum(np.array(gaps) + 1) - 1] = 3
    coded, values = entries(flat, width)
    assert (values == 0).sum() == sum(gap // span for gap in gaps) == 5
    positions = np.cumsum(coded.astype(int) + 1) - 1
    rebuilt = np.zeros_like(flat)
    rebuilt[positions] = values
    assert (rebuilt == flat).all()


@pytest.mark.parametrize(("density", "width", "expected"), [(0.11, 4, 0.183), (0.09, 5, 0.0514), (0.35, 8, 0.0)])
def test_expected_fillers(density: float, width: int, expected: float) -> None:
    assert expected_fillers(density, width) == pytest.approx(expected, abs=6e-4)
    random = np.random.default_rng(3)
    flat = (random.random(400_000) < density).astype(np.int8)
    _, values = entries(flat, width)
    simulated = (values == 0).sum() / (values != 0).sum()
    assert simulated == pytest.approx(expected_fillers(density, width), rel=0.03, abs=1e-4)


def test_best_plain_width_is_that_of_the_formula() -> None:
    random = np.random.default_rng(4)
    for density in (0.03, 0.1, 0.3):
        flat = (random.random(200_000) < density) * random.integers(1, 16, 200_000)
        bits = {b: entries(flat, b)[0].size * (b + 4) for b in range(2, 9)}
        formula = {b: (1 + expected_fillers(density, b)) * (b + 4) for b in range(2, 9)}
        assert min(bits, key=bits.__getitem__) == min(formula, key=formula.__getitem__)


def test_dense_arrays_are_not_taken() -> None:
    assert Relative().encode(np.ones(10, np.int8)) is None


def test_deep_compression_sizes_at_ten_percent() -> None:
    """Relative index with Huffman coded streams needs more than rANS and less than bit packing."""
    from lilliput.coding.choose import codings

    random = np.random.default_rng(5)
    weights = ((random.random((300, 300)) < 0.1) * random.integers(1, 16, (300, 300))).astype(np.uint8)
    sizes = {name: len(coding.encode(weights) or b"") for name, coding in codings().items()}
    assert sizes["rans"] < sizes["relative"] < min(sizes["csr"], sizes["csc"]) < sizes["bitpack"]
