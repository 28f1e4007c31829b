"""Optimal brain damage: the diagonal against autograd, least squares in closed form, and its ranking."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import fashion_mnist
from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.core.stats import Stats
from lilliput.observe.collect import collect
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.obd import OBD
from lilliput.prune.random import Random


def curvature(model, name, data):
    return collect(model, {name: frozenset({"curvature"})}, data)[name].values["curvature"]


def test_diagonal_of_a_tanh_network_is_the_hessians():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    value, target = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)

    def cost(weight):
        hidden = torch.tanh(functional.linear(value, weight, model[0].bias))
        return functional.mse_loss(model[2](hidden), target)

    whole = torch.autograd.functional.hessian(cost, model[0].weight.detach()).reshape(12, 12)
    found = curvature(model, "0.weight", list(zip(value.split(5), target.split(5))))
    assert float((found.flatten() - whole.diagonal()).abs().max()) < 1e-10


def test_least_squares_in_closed_form():
    """E = mean |Wx - y|^2 over examples and outputs: h = 2 mean x_j^2 / outputs."""
    model, value = nn.Linear(5, 3).double(), torch.randn(20, 5, dtype=torch.float64)
    found = curvature(model, "weight", [(value, torch.randn(20, 3, dtype=torch.float64))])
    torch.testing.assert_close(found, (2 * value.square().mean(0) / 3).expand(3, 5))


def test_a_larger_diagonal_is_estimated():
    model, value = nn.Linear(40, 30).double(), torch.randn(64, 40, dtype=torch.float64)
    data = [(part, torch.zeros(4, 30, dtype=torch.float64)) for part in value.split(4)]
    found = curvature(model, "weight", data)
    expected = (2 * value.square().mean(0) / 30).expand(30, 40)
    assert float((found - expected).norm() / expected.norm()) < 0.2
    assert float(found.mean() / expected.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_cross_entropy_of_a_linear_model_has_no_other_part(shape):
    """Its Hessian is the Gauss-Newton part. Rows of the class -100 don't count; the outputs may have further axes."""
    model, value = nn.Conv1d(12, 7, 1).double(), torch.randn(6, 12, *shape or (1,), dtype=torch.float64)
    target = torch.randint(7, (6, *shape))
    target[0] = -100

    def outputs(weight):
        found = functional.conv1d(value, weight, model.bias)
        return found if shape else found[:, :, 0]

    model.forward = lambda given: outputs(model.weight)
    cost = lambda weight: functional.cross_entropy(outputs(weight), target)  # noqa: E731
    exact = torch.autograd.functional.hessian(cost, model.weight.detach()).reshape(84, 84).diagonal()
    found = curvature(model, "weight", [(value, target)] * 200).flatten()
    assert float((found - exact).norm() / exact.norm()) < 0.06  # 3,200 draws of deviation sqrt(2): 0.025
    assert float(found.min()) >= 0


def test_a_loss_of_ones_own_takes_each_examples_derivative():
    model, value, target = nn.Linear(20, 5), torch.randn(9, 20), torch.randint(5, (9,))
    data = list(zip(value.split(3), target.split(3)))
    needs = {"weight": frozenset({"curvature", "gradient"})}
    found = collect(model, needs, data, loss=functional.cross_entropy)["weight"].values
    torch.testing.assert_close(found["curvature"], found["gradient"].square)


def test_beats_random_masks_on_a_trained_network_and_is_near_magnitude(fashion_mnist_directory, demo_model):
    """Half and four fifths of the demo's second and third convolution and first linear layer."""
    layers = ("conv2.weight", "conv3.weight", "fc1.weight")
    torch.manual_seed(0)
    data = list(itertools.islice(fashion_mnist.train(), 4))
    images, labels = next(iter(fashion_mnist.validation(800)))
    stats = collect(demo_model, dict.fromkeys(layers, OBD.needs), data)

    def accuracy(method):
        model = copy.deepcopy(demo_model)
        for name in layers:
            weight = model.get_parameter(name)
            weight.data = unpack(method.pack(weight.detach(), stats[name]))
        with torch.no_grad():
            return float((model(images).argmax(1) == labels).double().mean())

    half = [accuracy(cls(sparsity=0.5)) for cls in (OBD, Magnitude, Random)]
    # 512 pictures: over eight draws of them 1.5 to 3.5 points below magnitude, 66 above random masks.
    assert half[0] > half[1] - 0.05
    assert half[0] > half[2] + 0.3
    assert accuracy(OBD(sparsity=0.8)) > accuracy(Random(sparsity=0.8)) + 0.2


def test_predicts_the_change_of_a_diagonal_quadratic_cost():
    value = torch.eye(6, dtype=torch.float64) * torch.arange(1.0, 7.0, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False).double()
    target = model(value).detach()
    stats = collect(model, {"weight": OBD.needs}, [(value, target)])["weight"]
    saliency = OBD().saliency(model.weight.detach(), stats)[0]
    for place in range(6):
        weight = model.weight.detach().clone()
        weight[0, place] = 0
        change = functional.mse_loss(functional.linear(value, weight), target)
        assert float(saliency[place]) == pytest.approx(float(change), rel=1e-9)


@pytest.mark.parametrize("kind", ["hessian", "fisher"])
def test_beats_magnitude_where_inputs_have_unequal_scales(kind):
    torch.manual_seed(0)
    value = torch.randn(60, 8) * torch.tensor([100.0, *[1.0] * 7])
    model = nn.Linear(8, 4, bias=False)
    model.weight.data[:, 0] *= 0.05
    target = model(value).detach() + 0.1 * torch.randn(60, 4)
    method = OBD(sparsity=0.5, curvature=kind)
    stats = collect(model, {"weight": method.needs}, [(value, target)])["weight"]

    def cost(packed):
        return float(functional.mse_loss(functional.linear(value, unpack(packed)), target))

    weight = model.weight.detach()
    assert cost(method.pack(weight, stats)) < 0.2 * cost(Magnitude(sparsity=0.5).pack(weight))


def test_curvature_of_another_weight_is_refused():
    with pytest.raises(MethodError, match="of another weight"):
        OBD(sparsity=0.5).pack(torch.ones(2, 3), Stats({"curvature": torch.ones(3, 2)}))
