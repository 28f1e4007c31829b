"""Shift-based BatchNorm and AdaMax against their formulas, written out."""

import math

import pytest
import torch
from torch import nn

from lilliput.core.errors import ModelError
from lilliput.train.shift_adamax import ShiftAdaMax
from lilliput.train.shift_norm import ShiftNorm, power_near


def test_powers_switch_at_sqrt_2():
    edge = torch.tensor(math.sqrt(2.0))
    assert power_near(torch.tensor([1.45, 1.41, -0.75, 0.7, 0.0])).tolist() == [2, 1, -1, 0.5, 0]
    assert power_near(edge * 2.0**-40) in (2.0**-40, 2.0**-39)


def test_norm_by_hand():
    """C, var = mean(C AP2(C)), inv, y: all in float64, from the formulas."""
    torch.manual_seed(0)
    x = torch.randn(50, 4, 3) * torch.tensor([0.3, 1, 5, 20])[:, None] + 2
    norm = ShiftNorm(4).train()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.7, 1.0, -3.0, 1.5]))
        norm.bias.copy_(torch.randn(4))
    out = norm(x)
    for channel in range(4):
        own = x[:, channel].double()
        centred = own - own.mean()
        variance = (centred * power_near(centred)).mean()
        inverse = power_near((variance + norm.eps).rsqrt())
        gamma = power_near(norm.weight[channel].detach().double())
        expected = gamma * centred * inverse + norm.bias[channel].double()
        assert torch.allclose(out[:, channel].double(), expected, atol=1e-5)


def test_gradients_are_the_released_code_s():
    torch.manual_seed(1)
    x = (torch.randn(30, 3) * 4).requires_grad_()
    norm = ShiftNorm(3).train()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.7, -1.3, 3.0]))
    grad = torch.randn(30, 3)
    norm(x).backward(grad)
    centred = (x - x.mean(0)).detach()
    power = power_near(centred)
    inverse = power_near(((centred * power).mean(0) + norm.eps).rsqrt())
    rest = grad - grad.mean(0) - power * inverse**2 * (power * grad).mean(0)
    assert torch.allclose(x.grad, power_near(norm.weight.detach()) * inverse * rest, atol=1e-6)
    assert torch.allclose(norm.weight.grad, (grad * power_near(centred * inverse)).sum(0), atol=1e-5)
    assert torch.allclose(norm.bias.grad, grad.sum(0), atol=1e-5)


def test_norm_is_near_to_batchnorm():
    """Powers of two are off by a factor of sqrt(2) at most: so are the deviations that come out."""
    torch.manual_seed(2)
    x = torch.randn(200, 6) * torch.tensor([0.1, 0.5, 1, 3, 10, 100])
    deviation = ShiftNorm(6).train()(x).std(0)
    assert bool(((deviation > 0.5) & (deviation < 2)).all())
    norm = ShiftNorm(6).train()
    for _ in range(60):
        norm(x)
    norm.eval()
    assert torch.allclose(norm(x), (x - x.mean(0)) * power_near(norm.running_inverse), atol=1e-2)


def test_a_single_value_is_refused():
    with pytest.raises(ModelError, match="larger batches"):
        ShiftNorm(3).train()(torch.ones(1, 3))


def test_adamax_by_hand():
    torch.manual_seed(3)
    w = nn.Parameter(torch.randn(5, 7))
    optimizer = ShiftAdaMax([w], lr=0.013, glorot=True)
    value, mean, norm = w.detach().double().clone(), 0.0, torch.zeros(5, 7, dtype=torch.float64)
    glorot = float(power_near(torch.tensor(1 / math.sqrt(1.5 / 12))))
    for step in range(1, 6):
        grad = torch.randn(5, 7)
        w.grad = grad
        optimizer.step()
        mean = (1 - 2**-3) * mean + 2**-3 * grad.double()
        norm = torch.maximum((1 - 2**-10) * norm, grad.double().abs())
        size = float(power_near(torch.tensor(0.013 / (1 - (1 - 2**-3) ** step), dtype=torch.float64)))
        value -= glorot * size * mean / (power_near(norm) + 2.0**-27)
    assert torch.allclose(w.detach().double(), value, atol=1e-5)
    with pytest.raises(ModelError):
        ShiftAdaMax([w], lr=0.0)
