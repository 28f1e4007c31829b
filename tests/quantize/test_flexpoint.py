"""Flexpoint: the finest exponent that fits, and Autoflex on series whose course is known."""

import math

import pytest
import torch

from lilliput.core.packed import unpack
from lilliput.quantize.flexpoint import Autoflex, Flexpoint
from lilliput.testing.spread import gaussian

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def test_golden_values_of_the_standard_fixture():
    assert Flexpoint(bits=8).pack(W0).parts["codes"].tolist() == [115, -95, 51, -38, 13, -3, 0, 79, 2, 0]


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("largest", [0.9, 0.9999999, 1.0, 1.5, 300.0])
def test_the_finest_that_fits(bits, largest):
    w = gaussian(500)
    w = w / w.abs().max() * largest
    packed = Flexpoint(bits=bits).pack(w)
    scale, top = float(packed.parts["scale"]), 2 ** (bits - 1) - 1
    assert math.log2(scale) % 1 == 0
    assert int(packed.parts["codes"].abs().max()) <= top
    assert round(float(w.abs().max()) / (scale / 2)) > top
    assert float((unpack(packed) - w).abs().max()) <= scale / 2 * (1 + 1e-6)


def test_products_add_exponents():
    a, b = Flexpoint().pack(gaussian(50)), Flexpoint().pack(gaussian(50, seed=2))
    product = a.parts["codes"].long() * b.parts["codes"].long()
    scale = a.parts["scale"].double() * b.parts["scale"].double()
    assert torch.equal(product.double() * scale, unpack(a).double() * unpack(b).double())


def course(series):
    """Overflows and the last mantissa of a tensor whose largest values are given."""
    flex, overflows, mantissa = Autoflex(scale=2.0**-12), 0, 0
    for value in series:
        mantissa = min(round(value / flex.scale), 32767)
        overflows += mantissa >= 32767
        flex.observe(mantissa)
    return overflows, mantissa


@pytest.mark.parametrize(("value", "mantissa"), [(1.0, 8192), (1.9, 15565), (3.3, 13517)])
def test_a_constant_settles(value, mantissa):
    assert course([value] * 40) == (0, mantissa)


def test_a_jump_overflows_once():
    assert course([1.0] * 40 + [8.0] * 40) == (1, 8192)


def test_a_drift_never_overflows():
    assert course([math.exp(0.02 * t) for t in range(400)])[0] == 0


@pytest.mark.parametrize("value", [1e-6, 0.01, 1.0, 1e5])
def test_start_finds_a_scale(value):
    flex = Autoflex()
    flex.start([value] * 10)
    assert 2**13 < value / flex.scale < 2**15
    zero = Autoflex(scale=4.0)
    zero.start([0.0] * 10)
    assert zero.scale == 1.0
