"""Trained ternary weights: gradients against autograd, sparsity, the least-squares start."""

import pytest
import torch
from torch import nn

from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.quantize.ternary import Ternary
from lilliput.quantize.trained_ternary import TrainedTernary
from lilliput.testing.spread import gaussian
from lilliput.train.attach import attach, new_parameters, packed_weights

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def test_golden_values_of_the_standard_fixture():
    packed = TrainedTernary().pack(W0)
    assert packed.parts["codes"].tolist() == [1, -1, 1, -1, 1, 0, 0, 1, 0, 0]
    assert float(packed.parts["positive"]) == pytest.approx((0.9 + 0.4 + 0.1 + 0.62) / 4)
    assert float(packed.parts["negative"]) == pytest.approx(0.52)
    assert unpack(TrainedTernary(start="one").pack(W0)).tolist() == [1, -1, 1, -1, 1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.83])
def test_sparsity(sparsity):
    codes = TrainedTernary(sparsity=sparsity).pack(gaussian(40, 50)).parts["codes"]
    assert int((codes == 0).sum()) == round(sparsity * 2000)


def test_means_are_the_best_start():
    w = gaussian(500)
    packed = TrainedTernary(threshold=0.2).pack(w)
    best = float((unpack(packed) - w).square().sum())
    for name in ("positive", "negative"):
        for factor in (0.95, 1.05):
            other = packed.with_parts(**{name: packed.parts[name] * factor})
            assert float((unpack(other) - w).square().sum()) > best


def test_equal_magnitudes_are_twn():
    w = gaussian(400)
    rule = Ternary("rule", per="tensor").pack(w)
    threshold = float(0.7 * w.abs().mean() / w.abs().max())
    scale = rule.parts["scale"]
    packed = TrainedTernary(threshold=threshold).pack(w).with_parts(positive=scale, negative=scale)
    assert torch.equal(unpack(packed), unpack(rule))


def test_gradients_are_those_of_the_pieces():
    torch.manual_seed(0)
    layer = nn.Linear(30, 20, bias=False)
    attach(layer, Recipe((Rule(steps=(TrainedTernary(threshold=0.3),)),)))
    latent = layer.parametrizations.weight.original
    assert len(new_parameters(layer)) == 2
    g = gaussian(20, 30, seed=4)
    layer.weight.backward(g)
    d = 0.3 * latent.detach().abs().max()
    above, below = latent.detach() > d, latent.detach() < -d
    p, n = (parameter.detach().clone().requires_grad_() for parameter in new_parameters(layer))
    (p * above - n * below).backward(g)
    for parameter, expected in zip(new_parameters(layer), (p, n)):
        assert torch.allclose(parameter.grad, expected.grad, rtol=1e-5)
    factor = torch.where(above, p, torch.where(below, n, 1.0)).detach()
    assert torch.allclose(latent.grad, g * factor)


def test_trained_magnitudes_are_in_the_file():
    layer = nn.Linear(30, 20, bias=False)
    attach(layer, Recipe((Rule(steps=(TrainedTernary(),)),)))
    positive, negative = new_parameters(layer)
    with torch.no_grad():
        positive.fill_(0.5)
        negative.fill_(0.25)
    layer.eval()
    assert set(layer.weight.detach().unique().tolist()) == {-0.25, 0.0, 0.5}
    assert torch.equal(unpack(packed_weights(layer)["weight"]), layer.weight)
