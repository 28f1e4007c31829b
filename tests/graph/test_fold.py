"""Folding BatchNorm changes no output, neither in the model nor in the smaller graph."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.graph.fold import absorb, fold
from lilliput.graph.run import GraphModule
from lilliput.graph.trace import trace


def unsettle(model: nn.Module) -> nn.Module:
    """Gives every BatchNorm statistics and affine parameters far from its initial ones."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.2)
            if module.affine:
                module.weight.data.copy_(torch.randn(module.num_features, generator=generator))
                module.bias.data.copy_(torch.randn(module.num_features, generator=generator))
    return model.eval()


PAIRS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "linear": (lambda: [nn.Linear(4, 6), nn.BatchNorm1d(6)], (3, 4)),
    "linear without bias": (lambda: [nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)], (3, 4)),
    "1-D": (lambda: [nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)], (2, 4, 8)),
    "2-D": (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)], (2, 4, 6, 6)),
    "3-D": (lambda: [nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)], (2, 2, 4, 4, 4)),
    "padding by name": (lambda: [nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6)], (2, 4, 6, 6)),
    "grouped": (lambda: [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], (2, 4, 6, 6)),
    "depthwise": (lambda: [nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)], (2, 4, 6, 6)),
    "transposed": (lambda: [nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)], (2, 4, 6, 6)),
    "transposed grouped": (lambda: [nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], (2, 4, 6, 6)),
    "no affine": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)], (2, 4, 6, 6)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_stay(name: str) -> None:
    layers, shape = PAIRS[name]
    torch.manual_seed(0)
    model = unsettle(nn.Sequential(*layers(), nn.ReLU())).double()
    folded = copy.deepcopy(model)
    x = torch.randn(*shape, dtype=torch.float64)
    assert fold(folded, x) == ["1: folded into 0"]
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert torch.allclose((folded[1].running_var + folded[1].eps).sqrt(), torch.ones(()).double(), rtol=0, atol=1e-15)
    single = copy.deepcopy(model).float()
    fold(single, x.float())
    torch.testing.assert_close(single(x.float()), model(x).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "no affine"])
def test_graph_needs_no_norm(name: str) -> None:
    layers, shape = PAIRS[name]
    model = unsettle(nn.Sequential(*layers(), nn.ReLU()))
    x = torch.randn(*shape)
    expected = model(x)
    fold(model, x)
    graph, constants = trace(model, x)
    smaller = absorb(graph, model.state_dict() | constants)
    assert [node.operator.split(".")[1].strip("123d") for node in smaller.nodes][1:] == ["relu"]
    assert set(smaller.tensors) == {"0.weight", "1.bias"}
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in smaller.tensors}
    torch.testing.assert_close(GraphModule(smaller, kept)(x), expected, rtol=1e-5, atol=1e-5)


class Awkward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 1)
        self.second = nn.BatchNorm2d(4)
        self.third = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)
        self.fourth = nn.BatchNorm2d(4)
        self.fifth = nn.BatchNorm2d(4)
        self.fine = nn.Conv2d(4, 4, 1)
        self.sixth = nn.BatchNorm2d(4)
        self.flat = nn.Linear(4, 4)
        self.seventh = nn.BatchNorm1d(4)
        self.eighth = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.first(x))
        y = self.second(y) + y
        y = self.third(functional.relu(y))
        y = self.fifth(self.shared(self.fourth(self.shared(y))))
        y = self.sixth(self.fine(y))
        y = self.seventh(self.flat(y.flatten(2).transpose(1, 2)[:, :4]))
        return self.eighth(y)


def test_kept_with_reasons() -> None:
    model = unsettle(Awkward())
    folded = copy.deepcopy(model)
    x = torch.randn(2, 3, 2, 2)
    lines = dict(line.split(": ", 1) for line in fold(folded, x))
    assert "input of the network" in lines["first"]
    assert "conv's output is used elsewhere" in lines["second"]
    assert "aten.relu" in lines["third"]
    assert "shared.weight is used elsewhere" in lines["fourth"]
    assert "shared.weight is used elsewhere" in lines["fifth"]
    assert lines["sixth"] == "folded into fine"
    assert "not its channels" in lines["seventh"]
    assert "no running statistics" in lines["eighth"]
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


def test_identity_norm_of_sequence_is_not_a_bias() -> None:
    """A BatchNorm over the time axis of a linear layer's output stays, even where it is an identity."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, eps=0.0)).eval()
    model[1].bias.data.copy_(torch.arange(4.0))
    x = torch.randn(2, 4, 4)
    graph, constants = trace(model, x)
    smaller = absorb(graph, model.state_dict() | constants)
    assert smaller == graph
    torch.testing.assert_close(GraphModule(smaller, model.state_dict())(x), model(x))


def test_a_bias_of_the_layer_keeps_the_norm() -> None:
    model = unsettle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 5, 5)
    fold(model, x)
    model[0].bias.data.fill_(0.5)
    graph, constants = trace(model, x)
    assert absorb(graph, model.state_dict() | constants) == graph


def test_a_norm_whose_layer_is_used_elsewhere_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, eps=0.0)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    model = Twice().eval()
    model.norm.bias.data.fill_(2.0)
    graph, constants = trace(model, torch.randn(1, 3, 2, 2))
    assert absorb(graph, model.state_dict() | constants) == graph
