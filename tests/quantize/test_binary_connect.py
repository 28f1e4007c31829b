"""BinaryConnect: random signs whose mean is the weight, gradients unmasked, latent weights clipped."""

import pytest
import torch
from torch import nn

from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.quantize.binary_connect import BinaryConnect, glorot_rate
from lilliput.testing.spread import gaussian
from lilliput.train.attach import advance, attach


def test_signs():
    w0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])
    assert unpack(BinaryConnect().pack(w0)).tolist() == [1, -1, 1, -1, 1, -1, 1, 1, 1, -1]
    assert unpack(BinaryConnect(limit=0.25).pack(w0)).abs().tolist() == [0.25] * 10


@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_the_mean_of_random_signs_is_the_weight(limit):
    torch.manual_seed(0)
    w = torch.tensor([-2.0, -0.5, -0.2, 0.0, 0.3, 0.5, 2.0])
    n = 4000
    method = BinaryConnect(limit=limit, stochastic=True)
    mean = torch.stack([unpack(method.draw(w)) for _ in range(n)]).mean(0)
    expected = w.clamp(-limit, limit)
    deviation = ((limit**2 - expected**2) / n).sqrt()
    assert bool(((mean - expected).abs() <= 5 * deviation + 1e-6).all())


@pytest.mark.parametrize("stochastic", [False, True])
def test_training(stochastic):
    """The gradient of the latent weight is that of the signs; after a step it lies within -1 .. 1."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3, bias=False)
    attach(layer, Recipe((Rule(steps=(BinaryConnect(stochastic=stochastic),)),)))
    latent = layer.parametrizations.weight.original
    g = gaussian(3, 6) * 100
    layer.weight.backward(g)
    assert torch.equal(latent.grad, g)
    torch.optim.SGD([latent], lr=1.0).step()
    assert float(latent.detach().abs().max()) > 1
    advance(layer, 0.5)
    assert float(latent.detach().abs().max()) == 1
    layer.eval()
    assert torch.equal(layer.weight, torch.where(latent >= 0, 1.0, -1.0))


def test_glorot_rate_counts_the_kernel():
    assert glorot_rate(torch.empty(16, 8, 3, 3)) == pytest.approx((1.5 / (9 * 24)) ** -0.5)
