"""Cutting dead channels changes no output, goes on to a fixed point, and leaves alone what it can't cut exactly."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lilliput.core.cut import Cut
from lilliput.core.errors import ModelError
from lilliput.graph.cut import Cuts, apply_cuts, cut_tensors
from lilliput.graph.dead import find_dead
from lilliput.graph.run import GraphModule
from lilliput.graph.trace import trace


def cut_and_compare(model: nn.Module, x: Tensor) -> tuple[nn.Module, Cuts]:
    """Cuts a copy; its outputs, and those of its graph, must be the model's."""
    model.eval()
    before = copy.deepcopy(model.state_dict())
    cuts = find_dead(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    smaller = copy.deepcopy(model)
    apply_cuts(smaller, cuts)
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-5, atol=1e-5)
    graph, constants = trace(smaller, x)
    net = GraphModule(graph, smaller.state_dict() | constants)
    torch.testing.assert_close(net(x), model(x), rtol=1e-5, atol=1e-5)
    return smaller, cuts


@torch.no_grad()
def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))


def test_no_input_becomes_the_next_bias() -> None:
    model = mlp()
    model[0].weight.data[[1, 4]] = 0.0
    smaller, cuts = cut_and_compare(model, torch.rand(7, 5))
    assert smaller[0].out_features == smaller[2].in_features == 6
    assert smaller[2].weight.shape == (6, 6)
    expected = model[2].bias + model[2].weight[:, [1, 4]] @ torch.sigmoid(model[0].bias[[1, 4]])
    torch.testing.assert_close(smaller[2].bias, expected)
    assert cuts.lines == ("0: removed 2 of 8 channels",)


def test_no_output() -> None:
    model = mlp()
    model[5].weight.data[:, [0, 2, 3]] = 0.0
    smaller, cuts = cut_and_compare(model, torch.rand(7, 5))
    assert (smaller[2].out_features, smaller[5].in_features) == (3, 3)
    assert cuts.values == {}


def test_fixed_point_runs_through_the_network_both_ways() -> None:
    model = mlp()
    # Neuron 2 of the last hidden layer has no output; neuron 3 of the first one feeds it alone.
    model[5].weight.data[:, 2] = 0.0
    model[2].weight.data[:2, 3] = 0.0
    model[2].weight.data[3:, 3] = 0.0
    # Neurons 0 and 1 of the first layer have no input, and neuron 5 of the second nothing but them.
    model[0].weight.data[:2] = 0.0
    model[2].weight.data[5, 2:] = 0.0
    smaller, _ = cut_and_compare(model, torch.rand(7, 5))
    assert smaller[0].out_features == 5
    assert smaller[2].out_features == 4


def conv_net(padding: int = 0) -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, padding=padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * (4 + 2 * padding) ** 2, 4),
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2.0)
    model[1].bias.data.normal_()
    return model


def test_convolutions() -> None:
    model = conv_net()
    model[0].weight.data[[0, 5]] = 0.0
    model[4].weight.data[:, 2] = 0.0
    model[4].weight.data[3] = 0.0
    model[4].bias.data[3] = 0.7
    smaller, cuts = cut_and_compare(model, torch.rand(2, 3, 14, 14))
    assert (smaller[0].out_channels, smaller[1].num_features, smaller[4].in_channels) == (5, 5, 5)
    assert smaller[1].running_var.shape == (5,)
    assert smaller[4].out_channels == 5
    assert smaller[7].in_features == 5 * 16
    assert len(cuts.lines) == 2


def test_zero_padding_keeps_what_is_not_zero() -> None:
    model = conv_net(padding=1)
    model[0].weight.data[:4] = 0.0
    shift = model[0].bias - model[1].running_mean
    model[1].bias.data[:4] = torch.tensor([1.0, -1.0, 1.0, -1.0]) * (5 + shift[:4].abs() * 10)
    smaller, cuts = cut_and_compare(model, torch.rand(2, 3, 14, 14))
    # ReLU makes two of the constants zero; the others would be wrong at the border.
    assert smaller[0].out_channels == 6
    assert cuts.lines[0] == "0: removed 2 of 8 channels"
    assert "kept 2 channels without input: because what they give is not zero" in cuts.lines[1]


def test_no_bias_to_take_the_constant() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2, bias=False))
    model[0].weight.data[:2] = 0.0
    model[0].bias.data[0] = 0.0
    smaller, _ = cut_and_compare(model, torch.rand(3, 4))
    assert smaller[0].out_features == 4


def test_average_pooling_with_padding() -> None:
    layers = [nn.Conv2d(1, 3, 3), nn.AvgPool2d(2, padding=1), nn.Conv2d(3, 2, 1)]
    model = nn.Sequential(*layers)
    model[0].weight.data[:2] = 0.0
    model[0].bias.data[:2] = torch.tensor([0.0, 1.0])
    smaller, _ = cut_and_compare(model, torch.rand(2, 1, 8, 8))
    assert smaller[0].out_channels == 2


def test_global_pooling() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 6, 3)
            self.out = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.conv(x)).mean((2, 3)))

    model = Net()
    model.conv.weight.data[[1, 2]] = 0.0
    smaller, _ = cut_and_compare(model, torch.rand(2, 1, 8, 8))
    assert smaller.out.in_features == 4


def test_everything_dead_leaves_one() -> None:
    model = mlp()
    model[0].weight.data.zero_()
    smaller, cuts = cut_and_compare(model, torch.rand(7, 5))
    assert smaller[0].out_features == 1
    assert smaller[2].out_features == 1
    assert any("a layer needs one" in line for line in cuts.lines)


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.residual = nn.Conv2d(4, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 2, 1)
        self.right = nn.Conv2d(4, 2, 1)
        self.last = nn.Conv2d(4, 3, 1)
        self.fixed = nn.Linear(3 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.residual(x)
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.fixed(self.last(x).view(-1, 48))


def test_kept_with_reasons() -> None:
    model = Kept()
    for layer in model.children():
        layer.weight.data[0] = 0.0
    _, cuts = cut_and_compare(model, torch.rand(2, 2, 4, 4))
    assert cuts.cuts == ()
    reasons = dict(line.split(": because ") for line in cuts.lines)
    assert reasons == {
        "first: kept 1 channels without input": "its output is used in several places",
        "residual: kept 1 channels without input": "aten.add.Tensor stands between it and the next layer",
        "left: kept 1 channels without input": "aten.cat.default stands between it and the next layer",
        "right: kept 1 channels without input": "aten.cat.default stands between it and the next layer",
        "last: kept 1 channels without input": "aten.reshape.default stands between it and the next layer",
        "fixed: kept 1 channels without input": "its channels are the network's outputs",
    }


def test_shared_layers_are_kept() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2))
    shared.weight.data[1] = 0.0
    _, cuts = cut_and_compare(model, torch.rand(3, 4))
    assert cuts.cuts == ()


def test_cuts_that_do_not_fit_leave_the_model_alone() -> None:
    model = mlp()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    for wrong in (
        Cut("9.weight", 0, (0,), 8),
        Cut("0.weight", 2, (0,), 8),
        Cut("0.weight", 0, (8,), 8),
        Cut("0.weight", 0, (), 8),
    ):
        with pytest.raises(ModelError):
            apply_cuts(model, Cuts((Cut("0.bias", 0, (1,), 8), wrong)))
    with pytest.raises(ModelError):
        apply_cuts(model, Cuts((), {"0.bias": torch.zeros(3)}))
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    assert cut_tensors({"a": torch.arange(4.0)}, [Cut("a", 0, (1, 3), 4)])["a"].tolist() == [1.0, 3.0]
