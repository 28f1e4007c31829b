"""The table's ratios and widths; a layer's energy by hand, additive, and monotone in bits and density."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core.errors import DeviceError
from lilliput.hardware.energy import (
    LEVELS,
    TABLE,
    Accesses,
    Costs,
    Traffic,
    dram,
    layer_energy,
    operation,
    run_length,
    sram,
)
from lilliput.hardware.layer import Layer, span


def test_ratios_to_an_integer_addition():
    add = operation("add", "int", 32).energy
    assert operation("add", "float", 32).energy / add == pytest.approx(9)
    assert operation("multiply", "int", 32).energy / add == pytest.approx(31)
    assert operation("multiply", "float", 32).energy / add == pytest.approx(37)
    assert sram(8 << 10, 32) / add == pytest.approx(50)
    assert dram(32) / add == pytest.approx(6400)
    assert 1e9 * 20 * dram(32) * 1e-12 == pytest.approx(12.8)


@pytest.mark.parametrize(("what", "kind"), TABLE)
def test_every_width_costs_more_than_the_one_below(what, kind):
    costs = [operation(what, kind, bits) for bits in range(1, 65)]
    for narrow, wide in itertools.pairwise(costs):
        assert narrow.energy < wide.energy
        assert narrow.area < wide.area
    assert operation("multiply", "int", 4).energy == pytest.approx(0.05)
    assert operation("multiply", "int", 16).estimated
    assert not operation("multiply", "int", 8).estimated


def test_larger_memories_cost_more():
    sizes = [sram(1 << power, 64) for power in range(8, 26)]
    assert sizes == sorted(sizes)


def dense(layer):
    """Counts that differ at every level and for all data."""
    plain = (layer.weights, layer.inputs, layer.outputs)
    return Accesses(*(Traffic(*(count * k for count in plain)) for k in (1, 2, 3)), Traffic(*(layer.macs,) * 3))


def test_by_hand_on_a_1x1_convolution():
    layer = Layer(2, 3, size=(2, 2), weight_bits=8, weight_density=0.5, input_density=0.25)
    costs = Costs(dram=100, buffer=10, array=3, register=1, mac=2)
    found = layer_energy(layer, dense(layer), costs)
    macs, weights, inputs, outputs = 24, 6, 8, 12
    eighth = macs * 0.5 * 0.25
    assert found.arithmetic == pytest.approx(eighth * 2 * (0.9 * 8 * 16 / 256 + 0.1 * 24 / 32))
    few = run_length(8, 0.5) * 8 / 16, run_length(16, 0.25)
    assert found.dram.weight == pytest.approx(100 * weights * few[0])
    assert found.dram.input == pytest.approx(100 * inputs * few[1])
    assert found.dram.output == pytest.approx(100 * outputs)
    assert found.buffer.total == pytest.approx(10 * 2 * (weights * few[0] + inputs * few[1] + outputs))
    assert found.array.total == pytest.approx(3 * 3 * (weights * 0.5 * 0.5 + inputs * 0.25 + outputs))
    assert found.register.total == pytest.approx(eighth * (0.5 + 1 + 1))
    parts = found.arithmetic + sum(found.of(data) for data in ("weight", "input", "output"))
    assert found.total == pytest.approx(parts)
    assert found.total == pytest.approx(found.arithmetic + sum(getattr(found, level).total for level in LEVELS))


def test_half_the_bits_halve_the_data_exactly():
    layer = Layer(8, 8, size=(6, 6), kernel=(3, 3))
    half = replace(layer, weight_bits=8, input_bits=8, output_bits=8)
    whole, less = (layer_energy(each, dense(layer), Costs()) for each in (layer, half))
    assert less.total - less.arithmetic == (whole.total - whole.arithmetic) / 2
    assert less.arithmetic == pytest.approx(whole.arithmetic * 0.275)


@given(st.sampled_from(["weight", "input", "output"]), st.floats(0, 1), st.floats(0, 1), st.integers(1, 32))
def test_energy_is_monotone_in_density_and_bits(data, one, two, bits):
    low, high = sorted((one, two))
    layer = Layer(4, 4, size=(5, 5), kernel=(3, 3))

    def total(**changes):
        return layer_energy(replace(layer, **changes), dense(layer), Costs()).total

    sparse, full = (total(**{f"{data}_density": d, f"{data}_bits": bits}) for d in (low, high))
    assert sparse <= full * (1 + 1e-12)
    assert total(**{f"{data}_bits": bits}) < total(**{f"{data}_bits": bits + 1})


def test_run_lengths_are_what_a_coder_needs():
    """Counts the entries of the code on random data: a run of at most 31 zeros and the value that ends it."""
    import torch

    for density in (0.02, 0.1, 0.4):
        torch.manual_seed(0)
        values = torch.rand(200_000) < density
        entries = run = 0
        for value in values.tolist():
            if value or run == 31:
                entries, run = entries + 1, 0
            else:
                run += 1
        expected = entries * (5 + 16) * 64 / 63 / 16 / len(values)
        assert run_length(16, density) == pytest.approx(expected, rel=0.02)


def test_the_costs_of_45_nm_are_ordered():
    costs = Costs.of_45_nm(128 << 10)
    assert costs.dram > costs.buffer > costs.array > costs.register > 0


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Layer(3, 8, size=(4, 4), kernel=(7, 7), padding=(1, 1), name="c"), "'c': the kernel covers 7, more"),
        (lambda: Layer(0, 8), "channels must be at least 1"),
        (lambda: Layer(3, 8, groups=2), "2 groups don't divide 3"),
        (lambda: Layer(4, 8, stride=(0, 1)), r"stride\[0\]"),
        (lambda: Layer(4, 8, weight_density=1.5), "weight_density must be 0 to 1"),
        (lambda: Layer(4, 8, input_bits=0), "input_bits must be 1 to 64"),
        (lambda: Layer(4, 8, padding=(-1, 0)), "padding must not be negative"),
        (lambda: operation("divide", "int", 8), "no operation 'divide'"),
        (lambda: operation("add", "int", 0), "width of 0 bits"),
        (lambda: Costs(dram=-1.0), "energy of dram"),
        (lambda: sram(0, 8), "memory of 0 bytes"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, word):
    with pytest.raises(DeviceError, match=word) as caught:
        make()
    assert "\n" not in str(caught.value)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.data())
def test_span_counts_the_rows_that_are_looked_at(count, stride, extent, data):
    pieces = data.draw(st.integers(1, count))
    seen = 0
    for piece in range(pieces):
        rows = range(piece * count // pieces, (piece + 1) * count // pieces)
        seen += len({stride * row + k for row in rows for k in range(extent)})
    assert span(count, pieces, stride, extent) == seen
