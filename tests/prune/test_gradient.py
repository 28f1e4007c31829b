"""meProp: the backward pass by hand, per example and for the whole batch; the forward pass as ever."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError, ModelError
from lilliput.prune.gradient import Gradient
from lilliput.testing.spread import gaussian


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 3))


@pytest.mark.parametrize("unified", [False, True])
def test_gradients_are_those_of_the_masked_outputs_gradient(unified):
    """dW = g'^T x and dx = g' W with g' the k largest, layer by layer from the end."""
    model, inputs, rule = network(), gaussian(5, 6, seed=1) * 10, Gradient(part=0.2, unified=unified)
    plain = model(inputs)
    with rule.on(model) as names:
        output = model(inputs)
        output.square().sum().backward()
    assert names == ["0", "2"]
    assert torch.equal(output, plain)
    hidden = [inputs]
    for layer in model:
        hidden.append(layer(hidden[-1]).detach())
    gradient = 2 * hidden[5]
    assert torch.allclose(model[4].weight.grad, gradient.T @ hidden[4], atol=1e-6)
    for place in (2, 0):
        gradient = (gradient @ model[place + 2].weight) * (1 - hidden[place + 2] ** 2)
        size = gradient.abs().sum(0, keepdim=True).expand_as(gradient) if unified else gradient.abs()
        k = round(0.2 * gradient.shape[1])
        threshold = size.sort(dim=1, descending=True).values[:, k - 1 : k]
        gradient = (gradient * (size >= threshold)).detach()
        assert int((gradient != 0).sum()) == 5 * k
        assert torch.allclose(model[place].weight.grad, gradient.T @ hidden[place], atol=1e-6)
    assert bool(torch.isfinite(model[0].weight.grad).all())


def test_afterwards_and_with_all_kept_it_is_plain_back_propagation():
    grads = []
    for rule in (Gradient(part=1.0), None):
        model = network()
        if rule is not None:
            with rule.on(model):
                model(gaussian(4, 6)).sum().backward()
        else:
            with Gradient(part=0.1).on(model):
                pass
            model(gaussian(4, 6)).sum().backward()
        grads.append(model[0].weight.grad)
    assert torch.equal(*grads)


def test_a_convolution_keeps_the_largest_of_each_example():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    inputs = gaussian(3, 1, 6, 6)
    with Gradient(part=1 / 64).on(model):
        model(inputs).sum().backward()
    gradient = model[2].weight.detach().sum(0).expand(3, 64)
    one = nn.functional.one_hot(gradient.abs().argmax(1), 64) * gradient
    expected = torch.nn.grad.conv2d_weight(inputs, (4, 1, 3, 3), one.reshape(3, 4, 4, 4))
    assert torch.allclose(model[0].weight.grad, expected, atol=1e-6)


def test_training_on_the_largest_gradients_alone_still_learns():
    torch.manual_seed(0)
    inputs = torch.randn(256, 6)
    target = inputs[:, :3].argmax(1)
    losses = []
    for rule in (Gradient(part=1.0), Gradient(part=0.1)):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        with rule.on(model):
            for _ in range(150):
                loss = nn.functional.cross_entropy(model(inputs), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        losses.append(float(loss.detach()))
    assert max(losses) < 0.2


def test_what_makes_no_sense_is_refused():
    with pytest.raises(MethodError):
        Gradient(part=0)
    with pytest.raises(ModelError, match="no linear layer"), Gradient().on(nn.Linear(2, 2)):
        pass
