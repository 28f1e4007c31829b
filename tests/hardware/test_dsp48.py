"""All 2^24 pairs of products; chains up to the limit, and the chain that goes beyond it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import DeviceError
from lilliput.hardware.dsp48 import SHIFT, dot, limit, multiply, split


def test_every_pair_of_products():
    every = torch.arange(-128, 128)
    wrong = 0
    for shared in every:
        high, low = split(multiply(every[:, None], every[None], shared))
        assert bool((high == every[:, None] * shared).all())
        assert bool((low == every[None] * shared).all())
        uncorrected = multiply(every[:, None], every[None], shared) >> SHIFT
        wrong += int((uncorrected != high).sum())
        assert bool(((uncorrected == high) | (uncorrected == high - 1)).all())
    assert wrong / 2**24 == pytest.approx(0.4961, abs=1e-4)


def test_the_packed_operand_fits_the_port():
    ends = torch.tensor([-128, 127])
    packed = multiply(ends[:, None], ends[None], torch.tensor(1))
    assert (int(packed.min()), int(packed.max())) == (-33554560, 33292415)
    assert int(packed.abs().max()) < 2**26


byte = st.integers(-128, 127)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(byte, byte, byte), min_size=1, max_size=7))
def test_chains_of_seven_are_exact(terms):
    high, low, shared = torch.tensor(terms).T
    found = split(multiply(high, low, shared).sum())
    assert found == (int((high * shared).sum()), int((low * shared).sum()))


def test_the_limit_is_sharp():
    worst = torch.full((8,), -128)
    high, low = split(multiply(worst, worst, worst)[:7].sum())
    assert (int(high), int(low)) == (7 * 16384, 7 * 16384)
    assert split(multiply(worst, worst, worst).sum())[1] != 8 * 16384
    extreme, weights = torch.full((4,), -128), torch.full((4,), 255)
    assert split(multiply(extreme, extreme, weights).sum()) == (-4 * 32640, -4 * 32640)
    assert split(multiply(extreme, extreme, weights).sum() + multiply(*extreme[:2], weights[0]))[1] != -5 * 32640


def test_long_dot_products_are_drained():
    torch.manual_seed(0)
    high, low, shared = (
        torch.randint(-128, 128, (3, 50)),
        torch.randint(-128, 128, (3, 50)),
        torch.randint(-128, 128, (50,)),
    )
    found = dot(high, low, shared)
    assert torch.equal(found[0], high @ shared)
    assert torch.equal(found[1], low @ shared)


def test_empty_ranges_are_refused():
    with pytest.raises(DeviceError, match="empty ranges"):
        limit((1, 0), (0, 1))
    assert limit((0, 0), (0, 5)) > 1000
