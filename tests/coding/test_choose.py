"""The choice: always the smallest, deterministic, found by listing the folder; unknown names are refused."""

import numpy as np
import pytest

from lilliput.coding import choose
from lilliput.core.errors import FileError
from lilliput.testing.coding import arrays


def test_the_folder_is_the_list() -> None:
    assert list(choose.codings()) == ["bitpack", "csc", "csr", "huffman", "rans", "relative"]


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_smaller(seed: int) -> None:
    for label, array in arrays(seed):
        name, data = choose.encode(array)
        every = {n: coding.encode(array) for n, coding in choose.codings().items()}
        assert len(data) == min(len(d) for d in every.values() if d is not None), label
        assert every[name] == data
        assert choose.size(array) == len(data)
        decoded = choose.decode(name, data, array.shape, array.dtype)
        assert (decoded == array).all()


def test_nothing_is_smaller_where_rows_are_nearly_empty() -> None:
    weights = np.zeros((400, 400), np.int8)
    weights[7] = np.random.default_rng(0).integers(-127, 128, 400)
    weights[300:, ::40] = 5
    _, data = choose.encode(weights)
    assert len(data) == min(len(coding.encode(weights) or b"x" * 10**6) for coding in choose.codings().values())


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64"])
def test_equal_values_cost_a_handful_of_bytes(dtype: str) -> None:
    assert choose.size(np.ones((1000, 1000), dtype)) <= 11


@pytest.mark.parametrize("name", ["zip", "", "../rans", "parts", "choose"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(FileError, match="no coding"):
        choose.decode(name, b"", (1,), np.dtype(np.int8))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, object])
def test_other_arrays_are_refused(dtype: type) -> None:
    with pytest.raises(TypeError, match="can't be coded"):
        choose.encode(np.zeros(3, dtype))


def test_entropy() -> None:
    assert choose.entropy_bits(np.array([0, 1] * 500)) == 1000
    assert choose.entropy_bits(np.zeros(9, int)) == 0
    assert choose.entropy_bits(np.zeros(0, int)) == 0
