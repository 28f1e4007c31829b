"""Convolutions that nothing packed run by Winograd in the native engine, and give what the dense engine gives."""

import pytest
import torch
from torch import nn

import lilliput
from lilliput.kernels.winograd import WinogradConvolution
from lilliput.run.native import Native


@pytest.mark.parametrize("recipe", [lilliput.Recipe(), lilliput.Recipe.preset("int8")])
def test_a_dense_stretch(recipe):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 8, 3)
    ).eval()
    x = torch.randn(1, 3, 12, 12)
    artifact = lilliput.compress(model, recipe, example=x)
    net = lilliput.load(artifact, engine=Native(timed=False))
    assert sum("Winograd" in str(line) for line in net.lines) == 1, "the others have too few channels"
    right = lilliput.load(artifact, engine="dense")(x)
    assert float((net(x) - right).detach().norm()) < 1e-5 * float(right.detach().norm())
    assert net(torch.randn(3, 3, 12, 12)).shape == (3, 8, 10, 10), "the batch is open"


class Branches(nn.Module):
    """A convolution whose result goes on without its ReLU too, and one that goes through it alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x):
        y = self.first(x)
        return self.second(y.relu()).relu() + y


def test_a_relu_is_done_on_the_way_where_nothing_else_needs_what_is_before_it(monkeypatch):
    torch.manual_seed(0)
    model, x, asked = Branches().eval(), torch.randn(2, 32, 9, 9), []
    whole = WinogradConvolution.forward

    def forward(self, x, bias=None, rectify=False):
        asked.append(rectify)
        return whole(self, x, bias, rectify)

    monkeypatch.setattr(WinogradConvolution, "forward", forward)
    net = lilliput.load(lilliput.compress(model, lilliput.Recipe(), example=x), engine=Native(timed=False))
    del asked[:]
    found = net(x)
    assert asked == [False, True]
    right = model(x)
    assert float((found - right).detach().norm()) < 1e-5 * float(right.detach().norm())
