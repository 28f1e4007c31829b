"""Ternary, DoReFa and logarithmic activations against their formulas."""

import math

import pytest
import torch

from lilliput.core.errors import MethodError
from lilliput.core.stats import Stats
from lilliput.observe.ranges import Range
from lilliput.quantize.activations.dorefa import Dorefa
from lilliput.quantize.activations.log import Log
from lilliput.quantize.activations.ternary import Ternary
from lilliput.quantize.qnn import Qnn


def test_ternary_fires_with_the_mean_of_its_input():
    """Alemdar et al.: sgn(r) with probability |r|, so that the mean is r."""
    torch.manual_seed(0)
    for value in (-0.7, 0.0, 0.2, 1.0, 1.4):
        drawn = Ternary(stochastic=True).draw(torch.full((40000,), value), {})
        assert set(drawn.tolist()) <= {-1.0, 0.0, 1.0}
        assert float(drawn.mean()) == pytest.approx(min(value, 1.0), abs=0.02)
    assert Ternary().gradient(torch.tensor([-1.1, -1.0, 0.3]), {}, torch.ones(3))[0].tolist() == [0, 1, 1]


def test_ternary_s_threshold():
    x = torch.tensor([0.5, 0.5001, -0.5, -0.6])
    assert Ternary().forward(x, {}).tolist() == [0, 1, 0, -1]
    assert Ternary(threshold=1.0).forward(x * 2, {}).tolist() == [0, 1, 0, -1]
    with pytest.raises(MethodError, match="threshold"):
        Ternary(threshold=0.0)


@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_is_the_nearest_of_its_levels(bits):
    torch.manual_seed(bits)
    x = torch.rand(500) * 1.5 - 0.25
    levels = torch.arange(2**bits, dtype=torch.float64) / (2**bits - 1)
    nearest = levels[(x.double().clamp(0, 1)[:, None] - levels).abs().argmin(1)]
    out = Dorefa(bits=bits).forward(x, {})
    assert torch.allclose(out.double(), nearest, atol=1e-6)
    assert out.max() == 1
    assert out.min() == 0
    assert Dorefa().gradient(torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1]), {}, torch.ones(5))[0].tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_log_is_qnn_s_weights(bits):
    """The same formula as `quantize/qnn`, which finds exponents by frexp: every float32 near the boundaries too."""
    edges = torch.tensor([2.0 ** (k + 0.5) for k in range(-33, 2)])
    near = torch.cat([edges, torch.nextafter(edges, torch.tensor(9.0)), torch.nextafter(edges, torch.tensor(0.0))])
    torch.manual_seed(0)
    x = torch.cat([near, -near, torch.randn(3000), torch.zeros(1), torch.exp2(torch.arange(-40.0, 3.0))])
    log = Log(bits=bits)
    expected = Qnn.unpack(Qnn(bits=bits, spacing="log").pack(x))
    assert torch.equal(log.forward(x, log.observe(None)), expected)


def test_log_s_relative_error():
    """At most 2^(1/2) - 1 upwards and 1 - 2^(-1/2) downwards, for what isn't clipped."""
    log = Log(bits=6)
    x = torch.exp2(torch.rand(5000) * 28 - 28)
    error = (log.forward(x, {"top": 0}) / x - 1).double()
    assert error.max() <= math.sqrt(2) - 1 + 1e-6
    assert error.min() >= math.sqrt(0.5) - 1 - 1e-6
    assert error.max() > 0.4
    assert error.min() < -0.28


def test_log_s_levels_by_hand():
    log = Log(bits=2, signed=False, calibrated=True)
    numbers = log.observe(Stats({"range": Range(-9.0, 6.0, 3, 1.0)}))
    assert numbers == {"top": 3}
    x = torch.tensor([-9.0, 100.0, 6.0, 5.0, 1.5, 1.4, 0.0])
    assert log.forward(x, numbers).tolist() == [0, 8, 8, 4, 2, 0, 0]
    assert log.gradient(x, numbers, torch.ones(7))[0].tolist() == [0, 0, 1, 1, 1, 1, 1]
