"""Roundings: ties, unbiasedness, and the two midpoints between powers of two."""

import math

import pytest
import torch

from lilliput.solve.rounding import ceil_log2, exponent_near, rounded, signs


def test_ties():
    ties = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert rounded(ties).tolist() == [-2, -2, 0, 0, 2, 2]
    assert rounded(ties, "half_away").tolist() == [-3, -2, -1, 1, 2, 3]
    assert rounded(ties, "floor").tolist() == [-3, -2, -1, 0, 1, 2]
    below = torch.tensor([0.49999997, 8388609.0])
    assert rounded(below, "half_away").tolist() == [0, 8388609]


def test_random_rounding_has_the_value_for_its_mean():
    torch.manual_seed(0)
    n, value = 40_000, 0.3
    found = float(rounded(torch.full((n,), value, dtype=torch.float64), "stochastic").mean())
    assert abs(found - value) < 5 * math.sqrt(value * (1 - value) / n)


def test_zero_has_a_sign():
    assert signs(torch.tensor([0.0, -0.0, -1e-45])).tolist() == [1, 1, -1]


def test_midpoints_between_powers_of_two():
    assert exponent_near(torch.tensor([1.45]), "log").item() == 1
    assert exponent_near(torch.tensor([1.45]), "linear").item() == 0
    for power in (-130, -3, 0, 5):
        near = torch.tensor([1.4999, 1.5], dtype=torch.float64) * 2.0**power
        assert exponent_near(near, "linear").tolist() == [power, power + 1]
        near = torch.tensor([1.41421, 1.41422], dtype=torch.float64) * 2.0**power
        assert exponent_near(near, "log").tolist() == [power, power + 1]


@pytest.mark.parametrize("power", [-149, -20, 0, 1, 100])
def test_ceil_log2_at_powers(power):
    assert ceil_log2(2.0**power) == power
    assert ceil_log2(2.0**power * (1 + 1e-15)) == power + 1
    assert ceil_log2(2.0**power * (1 - 1e-15)) == power
