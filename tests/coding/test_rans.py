"""rANS: the published cost, entropy, identical bytes from NumPy and C++, levels, lanes, and damage to every byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lilliput.coding import choose
from lilliput.coding.parts import curves, search, stream
from lilliput.coding.parts.alphabet import Alphabet
from lilliput.coding.parts.bits import BitReader, BitWriter
from lilliput.coding.parts.model import lanes_for
from lilliput.coding.rans import Rans
from lilliput.core.errors import FileError
from lilliput.core.native import extension
from lilliput.testing.coding import arrays

NATIVE = pytest.mark.skipif(extension() is None, reason="the extension isn't built")


def layout(frequencies: list[int], size: int, lanes: int) -> stream.Layout:
    return stream.Layout(np.zeros(1, np.uint8), np.zeros(size, np.uint8), np.array([frequencies]), 12, lanes)


def test_four_symbols_cost_what_the_formula_says() -> None:
    frequencies = np.array([900, 80, 30, 14]) * 4
    symbols = np.random.default_rng(0).choice(4, 5000, p=frequencies / 4096).astype(np.uint8)
    ideal = float((12 - np.log2(frequencies[symbols])).sum())
    data = stream.encode(symbols, layout(frequencies.tolist(), symbols.size, 1))
    assert ideal <= 8 * len(data) <= ideal + 40 + 1e-3 * symbols.size


def test_a_certain_symbol_costs_nothing() -> None:
    data = stream.encode(np.zeros(10_000, np.uint8), layout([4096], 10_000, 1))
    assert len(data) == 4


@NATIVE
@pytest.mark.parametrize("lanes", [1, 2, 8, 64, 4096])
@pytest.mark.parametrize("size", [1, 7, 8, 63, 4095, 9000])
def test_lanes_interleave_alike(lanes: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.random.default_rng(size).choice(4, size, p=[0.7, 0.1, 0.1, 0.1]).astype(np.uint8)
    model = layout([2866, 410, 410, 410], size, lanes)
    coded = {}
    for pure in ("0", "1"):
        monkeypatch.setenv("LILLIPUT_PURE", pure)
        coded[pure] = stream.encode(symbols, model)
        out = np.empty(size, np.int16)
        stream.decode(memoryview(coded["0"]), model, np.array([-300, 5, 6, 7], np.int16), out)
        assert (out == np.array([-300, 5, 6, 7])[symbols]).all()
    assert coded["0"] == coded["1"]


@NATIVE
@pytest.mark.parametrize("seed", [0, 1])
def test_numpy_and_compiled_code_give_the_same_bytes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, array in arrays(seed):
        coded = []
        for pure in ("0", "1"):
            monkeypatch.setenv("LILLIPUT_PURE", pure)
            coded.append(choose.encode(array))
        assert coded[0] == coded[1], name


@given(hnp.arrays(np.int8, hnp.array_shapes(max_dims=4, max_side=12), elements=st.integers(-9, 9)))
@settings(max_examples=40, deadline=None)
def test_round_trip(array: np.ndarray) -> None:
    data = Rans().encode(array)
    assert data is None or (Rans().decode(data, array.shape, array.dtype) == array).all()


@pytest.mark.parametrize("scale", [0.4, 1.5, 20.0])
def test_close_to_entropy_without_structure(scale: float) -> None:
    weights = np.rint(np.random.default_rng(1).laplace(0, scale, (512, 512))).clip(-127, 127).astype(np.int8)
    data = Rans().encode(weights)
    assert data is not None
    assert 8 * len(data) <= 1.003 * choose.entropy_bits(weights)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_below_entropy_where_an_axis_differs(axis: int) -> None:
    random = np.random.default_rng(2)
    shape = (96, 64, 9)
    scales = np.exp(random.normal(0, 0.8, [size if i == axis else 1 for i, size in enumerate(shape)]))
    weights = np.rint(random.normal(0, 6, shape) * scales).clip(-127, 127).astype(np.int8)
    data = Rans().encode(weights)
    assert data is not None
    assert 8 * len(data) < 0.98 * choose.entropy_bits(weights)


def test_more_curves_where_pruned_rows_differ_much(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    weights = random.normal(0, np.exp(random.normal(0, 1, (600, 1))), (600, 500))
    pruned = np.where(np.abs(weights) < np.quantile(np.abs(weights), 0.9), 0, np.rint(2 * weights)).clip(-60, 60)
    array = pruned.astype(np.int8)
    sizes = {}
    for anchors in ((2, 3), (2, 3, 5, 7)):
        monkeypatch.setattr(search, "ANCHORS", anchors)
        data = Rans().encode(array)
        assert data is not None
        assert (Rans().decode(data, array.shape, array.dtype) == array).all()
        sizes[anchors] = len(data)
    assert sizes[2, 3, 5, 7] < 0.998 * sizes[2, 3] < 0.9 * choose.entropy_bits(array) / 8


def test_lane_states_stay_within_their_share() -> None:
    for bits in (10.0, 1e4, 3.2e4, 1e6, 1e8, 1e12):
        lanes = lanes_for(bits)
        assert lanes == 1 or 32 * lanes <= 0.002 * bits
        assert lanes & (lanes - 1) == 0


def test_every_changed_byte_and_every_prefix() -> None:
    random = np.random.default_rng(3)
    scales = np.exp(random.normal(0, 1, (24, 1)))
    weights = np.rint(random.normal(0, 4, (24, 30)) * scales).clip(-99, 99).astype(np.int8)
    data = Rans().encode(weights)
    assert data is not None
    tried = accepted = 0
    for at in range(len(data)):
        with pytest.raises(FileError):
            Rans().decode(data[:at], weights.shape, weights.dtype)
        for bit in (1, 16, 128):
            tried += 1
            damaged = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            try:
                found = Rans().decode(damaged, weights.shape, weights.dtype)
            except FileError:
                continue
            assert found.shape == weights.shape
            accepted += 1
    # lanes that must end where they began find nearly all; the rest is mostly the header's smallest value
    assert accepted < 0.05 * tried


def test_a_small_file_can_not_ask_for_a_large_table() -> None:
    header = BitWriter()
    header.fixed(3, 2)
    header.fixed(0, 4)
    Alphabet(np.array([0, 1]), np.array([1, 1])).write(header)
    curves.Curves(2, 0, 15, 1, 64, np.zeros((1, 2), np.int64)).write(header)
    head = header.to_bytes()
    with pytest.raises(FileError, match="too many"):
        Rans().decode(bytes([len(head)]) + head + bytes(8), (100,), np.dtype(np.uint8))


@given(st.integers(2, 300), st.integers(0, 15), st.integers(0, 4), st.integers(1, 20), st.integers(1, 4), st.randoms())
@settings(max_examples=60, deadline=None)
def test_curves_are_written_as_they_are(size, finesse, resolution, levels, anchors, random) -> None:  # type: ignore[no-untyped-def]
    anchors = min(anchors, levels)
    centre = random.randrange(size)
    positions = curves.knots(size, centre, finesse)
    values = np.array([[random.randrange(-40, 9) for _ in positions] for _ in range(anchors)])
    values[:, np.searchsorted(positions, centre)] = 0
    family = curves.Curves(size, centre, finesse, resolution, levels, values)
    writer = BitWriter()
    family.write(writer)
    data = writer.to_bytes()
    source = BitReader(memoryview(data))
    again = curves.read(source, size)
    source.close()
    assert (again.knots == values).all()
    assert -(-family.bits() // 8) == len(data)
    try:
        frequencies = again.frequencies(12)
    except FileError:
        return  # so steep that a share stays below 1: refused, by encoder and decoder alike
    assert frequencies.shape == (levels, size)
    assert (frequencies.sum(axis=1) == 4096).all()
    assert frequencies.min() >= 1
