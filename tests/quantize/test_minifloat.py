"""Minifloats: nearest of all numbers of the format, saturation, flushing, and the rule for the exponent."""

import pytest
import torch

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.quantize.minifloat import Minifloat, exponent_bits
from lilliput.testing.spread import gaussian

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def numbers(exponent, mantissa):
    """All numbers of a format, by the formula."""
    bias = 2 ** (exponent - 1) - 1
    return sorted(
        {0.0}
        | {
            sign * 2.0 ** (e - bias) * (1 + m / 2**mantissa)
            for e in range(1, 2**exponent)
            for m in range(2**mantissa)
            for sign in (1, -1)
        }
    )


def test_golden_values_of_the_standard_fixture():
    """4 bits of exponent, 3 of mantissa: the least number is 2^-6."""
    expected = [0.875, -0.75, 0.40625, -0.3125, 0.1015625, -0.01953125, 0, 0.625, 0, 0]
    assert unpack(Minifloat(bits=8).pack(W0)).tolist() == expected


@pytest.mark.parametrize(("bits", "exponent"), [(6, 2), (6, 4), (8, 4), (8, 3), (7, 5)])
def test_nearest_of_all_numbers_of_the_format(bits, exponent):
    held = torch.tensor(numbers(exponent, bits - 1 - exponent), dtype=torch.float64)
    weight = torch.cat([gaussian(2000, seed=3) * 20, torch.tensor([1e30, -1e30, 0.0])])
    value = unpack(Minifloat(bits=bits, exponent=exponent).pack(weight)).double()
    least = float(held[held > 0].min())
    flushed = weight.abs() < least
    assert bool((value[flushed] == 0).all())
    distance = (weight.double()[:, None] - held).abs()
    best = distance.min(1).values
    assert torch.equal((weight.double() - value).abs()[~flushed], best[~flushed])
    assert len(torch.unique(value)) <= 2**bits


def test_every_number_of_the_format_comes_back():
    held = torch.tensor(numbers(4, 3))
    assert torch.equal(unpack(Minifloat(bits=8, exponent=4).pack(held)), held)


def test_rounding_up_at_the_top_saturates():
    most = 2.0**8 * (2 - 2**-3)
    weight = torch.tensor([most * 1.01, -most * 1.01, 2.0**9 * 0.999])
    assert unpack(Minifloat(bits=8, exponent=4).pack(weight)).tolist() == [most, -most, most]


def test_a_zero_does_not_stop_the_rest():
    """Ristretto's own loop returns at the first zero."""
    assert unpack(Minifloat().pack(torch.tensor([0.0, 0.51, 0.0, 0.51]))).tolist() == [0, 0.5, 0, 0.5]


@pytest.mark.parametrize(
    ("largest", "bits"), [(0.1, 4), (1.0, 4), (512.0, 4), (513.0, 5), (2.0**17, 5), (1.1 * 2.0**17, 6)]
)
def test_rule_for_the_exponent(largest, bits):
    """512 = 2^9: log2(9 - 1) + 1 = 4."""
    assert exponent_bits(torch.tensor([largest, -0.01])) == bits


def test_formats_without_room():
    with pytest.raises(MethodError, match="quantize/minifloat"):
        Minifloat(bits=6, exponent=7)
    with pytest.raises(MethodError, match="exponent don't fit"):
        Minifloat(bits=6).pack(torch.tensor([1e30]))
