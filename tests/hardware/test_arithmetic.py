"""Each unit bit for bit against a multiplication; its Verilog against its model."""

import itertools

import pytest
import torch

from lilliput.core.errors import DeviceError
from lilliput.hardware import verilog
from lilliput.hardware.arithmetic import Shift, ShiftAdd, SignFlip, Skip, Table
from lilliput.hardware.dot_units import Centroids, Xnor
from lilliput.hardware.energy import operation

EVERY = torch.arange(-128, 128)
iverilog = pytest.mark.skipif(not verilog.installed(), reason="needs Icarus Verilog (apt install iverilog)")


def powers(low, high):
    steps = torch.exp2(torch.arange(low, high + 1).double())
    return torch.cat([steps, -steps, torch.zeros(1)])


def sums(terms, word):
    """All weights that ShiftCNN's greedy rule can give, with codes of their own."""
    unit, found = ShiftAdd(8, terms, word), {}
    books = []
    for term in range(terms):
        steps = torch.exp2(-torch.arange(term, term + unit.powers).double())
        books.append([0.0, *steps.tolist(), *(-steps).tolist()])
    for parts in itertools.product(*books):
        value = torch.tensor(sum(parts)).double()
        try:
            found[sum(parts)] = unit.encode(value)
        except DeviceError:
            continue
    return torch.tensor(list(found)).double()


UNITS = [
    (SignFlip(8), torch.tensor([-1.0, 1.0])),
    (Skip(8), torch.tensor([-1.0, 0.0, 1.0])),
    (Shift(8, 0, 1), torch.tensor([0.0, 1, -1, 2, -2])),
    (Shift(8, 0, 2), powers(0, 2)),
    (Shift(8, -7, 0), powers(-7, 0)),
    (Table(8, 3), torch.arange(-7.0, 8, 2)),
    (Table(2, 1), torch.tensor([-1.0, 1.0])),
    (ShiftAdd(8, 1, 4), sums(1, 4)),
    (ShiftAdd(8, 2, 4), sums(2, 4)),
]
names = [f"{type(unit).__name__}-{place}" for place, (unit, _) in enumerate(UNITS)]


def inputs_of(unit):
    return EVERY if unit.signed else torch.arange(1 << unit.bits)


@pytest.mark.parametrize(("unit", "weights"), UNITS, ids=names)
def test_every_product_is_the_multiplications(unit, weights):
    codes, inputs = unit.encode(weights)[:, None], inputs_of(unit)
    products = unit.product(codes, inputs)
    assert torch.equal(products.double(), weights[:, None].double() * inputs * 2**unit.scale_bits)
    # And the port is wide enough, for one product and for the sum of the worst.
    half = 2 ** (unit.output_bits - 1)
    assert -half <= int(products.min())
    assert int(products.max()) < half
    assert 50 * int(products.abs().max()) < 2 ** (unit.accumulator_bits(50) - 1) + 50


@iverilog
@pytest.mark.parametrize(("unit", "weights"), UNITS, ids=names)
def test_verilog_gives_the_same_bits(unit, weights):
    if len(weights) > 40:
        weights = weights[torch.linspace(0, len(weights) - 1, 40).long()]
    codes, inputs = unit.encode(weights), inputs_of(unit)
    words = list(itertools.product(codes.tolist(), inputs.tolist()))
    assert verilog.simulate(unit, words) == unit.product(codes[:, None], inputs).flatten().tolist()


def test_truncating_shifts_round_down_and_lose_half_a_unit():
    unit = Shift(8, -3, 1, truncating=True)
    weights = powers(-3, 1)
    products = unit.product(unit.encode(weights)[:, None], EVERY)
    exact = weights.abs()[:, None] * EVERY
    assert torch.equal(products.double(), torch.floor(exact) * torch.sign(weights)[:, None])
    eighth = (unit.product(unit.encode(torch.tensor(0.125)), EVERY) - 0.125 * EVERY).mean()
    assert float(eighth) == pytest.approx(-0.5 + 1 / 16)


@iverilog
def test_truncating_verilog_gives_the_same_bits():
    unit = Shift(8, -3, 1, truncating=True)
    codes = unit.encode(powers(-3, 1))
    words = list(itertools.product(codes.tolist(), EVERY.tolist()))
    assert verilog.simulate(unit, words) == unit.product(codes[:, None], EVERY).flatten().tolist()


@pytest.mark.parametrize("count", [1, 5, 64, 65])
def test_xnor_is_the_dot_product_of_signs(count):
    torch.manual_seed(count)
    unit = Xnor(count)
    codes, inputs = torch.randint(2, (40, count)), torch.randint(2, (40, count))
    expected = ((2 * codes - 1) * (2 * inputs - 1)).sum(-1)
    assert torch.equal(unit.dot(codes, inputs), expected)
    ends = unit.dot(torch.ones(count), torch.ones(count).long()), unit.dot(torch.ones(count), torch.zeros(count).long())
    assert ends == (count, -count)
    if verilog.installed():
        words = [unit.words(*pair) for pair in zip(codes, inputs)]
        assert verilog.simulate(unit, words) == expected.tolist()


