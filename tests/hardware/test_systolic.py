"""The skewed array gives the product, in as many cycles as the formulae say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import DeviceError
from lilliput.hardware.device import Device
from lilliput.hardware.layer import Layer
from lilliput.hardware.systolic import Grid


def random(*shape):
    return torch.randint(-128, 128, shape)


@pytest.mark.parametrize(("rows", "columns", "inputs", "cycles"), [(4, 4, 1, 7), (4, 6, 10, 18), (8, 3, 5, 14)])
def test_one_tile(rows, columns, inputs, cycles):
    grid = Grid(rows, columns)
    left, right = random(inputs, rows), random(rows, columns)
    product, last = grid.multiply(left, right)
    assert torch.equal(product, left @ right)
    assert grid.tile_cycles(inputs) == cycles
    assert last == grid.loading + cycles


sizes = st.integers(1, 9)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, st.booleans(), st.integers(0, 12))
def test_any_product_in_the_predicted_cycle(rows, columns, inputs, depth, outputs, double, load):
    grid = Grid(rows, columns, load, double)
    left, right = random(inputs, depth), random(depth, outputs)
    product, last = grid.multiply(left, right)
    assert torch.equal(product, left @ right)
    assert last == grid.cycles(inputs, depth, outputs)


def test_double_buffering_hides_loading_when_there_are_inputs_enough():
    once, twice = Grid(8, 8, double=False), Grid(8, 8)
    assert once.cycles(100, 32, 16) == 8 * (8 + 100 + 8 + 8 - 2)
    assert twice.cycles(100, 32, 16) == 8 + 8 * 100 + 14
    # With few inputs the array waits for its weights.
    assert twice.cycles(2, 32, 16) == 8 + 7 * 8 + 2 + 14


def test_a_layer_is_a_product_of_matrices():
    layer = Layer(8, 12, (6, 6), (3, 3), groups=2, batch=2)
    grid = Grid(16, 4)
    assert grid.layer_cycles(layer) == 2 * grid.cycles(2 * 16, 4 * 9, 6)
    assert grid.layer_cycles(layer, accumulators=40) == 2 * (grid.cycles(20, 36, 6) + grid.cycles(12, 36, 6))
    assert 0 < grid.utilisation(layer) < 1
    depthwise = Layer(64, 64, (14, 14), (3, 3), groups=64)
    assert Grid(256, 256).utilisation(depthwise) < 0.001


def test_tpu():
    tpu = Device.load("tpu_v1")
    assert 2 * tpu.peak / 1e12 == pytest.approx(91.75, abs=0.01)
    # Linear layers of a batch of 8 wait for their weights.
    slow, fast = (Grid.of(tpu).utilisation(Layer(1024, 1024, batch=batch)) for batch in (8, 1500))
    assert slow < 0.01
    assert fast > 0.5


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Grid(0, 4), "systolic array of 0 x 4"),
        (lambda: Grid(4, 4, -1), "arrive in -1 cycles"),
        (lambda: Grid(4, 4).multiply(random(2, 3), random(4, 2)), "can't be multiplied"),
    ],
)
def test_bad_input(make, word):
    with pytest.raises(DeviceError, match=word):
        make()
