"""Row stationary against Eyeriss's figures; all counts in order and monotone; the search against brute force."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import DeviceError
from lilliput.hardware.dataflow import FLOWS, KEPT, _Search, active_processors, analyse
from lilliput.hardware.device import Device
from lilliput.hardware.energy import Costs
from lilliput.hardware.layer import Layer
from lilliput.hardware.nest import ORDERS, Sizes, Tiles, parts

ALEXNET = [
    Layer(3, 96, (227, 227), (11, 11), (4, 4), name="conv1"),
    Layer(96, 256, (27, 27), (5, 5), padding=(2, 2), groups=2, name="conv2"),
    Layer(256, 384, (13, 13), (3, 3), padding=(1, 1), name="conv3"),
    Layer(384, 384, (13, 13), (3, 3), padding=(1, 1), groups=2, name="conv4"),
    Layer(384, 256, (13, 13), (3, 3), padding=(1, 1), groups=2, name="conv5"),
    Layer(256, 4096, (6, 6), (6, 6), name="fc1"),
    Layer(4096, 4096, name="fc2"),
    Layer(4096, 1000, name="fc3"),
]
# ALU, DRAM and register energy of a batch of 16 in 1e9 MACs, 16 x 16 processors (Chen, Emer & Sze 2016, figure 10).
EYERISS = [
    (1.69, 2.46, 6.75), (3.58, 2.27, 14.33), (2.39, 2.02, 9.57), (1.79, 1.57, 7.18), (1.20, 1.05, 4.78),
    (0.60, 7.78, 2.42), (0.27, 3.39, 1.07), (0.07, 0.84, 0.26),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "figures"), list(zip(ALEXNET, EYERISS)), ids=[layer.name for layer in ALEXNET])
def test_row_stationary_spends_what_eyeriss_spends(layer, figures):
    layer, device = replace(layer, batch=16), Device.load("eyeriss_256")
    found = analyse(layer, device)
    energy = found.energy(layer, device.costs)
    alu, dram, register = figures
    assert energy.arithmetic == layer.macs == pytest.approx(alu * 1e9, abs=0.1e9)
    assert energy.register.total == 4 * layer.macs == pytest.approx(register * 1e9, abs=0.1e9)
    assert energy.dram.total >= 200 * (layer.weights + layer.inputs + layer.outputs)
    assert dram / 2 <= energy.dram.total / 1e9 <= dram * 2


def test_convolutions_are_spent_on_registers_and_linear_layers_on_dram():
    device = Device.load("eyeriss_256")
    for layer in ALEXNET:
        batch = replace(layer, batch=16)
        energy = analyse(batch, device).energy(batch, device.costs)
        levels = {level: getattr(energy, level).total for level in ("dram", "buffer", "array", "register")}
        assert max(levels, key=levels.get) == ("register" if layer.name.startswith("conv") else "dram")


def test_row_stationary_costs_least_on_convolutions():
    device = Device.load("eyeriss_256")
    totals = dict.fromkeys(FLOWS, 0.0)
    for layer in ALEXNET[:5]:
        batch = replace(layer, batch=16)
        for flow in FLOWS:
            totals[flow] += analyse(batch, device, flow).energy(batch, device.costs).total
    order = sorted(totals, key=totals.get)
    assert order[:2] == ["compulsory", "row_stationary"]
    assert order[-1] == "no_local_reuse"


def test_active_processors_of_the_chip():
    assert [active_processors(layer, 12, 14) for layer in ALEXNET[:5]] == [154, 135, 156, 156, 156]
    macs = [replace(layer, batch=4).macs / 1e6 for layer in ALEXNET[:5]]
    assert macs == pytest.approx([421.66, 895.79, 598.1, 448.6, 299.0], abs=0.06)


def test_the_chip_s_accesses_to_dram():
    """AlexNet's convolutions, a batch of 4: 0.0029 for each product (JSSC 2017), with run-length coded feature maps."""
    device, batch = Device.load("eyeriss"), [replace(layer, batch=4) for layer in ALEXNET[:5]]
    words = sum(analyse(layer, device).accesses.dram.total for layer in batch)
    assert 0.0029 < words / sum(layer.macs for layer in batch) < 2 * 0.0029, "ours are dense"


