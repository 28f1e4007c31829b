"""Convolutions that nothing packed run by Winograd in the native engine, and give what the dense engine gives."""

import pytest
import torch
from torch import nn

import lilliput
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
    assert float((net(x) - right).norm()) < 1e-5 * float(right.norm())
    assert net(torch.randn(3, 3, 12, 12)).shape == (3, 8, 10, 10), "the batch is open"
