"""Histogram, zeros and kurtosis against closed forms and a slow count."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lilliput.report.distribution import BINS, distribution, reach


def test_two_equal_spikes_have_kurtosis_one_and_half_zeros_raise_it_to_two():
    assert distribution(torch.tensor([-1.0, 1.0])).kurtosis == 1.0
    # m4 / m2^2 = (1/2) / (1/2)^2
    assert distribution(torch.tensor([-1.0, 0.0, 0.0, 1.0])).kurtosis == 2.0


def test_evenly_spaced_values_have_the_kurtosis_of_the_uniform_distribution():
    count = 4001
    # For n equally spaced values: 3/5 (3 n^2 - 7) / (n^2 - 1).
    expected = 0.6 * (3 * count**2 - 7) / (count**2 - 1)
    assert distribution(torch.linspace(-3, 5, count, dtype=torch.float64)).kurtosis == pytest.approx(expected, rel=1e-9)


def test_a_histogram_counts_all_but_the_zeros_and_clips_outliers_into_the_last_bar():
    values = torch.cat([torch.zeros(10), torch.full((99,), 0.01), torch.tensor([1000.0])])
    found = distribution(values)
    assert found.zeros == pytest.approx(10 / 110)
    assert sum(found.counts) == 100
    assert found.counts[-1] == 1
    assert found.limit == pytest.approx(5 * math.sqrt(float(values.double().square().mean())))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-20, 1e30])
def test_equal_values_have_no_kurtosis(value):
    assert distribution(torch.full((1001,), value)).kurtosis is None


def test_what_has_no_distribution_gives_none():
    assert distribution(torch.zeros(0)) is None
    assert distribution(torch.zeros(3, dtype=torch.int64)) is None
    assert distribution(torch.tensor([1.0, math.nan])) is None


def test_half_precision_is_measured_in_double():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).half()
    assert distribution(values) == distribution(values.double())


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60))
def test_counts_are_those_of_a_slow_count(numbers):
    values = torch.tensor(numbers, dtype=torch.float64)
    found = distribution(values)
    limit = reach(values)
    live = [min(max(v, -limit), limit) for v in values.tolist() if v != 0]
    assert sum(found.counts) == len(live)
    width = 2 * limit / BINS
    for place, count in enumerate(found.counts):
        # A value on an edge may fall on either side of it by rounding.
        low, high = -limit + place * width, -limit + (place + 1) * width
        slack = 1e-9 * limit
        assert sum(low + slack < v < high - slack for v in live) <= count
        assert count <= sum(low - slack <= v <= high + slack for v in live)
