"""DoReFa-Net's weights: golden values and the gradient against autograd of the smooth part."""

import pytest
import torch

from lilliput.core.packed import unpack
from lilliput.quantize.dorefa import Dorefa
from lilliput.testing.spread import gaussian

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def test_golden_values_of_the_standard_fixture():
    expected = [1, -1, 0.4286, -0.4286, 0.1429, -0.1429, 0.1429, 0.7143, 0.1429, -0.1429]
    assert torch.allclose(unpack(Dorefa(bits=3).pack(W0)), torch.tensor(expected), atol=5e-5)
    assert torch.allclose(unpack(Dorefa(bits=1).pack(W0)).abs(), torch.full((10,), 0.3095))


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_reach_from_minus_one_to_one(bits):
    value = unpack(Dorefa(bits=bits).pack(torch.cat([gaussian(5000), torch.tensor([-1.0])])))
    assert len(value.unique()) <= 2**bits
    assert float(value.min()) == -1
    steps = (value.double() + 1) * (2**bits - 1) / 2
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert 0 not in value


def test_gradient_goes_through_tanh_and_the_maximum():
    w = (gaussian(60) * 10).double().requires_grad_()
    g = gaussian(60, seed=5).double()
    squashed = torch.tanh(w)
    (squashed / squashed.abs().max()).backward(g)
    found, _ = Dorefa(bits=3).gradient(w.detach(), Dorefa(bits=3).pack(w.detach()), g)
    assert torch.allclose(found, w.grad, atol=1e-12)
    assert torch.equal(Dorefa(bits=1).gradient(w.detach(), Dorefa(bits=1).pack(w.detach()), g)[0], g)
