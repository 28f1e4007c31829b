"""Powers of two: golden values, the logarithmic midpoint, and that there is no zero."""

import math

import pytest
import torch

from lilliput.core.packed import unpack
from lilliput.quantize.power_of_two import PowerOfTwo, codes_near, powers
from lilliput.testing.spread import gaussian

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def test_golden_values_of_the_standard_fixture():
    expected = [0.5, -0.5, 0.5, -0.25, 0.125, -(2**-6), 2**-8, 0.5, 2**-6, -(2**-8)]
    assert unpack(PowerOfTwo().pack(W0)).tolist() == expected


def test_the_switch_is_at_the_square_root_of_two():
    weight = torch.tensor([0.25 * 1.4142, 0.25 * 1.4143, -0.25 * 1.45])
    assert unpack(PowerOfTwo().pack(weight)).tolist() == [0.25, 0.5, -0.5]


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_exponents_are_those_of_the_bits(bits):
    weight = torch.cat([gaussian(4500) * 3, gaussian(4500, seed=1) * torch.logspace(-9, 0, 4500)])
    value = unpack(PowerOfTwo(bits=bits).pack(weight))
    exponents = torch.log2(value.abs())
    assert torch.equal(exponents, exponents.round())
    assert float(exponents.max()) == -1
    assert float(exponents.min()) == -(2 ** (bits - 1))
    assert len(value.unique()) == 2**bits


def test_relative_error_inside_the_range():
    """2^e is at most sqrt(2) - 1 above and 1 - sqrt(1/2) below the weight."""
    weight = torch.linspace(2**-7, 0.5, 4000, dtype=torch.float64)
    ratio = unpack(PowerOfTwo().pack(weight)) / weight
    assert float(ratio.max()) <= math.sqrt(2) + 1e-9
    assert float(ratio.min()) >= math.sqrt(0.5) - 1e-9


def test_codes_near_are_the_nearest_of_all_words():
    words = torch.tensor([0.0] + [2.0**e for e in (-3, -2, -1, 0)], dtype=torch.float64)
    weight = torch.linspace(0, 1.4999, 3001, dtype=torch.float64)
    found = powers(codes_near(weight, 0, 4), 0)
    assert torch.equal((found - weight).abs(), (weight[:, None] - words).abs().min(1).values)
    # At a midpoint the larger word.
    ties = torch.tensor([0.0625, 0.1875, 0.375, 0.75])
    assert powers(codes_near(ties, 0, 4), 0).tolist() == [0.125, 0.25, 0.5, 1.0]
