"""The simulated array: its output is the convolution, its counts are the model's."""

from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lilliput.core.errors import DeviceError
from lilliput.hardware.dataflow import Cut, analyse
from lilliput.hardware.device import Device
from lilliput.hardware.layer import Layer
from lilliput.hardware.nest import ORDERS
from lilliput.hardware.row_stationary import simulate

small = Device("small", 4, 4, 64, 1024, 16, 1e9, 1e9)
LEVELS = ("dram", "buffer", "array", "register")


def tensors(layer, seed=0):
    torch.manual_seed(seed)
    inputs = torch.randint(-9, 10, (layer.batch, layer.channels, *layer.size)).double()
    weight = torch.randint(-9, 10, (layer.filters, layer.channels // layer.groups, *layer.kernel)).double()
    return inputs, weight


def convolved(layer, inputs, weight):
    return functional.conv2d(inputs, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def check(layer, device):
    """The array's output and counts for the cut that the search found; returns counts of both."""
    values = tensors(layer)
    run = simulate(layer, *values, device)
    assert torch.equal(run.output, convolved(layer, *values))
    model = analyse(layer, device, "row_stationary")
    return run, model


# Each divides into equal tiles and passes, whatever the search takes: powers of two.
twos = st.sampled_from([1, 2, 4])
divisible = st.builds(
    lambda c, k, g, e, kernel, stride, batch: Layer(
        c * g, k * g, ((e - 1) * stride + kernel, (2 * e - 1) * stride + kernel), (kernel, kernel), (stride, stride),
        groups=g, batch=batch,
    ),
    twos, twos, st.integers(1, 2), twos, st.sampled_from([1, 2, 3]), st.integers(1, 3), twos,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(divisible, st.sampled_from([200, 400, 4096]))
def test_counts_are_the_models_on_shapes_that_divide(layer, buffer_bytes):
    device = replace(small, buffer_bytes=buffer_bytes)
    try:
        analyse(layer, device)
    except DeviceError:
        return
    run, model = check(layer, device)
    cut = model.mapping
    whole = (layer.batch, layer.filters // layer.groups, layer.channels // layer.groups, layer.output_size[0])
    per = (cut.choice["filters"] * cut.choice["filter_sets"], cut.choice["channels"] * cut.choice["channel_sets"])
    even = all(size % part == 0 for size, part in zip(whole, cut.tile))
    even &= cut.tile[1] % per[0] == 0 and cut.tile[2] % per[1] == 0 and cut.tile[3] % cut.choice["rows"] == 0
    for level in LEVELS:
        for data in ("weight", "input", "output"):
            counted, said = (getattr(getattr(a, level), data) for a in (run.accesses, model.accesses))
            if even:
                assert counted == said, (level, data)
            else:
                assert counted <= said, (level, data)
    assert run.cycles == model.cycles if even else run.cycles <= model.cycles


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(ORDERS),
    st.sampled_from(ORDERS),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    st.tuples(*(st.integers(1, 3),) * 5),
)
def test_any_order_and_any_ragged_cut_give_the_convolution(outer, inner, tile, choice):
    names = ("filters", "channels", "filter_sets", "channel_sets", "rows")
    layer = Layer(3, 5, (8, 7), (3, 2), (1, 2), (1, 0), batch=2)
    values = tensors(layer)
    run = simulate(layer, *values, small, Cut(tile, outer, inner, dict(zip(names, choice))))
    assert torch.equal(run.output, convolved(layer, *values))
    assert run.accesses.register.total == 4 * layer.macs
    assert run.accesses.dram.weight >= layer.weights
    assert run.accesses.dram.input >= layer.inputs
    assert run.accesses.dram.output >= layer.outputs


@pytest.mark.parametrize(
    "layer",
    [
        Layer(5, 7, (11, 9), (3, 3), (2, 1), (1, 1), batch=2),
        Layer(4, 6, (9, 9), (7, 7), padding=(2, 2)),  # the kernel is higher than the array: folded
        Layer(6, 6, (8, 8), (3, 3), groups=6),
        Layer(3, 4, (9, 9), (2, 2), dilation=(2, 3)),
        Layer(12, 10, batch=3),
        Layer(3, 4, (1, 12), (1, 5), (1, 3)),
    ],
    ids=["ragged", "folded", "depthwise", "dilated", "linear", "line"],
)
def test_every_kind_of_layer(layer):
    run, model = check(layer, replace(small, register_bytes=128))
    for level in LEVELS:
        for data in ("weight", "input", "output"):
            counted, said = (getattr(getattr(a, level), data) for a in (run.accesses, model.accesses))
            assert counted <= said * (1 + 1e-12), (level, data)
    assert (
        run.accesses.register.weight
        == layer.macs
        == layer.outputs * prod(layer.kernel) * layer.channels // layer.groups
    )


def test_wrong_shapes_are_refused():
    layer = Layer(2, 2, (4, 4), (3, 3))
    with pytest.raises(DeviceError, match=r"must be \(1, 2, 4, 4\), \(2, 2, 3, 3\)"):
        simulate(layer, torch.zeros(1, 2, 5, 4), torch.zeros(2, 2, 3, 3), small)
