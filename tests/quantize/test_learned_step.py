"""Learned step size: the start, the gradients by hand, and a trained step in the file."""

import math

import pytest
import torch
from torch import nn

from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.quantize.learned_step import LearnedStep
from lilliput.testing.spread import gaussian
from lilliput.train.attach import attach, new_parameters, packed_weights

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def test_golden_values_of_the_standard_fixture():
    packed = LearnedStep(bits=3).pack(W0)
    assert float(packed.parts["scale"]) == pytest.approx(2 * 0.3095 / math.sqrt(3))
    assert packed.parts["codes"].tolist() == [3, -2, 1, -1, 0, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_levels(bits):
    codes = LearnedStep(bits=bits).pack(torch.cat([gaussian(3000), torch.tensor([9.0, -9.0])])).parts["codes"]
    assert (int(codes.min()), int(codes.max())) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def test_gradients_by_hand():
    torch.manual_seed(0)
    layer = nn.Linear(20, 10, bias=False)
    attach(layer, Recipe((Rule(steps=(LearnedStep(bits=3),)),)))
    (step,) = new_parameters(layer)
    with torch.no_grad():
        step.mul_(0.3)
    latent, g = layer.parametrizations.weight.original, gaussian(10, 20, seed=2)
    layer.weight.backward(g)
    s, total, passed = float(step.detach()), 0.0, torch.zeros(10, 20)
    for i in range(10):
        for j in range(20):
            v = float(latent[i, j]) / s
            if v < -4:
                slope = -4.0
            elif v > 3:
                slope = 3.0
            else:
                slope, passed[i, j] = round(v) - v, 1
            total += float(g[i, j]) * slope
    assert 0 < float(passed.mean()) < 1
    assert float(step.grad) == pytest.approx(total / math.sqrt(200 * 3), rel=1e-4)
    assert torch.equal(latent.grad, g * passed)


def test_the_trained_step_is_in_the_file():
    layer = nn.Linear(20, 10, bias=False)
    attach(layer, Recipe((Rule(steps=(LearnedStep(bits=4),)),)))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    inputs = gaussian(64, 20, seed=8) * 10
    target, losses = inputs @ gaussian(20, 10, seed=9), []
    for _ in range(150):
        loss = (layer(inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    layer.eval()
    packed = packed_weights(layer)["weight"]
    assert torch.equal(unpack(packed), layer.weight)
    assert torch.equal(packed.parts["scale"], new_parameters(layer)[0])
    assert losses[-1] < 0.3 * losses[0]
