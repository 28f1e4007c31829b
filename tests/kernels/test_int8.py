"""Integer layers against exact fractions, and against the float simulation that training sees."""

from fractions import Fraction
from math import floor

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.kernels import int8
from lilliput.quantize.activations.uniform import Uniform
from lilliput.quantize.uniform import Uniform as Weights


def half_up(value):
    return floor(value + Fraction(1, 2))


def half_away(value):
    return half_up(value) if value >= 0 else -half_up(-value)


def test_multipliers_are_near_and_normal():
    torch.manual_seed(0)
    for real in [0.5, 1 - 1e-12, 1e-9, 3.7, *torch.rand(200, dtype=torch.float64).tolist()]:
        m, shift = int8.multiplier(real)
        assert 2**30 <= m < 2**31
        assert abs(Fraction(m, 2**31) / Fraction(2) ** shift / Fraction(real) - 1) <= Fraction(1, 2**30)
    assert int8.multiplier(0.999999999999) == (2**30, -1)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MethodError):
            int8.multiplier(bad)


def test_requantization_is_exact_rounding_of_fractions():
    """round(round(t m / 2^31) / 2^s): the first to the nearest, ties upwards, the second with ties away from zero."""
    torch.manual_seed(1)
    totals = torch.cat(
        [
            torch.randint(-(2**31), 2**31, (300,)),
            torch.randint(-300, 300, (300,)),
            torch.tensor([-(2**31), 2**31 - 1, 0]),
        ]
    )
    multipliers = torch.randint(2**30, 2**31, (len(totals),))
    multipliers[:100] = 2**30
    shifts = torch.randint(0, 32, (len(totals),))
    found = int8.requantize(totals, multipliers, shifts)
    for t, m, s, out in zip(totals.tolist(), multipliers.tolist(), shifts.tolist(), found.tolist()):
        assert out == half_away(Fraction(half_up(Fraction(t * m, 2**31)), 2**s))


def test_saturation_and_left_shifts():
    lowest = torch.tensor([-(2**31)])
    assert int8.doubling_high_product(lowest, lowest).item() == 2**31 - 1
    assert int8.requantize(torch.tensor([5]), torch.tensor([2**30]), torch.tensor([-3])).item() == 20
    assert int8.requantize(torch.tensor([2**31 - 1]), torch.tensor([2**30]), torch.tensor([40])).item() == 0


def test_affine_identity():
    """ZQ: sum (Q1 - Z1)(Q2 - Z2) = sum Q1 Q2 - Z1 sum Q2 - Z2 sum Q1 + N Z1 Z2."""
    torch.manual_seed(2)
    q1, q2 = torch.randint(0, 256, (4, 30)), torch.randint(0, 256, (5, 30))
    z1, z2 = 37, 140
    expanded = q1 @ q2.T - z1 * q2.sum(1) - z2 * q1.sum(1, keepdim=True) + 30 * z1 * z2
    layer = int8.IntegerLayer(q2 - z2, torch.zeros(5, dtype=torch.int64), (z1, 0), q2[:, 0], q2[:, 0], (0, 255))
    assert torch.equal(layer.total(q1), expanded)


def built(layer, x, geometry=None, per="row"):
    into, out_of = Uniform(bits=8), Uniform(bits=8)
    packed = Weights(bits=8, per=per).pack(layer.weight.detach())
    held = into.between(float(x.min()), float(x.max()))
    value = into.forward(x, held)
    with torch.no_grad():
        layer.weight.copy_(Weights.unpack(packed))
        out = layer(value)
    given = out_of.between(float(out.min()) * 0.8, float(out.max()) * 0.8)
    integer = int8.integer_layer(packed, layer.bias, (into, held), (out_of, given), geometry)
    return integer, int8.encode(x, into, held), out, (out_of, given)


@pytest.mark.parametrize("per", ["row", "tensor"])
def test_a_linear_layer_in_integers(per):
    """Codes out are the exact rounding of the exact product; of the float simulation they are at most one off."""
    torch.manual_seed(3)
    layer, x = nn.Linear(40, 7), torch.randn(60, 40)
    integer, codes, out, (out_of, given) = built(layer, x, per=per)
    found = integer(codes)
    totals = integer.total(codes)
    for column in range(7):
        m, s = int(integer.multipliers[column]), int(integer.shifts[column])
        for total, code in zip(totals[:, column].tolist(), found[:, column].tolist()):
            exact = half_away(Fraction(half_up(Fraction(total * m, 2**31)), 2**s)) + int(given["zero"])
            assert code == min(max(exact, 0), 255)
    simulated = int8.encode(out, out_of, given)
    assert int((found - simulated).abs().max()) <= 1
    assert float((found != simulated).float().mean()) < 0.02
    assert found.min() == 0
    assert found.max() == 255


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 0, 1, 2), (1, 2, 2, 4)])
def test_a_convolution_in_integers(stride, padding, dilation, groups):
    torch.manual_seed(4)
    layer = nn.Conv2d(4, 8, 3, stride, padding, dilation, groups)
    x = torch.rand(2, 4, 9, 8) * 2 - 0.7
    pairs = ((stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
    integer, codes, out, (out_of, given) = built(layer, x, pairs)
    unit = integer.weight.double()
    steps = (codes - integer.zero[0]).double()
    exact = nn.functional.conv2d(steps, unit, integer.bias.double(), stride, padding, dilation, groups)
    assert torch.equal(integer.total(codes).double(), exact), "float64 holds these sums exactly"
    found, simulated = integer(codes), int8.encode(out, out_of, given)
    assert int((found - simulated).abs().max()) <= 1
    assert float((found != simulated).float().mean()) < 0.02


def test_codes_and_values_are_the_same_thing():
    uniform = Uniform(bits=8)
    numbers = uniform.between(-1.3, 2.4)
    x = torch.linspace(-2, 3, 999)
    assert torch.equal(int8.decode(int8.encode(x, uniform, numbers), numbers), uniform.forward(x, numbers))


def test_what_has_no_integers_is_refused():
    x, w = Uniform(), torch.randn(3, 4)
    numbers = x.between(-1, 1)
    dynamic = (Uniform(range="dynamic"), {})
    with pytest.raises(MethodError, match="on its grid"):
        int8.integer_layer(Weights(bits=4, cell_mean=True).pack(w), None, (x, numbers), (x, numbers))
    with pytest.raises(MethodError, match="static"):
        int8.integer_layer(Weights().pack(w), None, dynamic, (x, numbers))
    wide = int8.IntegerLayer(torch.full((1, 4), 2**30), torch.zeros(1, dtype=torch.int64), (0, 0), w[0], w[0], (0, 255))
    with pytest.raises(MethodError, match="32 bits"):
        wide.total(torch.full((1, 4), 255))
