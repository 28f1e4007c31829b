"""Ristretto's dynamic fixed point for activations: formula, saturation, and integer simulation."""

import pytest
import torch

from lilliput.core.stats import Stats
from lilliput.observe.ranges import Range
from lilliput.quantize.activations.fixed_point import FixedPoint
from lilliput.quantize.fixed_point import FixedPoint as Weights


def seen(low, high):
    return Stats({"range": Range(low, high, 10, 0.5)})


@pytest.mark.parametrize(("high", "fraction"), [(0.9, 8), (1.0, 8), (1.1, 7), (300.0, -1), (0.01, 14)])
def test_one_bit_less_before_the_point_than_weights(high, fraction):
    """il = ceil(log2 max), where weights have one more; fl = bits - il."""
    assert FixedPoint(bits=8).observe(seen(-high / 2, high)) == {"fraction": fraction}
    assert FixedPoint(bits=8, wide=True).observe(seen(-high, 0.0)) == {"fraction": fraction - 1}


def test_what_is_beyond_half_the_range_saturates():
    fixed = FixedPoint(bits=4)
    numbers = fixed.observe(seen(-1.0, 1.0))
    x = torch.tensor([1.0, 0.5, 0.4375, -0.5, -1.0, 0.03125, -0.03125])
    assert fixed.forward(x, numbers).tolist() == [0.4375, 0.4375, 0.4375, -0.5, -0.5, 0.0625, -0.0625]
    assert FixedPoint(bits=4, signed=False).forward(x, numbers).tolist() == [0.9375, 0.5, 0.4375, 0, 0, 0.0625, 0]
    assert fixed.gradient(x, numbers, torch.ones(7))[0].tolist() == [0, 0, 1, 1, 0, 1, 1]


def test_wide_is_the_weights_method():
    torch.manual_seed(0)
    x = torch.randn(1000) * 0.3
    fixed = FixedPoint(bits=6, wide=True)
    out = fixed.forward(x, fixed.observe(seen(float(x.min()), float(x.max()))))
    assert torch.equal(out, Weights.unpack(Weights(bits=6).pack(x)))


def test_random_rounding_has_the_mean():
    torch.manual_seed(1)
    fixed = FixedPoint(bits=4, stochastic=True)
    x = torch.full((40000,), 0.1)
    drawn = fixed.draw(x, {"fraction": 3})
    assert set(drawn.tolist()) == {0.0, 0.125}
    assert float(drawn.mean()) == pytest.approx(0.1, abs=0.002)
    assert float(fixed.draw(torch.full((100,), 9.0), {"fraction": 3}).max()) == 0.875


def test_integers_shifted_are_the_float_layer():
    """Products added as integers of fl_in + fl_w bits, shifted to fl_out with rounding, are the float simulation."""
    torch.manual_seed(2)
    fixed, x, w = FixedPoint(bits=8), torch.randn(20, 32), torch.randn(6, 32) * 0.2
    into, out_of = {"fraction": 6}, {"fraction": 3}
    packed = Weights(bits=8).pack(w)
    fraction = -int(torch.log2(packed.tensor("scale")).item())
    value = fixed.forward(x, into)
    float_out = fixed.forward(value @ Weights.unpack(packed).T, out_of)
    codes = torch.round(value * 2**6).long()
    total = codes @ packed.tensor("codes").long().T
    shift = 6 + fraction - 3
    half = 1 << (shift - 1)
    rounded = torch.sign(total) * ((total.abs() + half) >> shift)
    assert torch.equal(rounded.clamp(-128, 127).float() / 8, float_out)