@pytest.mark.parametrize("values", [(3,), (5, -2, 0, 127), (-128, 127, 1, -1, 64, 90, -90)])
def test_sums_by_centroid_are_the_dot_product(values):
    torch.manual_seed(0)
    unit = Centroids(8, 12, values)
    codes, inputs = torch.randint(len(values), (30, 12)), torch.randint(-128, 128, (30, 12))
    inputs[0] = -128
    expected = (torch.tensor(values)[codes] * inputs).sum(-1)
    assert torch.equal(unit.dot(codes, inputs), expected)
    if verilog.installed():
        words = [unit.words(*pair) for pair in zip(codes, inputs)]
        assert verilog.simulate(unit, words) == expected.tolist()


def test_a_quantized_layer_is_bit_equal_to_the_kernel_that_serves_it():
    """Whole numbers go in and the scale is a power of two, so that the kernel's float32 sums are exact too."""
    from lilliput.graph.ir import InputRef, Node, TensorRef
    from lilliput.kernels.found import serving
    from lilliput.quantize.ternary import Ternary

    torch.manual_seed(0)
    packed = Ternary(per="tensor").pack(torch.randint(-1, 2, (16, 64)) / 8.0 * (torch.rand(16, 64) < 0.3))
    inputs = torch.randint(-128, 128, (5, 64))
    made = list(serving(packed, Node("aten.linear.default", (InputRef(0), TensorRef("weight"), None))))
    assert made
    scale, unit = float(packed.parts["scale"]), Skip(8)
    assert scale == 0.125
    sums = unit.linear(unit.encode((Ternary.unpack(packed) / scale).round()), inputs)
    for name, module in made:
        assert torch.equal(module(inputs.float()), sums.float() * scale), name


def test_costs_are_ordered():
    costs = [unit.cost.energy for unit in (SignFlip(8), Skip(8), Shift(8, 0, 2), ShiftAdd(8, 1), ShiftAdd(8, 2))]
    assert costs == sorted(costs)
    for kind in (SignFlip, Skip, Shift):
        assert kind(4).cost.energy < kind(8).cost.energy < operation("multiply", "int", 8).energy
        assert kind(8).saving > 1
        assert kind(8).cost.estimated
    many = Centroids(8, 4096, tuple(range(16)))
    assert many.cost.energy < 4096 * operation("multiply", "int", 8).energy
    assert Xnor(64).cost.energy < 64 * SignFlip(8).cost.energy
    assert Skip(8).busy(torch.tensor([0, 1, 3, 0])) == Shift(8).busy(torch.tensor([0, 1, 3, 0])) == 2
    assert SignFlip(8).busy(torch.tensor([0, 1])) == 2


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: SignFlip(0), "bits must be 1 to 24"),
        (lambda: SignFlip(8).encode(torch.tensor([0.5])), "must be -1 or 1; one is 0.5"),
        (lambda: SignFlip(8).product(torch.tensor(0), torch.tensor(128)), "inputs must lie in -128 .. 127"),
        (lambda: Skip(8).product(torch.tensor(2), torch.tensor(1)), "the code 2"),
        (lambda: Skip(8).product(torch.tensor(4), torch.tensor(1)), "codes must lie in 0 .. 3"),
        (lambda: Shift(8, 2, 1), "exponents 2 .. 1 must rise"),
        (lambda: Shift(8, 0, 1).encode(torch.tensor([3.0])), "one is 3"),
        (lambda: Shift(8, 0, 2).encode(torch.tensor([8.0])), "one is 8"),
        (lambda: Shift(8, -4, 0).product(torch.tensor(7), torch.tensor(1)), "beyond the exponent 0"),
        (lambda: Table(8, 8), "at most 12"),
        (lambda: Table(2, 2).encode(torch.tensor([2.0])), "odd steps"),
        (lambda: ShiftAdd(8, 5), "5 terms"),
        (lambda: ShiftAdd(8, 1).encode(torch.tensor([0.75])), "sums of 1 powers"),
        (lambda: Xnor(0), "count must be"),
        (lambda: Xnor(2).dot(torch.tensor([0, 2]), torch.tensor([0, 1])), "codes must be 2 bits"),
        (lambda: Centroids(8, 2, (300,)), "values must fit 8 bits"),
        (lambda: Centroids(8, 2, ()), "0 values"),
        (lambda: Centroids(8, 2, (1,)).dot(torch.tensor([0, 1]), torch.tensor([0, 1])), "codes must lie in 0 .. 0"),
        (lambda: Centroids(8, 2, (1,)).dot(torch.tensor([0]), torch.tensor([0, 1])), "must have 2 numbers"),
        (lambda: Centroids(4, 2, (1,)).dot(torch.tensor([0, 0]), torch.tensor([8, 1])), "inputs must lie in -8 .. 7"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, word):
    with pytest.raises(DeviceError, match=word) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_without_icarus_verilog_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DeviceError, match="apt install iverilog"):
        verilog.simulate(SignFlip(8), [(0, 1)])