layers = st.builds(
    lambda c, k, g, size, kernel, stride, pad, batch: Layer(
        c * g, k * g, (size + 2, size), (min(kernel, size), min(kernel, size + pad)), (stride, stride), (0, pad),
        groups=g, batch=batch,
    ),
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 2), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3),
    st.integers(0, 1), st.integers(1, 3),
)  # fmt: skip
small = Device("small", 4, 5, 64, 2048, 16, 1e9, 1e9)


@settings(max_examples=40, deadline=None)
@given(layers, st.sampled_from(sorted(FLOWS)))
def test_every_level_is_asked_at_least_as_often_as_the_one_above(layer, flow):
    accesses = analyse(layer, small, flow).accesses
    for data, least in (("weight", layer.weights), ("input", layer.inputs)):
        counts = [getattr(getattr(accesses, level), data) for level in ("dram", "buffer", "array")]
        assert [round(c, 6) for c in counts] == sorted(round(c, 6) for c in counts)
        assert counts[0] >= least
        assert getattr(accesses.register, data) in {0, layer.macs}
        assert max(counts[2], getattr(accesses.register, data)) >= (layer.macs if flow != "compulsory" else least)
    visits = (accesses.dram.output / layer.outputs + 1) / 2
    assert visits == pytest.approx(round(visits))
    assert visits >= 1
    assert min(accesses.buffer.output, accesses.array.output, accesses.register.output) >= 0
    # Every product is added to its sum somewhere: in a register, from processor to processor, or in the buffer.
    added = accesses.register.output / 2 or accesses.array.output + accesses.buffer.output / 2 + visits * layer.outputs
    assert added == pytest.approx(layer.macs)


@settings(max_examples=15, deadline=None)
@given(layers, st.sampled_from(sorted(FLOWS)), st.integers(0, 2000), st.integers(0, 200))
def test_more_memory_never_costs_energy(layer, flow, buffer, register):
    wider = replace(small, buffer_bytes=small.buffer_bytes + buffer, register_bytes=small.register_bytes + register)
    less, more = (
        analyse(layer, device, flow, slack=0.0).energy(layer, device.costs).total for device in (small, wider)
    )
    assert more <= less * (1 + 1e-8)


@pytest.mark.parametrize("flow", FLOWS)
def test_the_search_finds_the_best_of_all(flow):
    layer = Layer(6, 10, (9, 9), (3, 3), batch=2)
    device = replace(small, costs=Costs(dram=20))
    used = device.traded(2 * KEPT[flow]) if flow in KEPT else device
    sizes = Sizes.of(layer)
    search = _Search(sizes, used, FLOWS[flow])
    tiles = Tiles.whole(sizes) if flow == "compulsory" else Tiles.that_fit(sizes, used.buffer_words)
    best = min(
        float((search.outside(tiles, order) + search.inside(counts)).min())
        for order in ORDERS
        for counts in FLOWS[flow](sizes, used, tiles, order)
    )
    found = analyse(layer, device, flow, slack=0.0).energy(layer, device.costs)
    assert found.total - found.arithmetic == pytest.approx(best)


@settings(max_examples=25, deadline=None)
@given(layers, st.sampled_from(sorted(set(FLOWS) - {"compulsory"})))
def test_reuse_at_all_levels_is_the_whole_reuse(layer, flow):
    """a b c d uses are N E F of a weight, (C / groups) R S of a partial sum, ragged or not; energy is made of them.

    Of an input they are no fewer than used, since pixels may be brought that nothing looks at.
    """
    found, costs = analyse(layer, small, flow), Costs(dram=7, buffer=5, array=3, register=2, mac=0)
    levels = [getattr(found.accesses, level) for level in ("dram", "buffer", "array", "register")]
    places = layer.batch * layer.output_size[0] * layer.output_size[1]
    a, ab, abc = (level.weight / layer.weights for level in levels[:3])
    assert max(abc, levels[3].weight / layer.weights) == pytest.approx(places)
    assert a <= ab * (1 + 1e-9) <= abc * (1 + 1e-9) ** 2 <= places * (1 + 1e-9) ** 3
    of_weights = layer.weights * (7 * a + 5 * ab + 3 * abc) + 2 * levels[3].weight
    assert found.energy(layer, costs).of("weight") == pytest.approx(of_weights)
    assert max(levels[2].input, levels[3].input) >= layer.macs * (1 - 1e-9)
    # Partial sums: (2 a - 1) from and to DRAM, 2 a (b - 1) in the buffer, a b (c - 1) in the array, or 2 in a register.
    visits = (levels[0].output / layer.outputs + 1) / 2
    ab = levels[1].output / (2 * layer.outputs) + visits
    inside = levels[3].output / (2 * layer.outputs) or levels[2].output / layer.outputs + ab
    assert inside == pytest.approx(layer.depth)


