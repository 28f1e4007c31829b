"""Simulated arrays of all dataflows: their output is the convolution, their counts are the model's."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lilliput.core.errors import DeviceError
from lilliput.hardware.dataflow import FLOWS, Cut, analyse
from lilliput.hardware.device import Device
from lilliput.hardware.layer import Layer
from lilliput.hardware.nest import ORDERS
from lilliput.hardware.simulate import ARRAYS, simulate

small = Device("small", 4, 4, 64, 1024, 16, 1e9, 1e9)
NAMES = [(level, data) for level in ("dram", "buffer", "array", "register") for data in ("weight", "input", "output")]
flows = st.sampled_from(sorted(ARRAYS))


def tensors(layer, seed=0):
    torch.manual_seed(seed)
    inputs = torch.randint(-9, 10, (layer.batch, layer.channels, *layer.size)).double()
    weight = torch.randint(-9, 10, (layer.filters, layer.channels // layer.groups, *layer.kernel)).double()
    return inputs, weight


def convolved(layer, inputs, weight):
    return functional.conv2d(inputs, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def listed(accesses):
    return {name: getattr(getattr(accesses, name[0]), name[1]) for name in NAMES}


def check(layer, device, flow):
    """Output and counts for the cut that the search found; returns both counts."""
    values = tensors(layer)
    run = simulate(layer, *values, device, flow)
    assert torch.equal(run.output, convolved(layer, *values))
    model = analyse(layer, device, flow)
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


def even(layer, cut):
    """Whether tiles divide the layer and passes divide the tiles."""
    whole = (layer.batch, layer.filters // layer.groups, layer.channels // layer.groups, layer.output_size[0])
    choice = {"filters": 1, "channels": 1, "rows": 1, "columns": 1} | dict(cut.choice)
    filters, channels = choice["filters"], choice["channels"]
    filters, channels = filters * choice.get("filter_sets", 1), channels * choice.get("channel_sets", 1)
    pairs = [*zip(whole, cut.tile), *zip(cut.tile[1:], (filters, channels, choice["rows"]))]
    pairs.append((layer.output_size[1], choice["columns"]))
    return all(size % min(part, size) == 0 for size, part in pairs)


@settings(max_examples=60, deadline=None)
@given(divisible, st.sampled_from([200, 400, 4096]), flows)
def test_counts_are_the_models_on_shapes_that_divide(layer, buffer_bytes, flow):
    # Registers hold but what the flow keeps, so that nothing is traded for a larger buffer.
    device = replace(small, buffer_bytes=buffer_bytes, register_bytes=64 if flow == "row_stationary" else 2)
    try:
        analyse(layer, device, flow)
    except DeviceError:
        return
    run, model = check(layer, device, flow)
    counted, said = listed(run.accesses), listed(model.accesses)
    if even(layer, model.mapping):
        assert counted == said
        assert run.cycles == model.cycles
    else:
        assert all(counted[name] <= said[name] for name in NAMES)
        assert run.cycles <= model.cycles


@pytest.mark.parametrize("flow", ARRAYS)
@pytest.mark.parametrize("buffer_bytes", [140, 200])
def test_a_layer_in_many_tiles_and_passes(flow, buffer_bytes):
    """Of each flow cases that surely divide, load some data again, and send sums to the buffer or to DRAM."""
    layer = Layer(4, 4, (6, 6), (3, 3), batch=2)
    device = replace(small, buffer_bytes=buffer_bytes, register_bytes=64 if flow == "row_stationary" else 2)
    run, model = check(layer, device, flow)
    assert even(layer, model.mapping)
    assert listed(run.accesses) == listed(model.accesses)
    assert run.cycles == model.cycles
    dram = run.accesses.dram
    assert dram.weight > layer.weights or dram.input > layer.inputs
    assert run.accesses.buffer.output > 0 or dram.output > layer.outputs


@settings(max_examples=30, deadline=None)
@given(
    flows,
    st.sampled_from(ORDERS),
    st.sampled_from(ORDERS),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    st.tuples(*(st.integers(1, 3),) * 6),
)
def test_any_order_and_any_ragged_cut_give_the_convolution(flow, outer, inner, tile, choice):
    """In whatever order sums come together."""
    names = ("filters", "channels", "filter_sets", "channel_sets", "rows", "columns")
    layer = Layer(3, 5, (8, 7), (3, 2), (1, 2), (1, 0), batch=2)
    values = tensors(layer)
    run = simulate(layer, *values, small, flow, Cut(tile, outer, inner, dict(zip(names, choice))))
    assert torch.equal(run.output, convolved(layer, *values))
    counts = run.accesses
    assert max(counts.register.weight, counts.array.weight) == layer.macs
    assert max(counts.register.input, counts.array.input) >= layer.macs
    assert counts.dram.weight >= layer.weights
    assert counts.dram.input >= layer.inputs
    assert counts.dram.output >= layer.outputs
    # Each product is added to its sum in a register, on the way through the array, or in a memory.
    visits = (counts.dram.output + layer.outputs) / 2
    added = counts.register.output / 2 or counts.array.output + counts.buffer.output / 2 + visits
    assert added == layer.macs


@pytest.mark.parametrize("flow", ARRAYS)
@pytest.mark.parametrize(
    "layer",
    [
        Layer(5, 7, (11, 9), (3, 3), (2, 1), (1, 1), batch=2),
        Layer(4, 6, (9, 9), (7, 7), padding=(2, 2)),  # the kernel is larger than the array: folded
        Layer(6, 6, (8, 8), (3, 3), groups=6),
        Layer(3, 4, (9, 9), (2, 2), dilation=(2, 3)),
        Layer(12, 10, batch=3),
        Layer(3, 4, (1, 12), (1, 5), (1, 3)),
        Layer(2, 3, (10, 11), (2, 2), (3, 4)),  # inputs that nothing looks at
    ],
    ids=["ragged", "folded", "depthwise", "dilated", "linear", "line", "sparse"],
)
def test_every_kind_of_layer(layer, flow):
    run, model = check(layer, replace(small, register_bytes=128), flow)
    counted, said = listed(run.accesses), listed(model.accesses)
    for name in NAMES:
        assert counted[name] <= said[name] * (1 + 1e-12), name
    assert max(counted["register", "weight"], counted["array", "weight"]) == layer.macs


def test_all_dataflows_but_bounds_are_simulated():
    assert set(FLOWS) - set(ARRAYS) == {"systolic", "compulsory"}


def test_what_can_t_be_run_is_refused():
    layer = Layer(2, 2, (4, 4), (3, 3))
    with pytest.raises(DeviceError, match=r"must be \(1, 2, 4, 4\), \(2, 2, 3, 3\)"):
        simulate(layer, torch.zeros(1, 2, 5, 4), torch.zeros(2, 2, 3, 3), small)
    with pytest.raises(DeviceError, match="'compulsory' isn't simulated; there are row_stationary"):
        simulate(layer, *tensors(layer), small, "compulsory")
