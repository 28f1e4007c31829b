"""Channels that pruning left dead are removed from the file, and every packed form can be cut exactly."""

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import NotWorthwhile
from lilliput.core.packed import Packed, pack_steps, take, unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.factorize.svd import Svd
from lilliput.file.read import loads
from lilliput.file.write import dumps
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.sparse import Sparse
from lilliput.quantize.float16 import Float16
from lilliput.quantize.uniform import Uniform
from lilliput.run.load import load
from lilliput.share.kmeans import KMeans

STEPS = [
    (Uniform(bits=4),),
    (Uniform(bits=4, symmetric=False, cell_mean=True), Float16()),
    (Uniform(bits=3, per="tensor", cell_mean=True),),
    (Float16(),),
    (KMeans(bits=3), Float16()),
    (Magnitude(sparsity=0.7),),
    (Magnitude(sparsity=0.7), Float16()),
    (Magnitude(sparsity=0.7), KMeans(bits=3)),
    (Magnitude(sparsity=0.7), Uniform(bits=4, cell_mean=True)),
    (Svd(rank=3), Uniform(bits=6)),
]


@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_taking_is_exact(steps, axis):
    torch.manual_seed(0)
    weight = torch.randn(8, 6, 3, 3)
    weight[3] = 0
    packed = pack_steps(weight, steps)
    kept = torch.tensor([0, 2, 5])
    cut = take(packed, axis, kept)
    assert isinstance(cut, Packed)
    expected = unpack(packed).index_select(axis, kept)
    if isinstance(steps[0], Svd):
        torch.testing.assert_close(unpack(cut), expected, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(unpack(cut), expected)


def test_groups_are_not_cut():
    packed = Uniform(per="group", group=4).pack(torch.randn(4, 8))
    with pytest.raises(NotWorthwhile):
        take(packed, 0, torch.tensor([0]))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 4 * 4, 20), nn.ReLU(), nn.Linear(20, 4),
    )  # fmt: skip


def dead_net():
    model = net()
    with torch.no_grad():
        model[0].weight[2] = 0  # a channel without input
        model[1].running_mean.uniform_(-0.1, 0.1)
        model[1].bias.uniform_(-1, 1)
        model[4].weight[:, 5] = 0  # one without output
        model[7].weight[:, 16:32] = 0  # a channel without output across flatten
        model[7].weight[3] = 0  # a neuron without input, whose bias moves on
        model[9].weight[:, 7] = 0
    return model.eval()


@pytest.mark.parametrize("steps", [(Sparse(),), (Sparse(), KMeans(bits=6)), (Sparse(), Uniform(bits=8))], ids=str)
def test_dead_channels_leave_the_file_and_outputs_stay(steps):
    model, x = dead_net(), torch.randn(3, 1, 14, 14)
    recipe = Recipe((Rule(steps=steps),))
    whole = lilliput.compress(model, recipe, example=x, fold=False, remove_dead=False)
    small = lilliput.compress(model, recipe, example=x, fold=False)
    assert {(c.parameter, c.axis): c.size - len(c.kept) for c in small.cuts}[("7.weight", 0)] == 2
    assert small.weights["7.weight"].shape[1] == 5 * 16
    assert any("removed" in line for line in small.facts["notes"].values())
    assert len(dumps(small)) < len(dumps(whole))
    read = loads(dumps(small))
    expected = load(whole)(x)
    torch.testing.assert_close(load(read)(x), expected, rtol=1e-5, atol=1e-5)
    into = load(read, into=net())
    torch.testing.assert_close(into(x), expected, rtol=1e-5, atol=1e-5)
    assert into[7].in_features == 5 * 16


def test_what_cannot_be_removed_is_kept_and_said():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(x + self.second(torch.relu(self.first(x))))

    model = Residual().eval()
    with torch.no_grad():
        model.second.weight[1] = 0
    artifact = lilliput.compress(model, Recipe((Rule(steps=(Sparse(),)),)), example=torch.randn(2, 6))
    assert artifact.cuts == ()
    assert any("kept" in line and "because" in line for line in artifact.facts["notes"].values())


def test_another_model_is_left_alone():
    artifact = lilliput.compress(
        dead_net(), Recipe((Rule(steps=(Sparse(),)),)), example=torch.randn(2, 1, 14, 14), fold=False
    )
    other = nn.Sequential(nn.Linear(3, 3))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(lilliput.LilliputError):
        load(artifact, into=other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