def test_groups_are_as_many_layers():
    one = Layer(4, 6, (7, 7), (3, 3))
    whole = Layer(12, 18, (7, 7), (3, 3), groups=3)
    single, triple = analyse(one, small), analyse(whole, small)
    for level in ("dram", "buffer", "array", "register"):
        assert getattr(triple.accesses, level).total == pytest.approx(3 * getattr(single.accesses, level).total)
    assert triple.cycles == 3 * single.cycles
    assert triple.utilisation == pytest.approx(single.utilisation)


@settings(max_examples=40, deadline=None)
@given(layers, st.sampled_from(sorted(FLOWS)))
def test_no_more_than_all_processors_work(layer, flow):
    found = analyse(layer, small, flow)
    assert 0 < found.utilisation <= 1 + 1e-9
    assert found.cycles * small.processors >= layer.macs
    if flow == "row_stationary":
        choice = found.mapping.choice
        rows = min(layer.kernel[0], small.rows)
        assert rows * choice["rows"] * choice["filter_sets"] * choice["channel_sets"] <= small.processors
        assert 1 <= active_processors(layer, small.rows, small.columns) <= small.processors


def test_equal_area():
    device = Device.load("eyeriss_256")
    for flow, words in KEPT.items():
        traded = device.traded(words * 2)
        both = [d.buffer_bytes + d.processors * d.register_bytes for d in (device, traded)]
        assert both[0] == both[1], flow


def test_parts_reach_from_one_to_all():
    for size in (1, 2, 13, 100):
        assert parts(size)[0] == 1
        assert parts(size)[-1] == size


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: analyse(ALEXNET[0], replace(small, buffer_bytes=100)), "'conv1': a buffer of 50 words is too small"),
        (
            lambda: analyse(replace(ALEXNET[4], kernel=(3, 5)), replace(small, register_bytes=8)),
            "register file of 4 words is too small",
        ),
        (lambda: analyse(ALEXNET[0], small, "magic"), "no dataflow 'magic'; there are row_stationary"),
        (lambda: replace(small, rows=0), "rows must be at least 1, it is 0"),
        (lambda: replace(small, clock=0.0), "clock must be positive"),
        (lambda: replace(small, register_bytes=-1), "register_bytes must not be negative"),
        (lambda: active_processors(ALEXNET[0], 0, 14), "array of 0 x 14"),
        (lambda: Device.load("abacus"), "no device 'abacus'; there are eyeriss"),
        (lambda: Device.load("nowhere.toml"), "there is no such file"),
        (lambda: Device.loads("rows = 1"), r"lacks the table \[energy\]"),
        (lambda: Device.loads("rows = 1\n[energy]\ndram = 1"), r"\[energy\] lacks array, buffer, mac, register, unit"),
        (lambda: Device.loads("rows = "), "no TOML"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, word):
    with pytest.raises(DeviceError, match=word) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_device_of_ones_own(tmp_path):
    from lilliput.hardware.device import FOLDER

    text = (FOLDER / "eyeriss.toml").read_text("utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("rows = 12", "rows = 6"))
    assert Device.load(path).rows == 6
    assert Device.load(path).name == "mine"
    for change, word in (
        ("rows = 12", "lacks rows"),
        ("rows = 12\nspeed = 1", "unknown speed"),
        ('rows = "x"', "rows must be a int"),
    ):
        path.write_text(text.replace("rows = 12", change if "lacks" not in word else ""))
        with pytest.raises(DeviceError, match=word):
            Device.load(path)
