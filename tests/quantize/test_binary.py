"""Binary weights: optimality by brute force, the residual, and gradients against the chain rule."""

import itertools

import pytest
import torch

from lilliput.core.packed import unpack
from lilliput.quantize.binary import Binary
from lilliput.quantize.xnor import Xnor
from lilliput.testing.spread import gaussian

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def error(method, weight):
    return float((unpack(method.pack(weight)).double() - weight.double()).square().sum())


def test_golden_values_of_the_standard_fixture():
    packed = Binary().pack(W0)
    assert packed.parts["codes"].tolist() == [1, -1, 1, -1, 1, -1, 1, 1, 1, -1]
    assert float(packed.parts["scale"]) == pytest.approx(0.3095)


@pytest.mark.parametrize("n", [1, 4, 10])
def test_no_signs_and_magnitude_are_better(n):
    w = gaussian(n, seed=n).double()
    best = float("inf")
    for signs in itertools.product((-1.0, 1.0), repeat=n):
        b = torch.tensor(signs, dtype=torch.float64)
        a = float(w @ b) / n
        best = min(best, float((w - a * b).square().sum()))
    assert error(Binary(), w) == pytest.approx(best, rel=1e-9)


def test_residual():
    """|w|^2 - n a^2, filter by filter."""
    w = gaussian(5, 4, 3, 3)
    packed = Binary().pack(w)
    rest = (unpack(packed) - w).square().sum((1, 2, 3))
    assert torch.allclose(rest, w.square().sum((1, 2, 3)) - 36 * packed.parts["scale"] ** 2, atol=1e-5)
    assert packed.parts["scale"].shape == (5,)
    assert error(Binary(), w) <= error(Binary(per="tensor"), w)


def test_invariants():
    w = gaussian(6, 20)
    once = unpack(Binary().pack(w))
    assert torch.allclose(unpack(Binary().pack(once)), once, rtol=1e-6)
    assert torch.equal(unpack(Binary().pack(-w)), -once)
    assert torch.allclose(unpack(Binary().pack(3 * w)), 3 * once, rtol=1e-6)


def test_exact_gradient_is_that_of_the_chain_rule():
    """a(w) (w + (sign(w) - w) detached) with the estimator's mask |w| < 1."""
    w = (gaussian(4, 30) * 12).double().requires_grad_()
    g = gaussian(4, 30, seed=2).double()
    sign = torch.where(w >= 0, 1.0, -1.0)
    scale = w.abs().mean(1, keepdim=True)
    clipped = w.clamp(-1, 1)
    value = scale * (clipped + (sign - clipped).detach())
    value.backward(g)
    found, _ = Binary(estimator="exact").gradient(w.detach(), Binary().pack(w.detach()), g)
    assert torch.allclose(found, w.grad, atol=1e-12)


def test_the_papers_gradient_keeps_the_diagonal():
    w, g = gaussian(3, 8) * 12, gaussian(3, 8, seed=2)
    packed = Binary().pack(w)
    found, _ = Binary().gradient(w, packed, g)
    expected = g * (1 / 8 + packed.parts["scale"][:, None] * (w.abs() < 1))
    assert torch.allclose(found, expected)
    assert torch.equal(Binary(estimator="straight").gradient(w, packed, g)[0], g)


def test_xnor_centres_over_input_channels_and_clips():
    w = gaussian(5, 4, 3, 3) * 8
    centred = (w - w.mean(1, keepdim=True)).clamp(-1, 1)
    packed = Xnor().pack(w)
    assert torch.equal(packed.parts["codes"] > 0, centred >= 0)
    assert torch.allclose(packed.parts["scale"], centred.abs().mean((1, 2, 3)), rtol=1e-5)
    assert torch.allclose(Xnor().confined(w), centred, atol=1e-6)
    g = gaussian(5, 4, 3, 3, seed=3)
    paper, released = Xnor().gradient(w, packed, g)[0], Xnor(released=True).gradient(w, packed, g)[0]
    assert torch.allclose(released, paper * (1 - 1 / 4) * 36, rtol=1e-5)
    n, a = 36, packed.parts["scale"].reshape(5, 1, 1, 1)
    assert torch.allclose(paper, g * (1 / n + a * (centred.abs() < 1)), rtol=1e-4)
