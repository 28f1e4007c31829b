"""Two-bit weights against the numbers they stand for."""

import pytest
import torch
from torch.nn import functional

from lilliput.core import kernel
from lilliput.core.errors import MethodError
from lilliput.kernels.ternary import prepare, restored, ternary_conv, ternary_linear, ternary_total


@pytest.fixture(params=kernel.variants())
def variant(request):
    with kernel.using(request.param):
        yield request.param


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ternary(*shape, seed=1):
    return drawn(*shape, seed=seed).round().clamp(-1, 1)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (65, 17, 3, 2), (64, 16, 1, 1), (3, 40, 5, 5)])
def test_weights_come_back(shape):
    w = ternary(*shape)
    assert torch.equal(restored(prepare(w), *shape[:2], shape[2:]).float(), w)
    assert prepare(w).numel() == -(-shape[0] // 64) * 64 * shape[2] * shape[3] * -(-shape[1] // 16) * 16 // 4


@pytest.mark.parametrize("places", [1, 11, 12, 40])
def test_the_ends_of_eight_bits_do_not_overflow(variant, places):
    """All activations -128 or 127 and all weights of one sign, at a depth where 16 bits would not do."""
    for value in (-128, 127):
        x = torch.full((places, 1, 1, 4096), value, dtype=torch.int8)
        for sign in (-1, 1):
            found = ternary_total(x, prepare(torch.full((3, 4096), float(sign))), 3, [1, 1, 1, 1, 0, 0, 1, 1], 0)
            assert found.unique().tolist() == [sign * value * 4096]


def test_ttq_of_steps_and_zero_points(variant):
    """Affine activations: zero point as border, and W_p, -W_n as two numbers."""
    x, w = (drawn(2, 6, 7, 20) * 60).clamp(-128, 127).char(), ternary(70, 20, 3, 3)
    step, zero, positive, negative = 0.05, 7, 0.8, 0.3
    values = torch.where(w > 0, positive, torch.where(w < 0, -negative, 0.0)).double()
    real = (x.permute(0, 3, 1, 2).double() - zero) * step
    expected = functional.conv2d(real, values, None, 1, 1)
    first, second = (positive + negative) / 2 * step, (positive - negative) / 2 * step
    bias = -zero * (first * w + second * w.abs()).sum((1, 2, 3))
    numbers = torch.full((70,), first), torch.full((70,), second), bias
    found = ternary_conv(x, prepare(w), [3, 3, 1, 1, 1, 1, 1, 1], zero, *numbers)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_float_activations(variant):
    x, w, scale = drawn(3, 1000), ternary(130, 1000), drawn(130, seed=3)
    values = torch.where(w > 0, 0.8, torch.where(w < 0, -0.3, 0.0)).double()
    found = ternary_linear(x, prepare(w), [-0.3, 0.0, 0.8], scale, None)
    torch.testing.assert_close(found.double(), x.double() @ values.T * scale, rtol=1e-5, atol=1e-4)


def test_bad_input():
    x, w, geometry = torch.zeros(1, 4, 4, 20, dtype=torch.int8), prepare(ternary(5, 20, 3, 3)), [3, 3, 1, 1, 0, 0, 1, 1]
    with pytest.raises(MethodError, match="two bits serve"):
        prepare(torch.tensor([[0.5]]))
    for arguments in [
        (x.float(), w, 5, geometry, 0),
        (x, w[:, 1:], 5, geometry, 0),
        (x, w, 65, geometry, 0),
        (x, w, 5, geometry[:-1], 0),
        (x[:, :2], w, 5, geometry, 0),
        (x, w, 5, geometry, 200),
    ]:
        with pytest.raises(MethodError, match="ternary: "):
            ternary_total(*arguments)
    with pytest.raises(MethodError, match="ternary_linear"):
        ternary_linear(torch.zeros(1, 50), prepare(ternary(5, 20)), [-1.0, 0.0, 1.0], torch.ones(5), None)
