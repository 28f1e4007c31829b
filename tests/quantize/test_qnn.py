"""QNN's weights: number of levels, bounds of the error, powers of two, clipping."""

import math

import pytest
import torch

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.quantize.qnn import Qnn
from lilliput.testing import hostile
from lilliput.testing.spread import gaussian, weights

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def test_golden_values_of_the_standard_fixture():
    assert unpack(Qnn(bits=3).pack(W0)).tolist() == [0.75, -0.75, 0.5, -0.25, 0, 0, 0, 0.5, 0, 0]
    log = unpack(Qnn(bits=4, spacing="log").pack(W0))
    assert log.tolist() == [1, -1, 0.5, -0.25, 0.125, -(2**-6), 0, 0.5, 2**-6, 0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_linear_levels(bits):
    w = torch.linspace(-1.5, 1.5, 6001)
    value = unpack(Qnn(bits=bits).pack(w))
    assert len(value.unique()) == 2**bits
    step = 2.0 ** (1 - bits)
    inside = (w >= -1) & (w <= 1 - step)
    assert float((value - w)[inside].abs().max()) <= step / 2 + 1e-6
    assert (float(value.min()), float(value.max())) == (-1, 1 - step)


@pytest.mark.parametrize("bits", range(2, 7))
def test_logarithmic_levels(bits):
    """At most sqrt(2) - 1 above and 1 - sqrt(1/2) below a weight that is inside the range."""
    count = 2 ** (bits - 1) - 1
    w = torch.linspace(2.0 ** (1 - count), 1, 9000, dtype=torch.float64)
    ratio = unpack(Qnn(bits=bits, spacing="log").pack(w)) / w
    assert float(ratio.max()) <= math.sqrt(2) + 1e-6
    assert float(ratio.min()) >= math.sqrt(0.5) - 1e-6
    spread = torch.cat([gaussian(2000) * 3, torch.tensor([0.0, 5.0])]) * torch.logspace(-10, 0, 2002)
    assert len(unpack(Qnn(bits=bits, spacing="log").pack(torch.cat([spread, -spread]))).unique()) == 2 * count + 1


def test_latent_weights_are_clipped():
    assert Qnn().confined(torch.tensor([-3.0, 0.2, 1.5])).tolist() == [-1, pytest.approx(0.2), 1]


def test_settings_out_of_range():
    with pytest.raises(MethodError, match="quantize/qnn: bits = 7"):
        Qnn(bits=7, spacing="log")


def test_damage_to_the_logarithmic_form():
    hostile.check((name, weight, Qnn(spacing="log").pack(weight)) for name, weight in weights().items())
