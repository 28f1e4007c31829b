"""Loading into the user's own module: exact, or refused with the module as it was."""

import copy

import pytest
import torch
from torch import nn

from lilliput.core.errors import ModelError
from lilliput.core.recipe import Recipe
from lilliput.run.load import load
from lilliput.train.compress import compress

OTHERS = {
    "lacking": (nn.Sequential(nn.Linear(4, 3)), "it has 2.bias, 2.weight that the model lacks"),
    "more": (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 2)), "it lacks 3.bias, 3.weight"),
    "other names": (nn.ModuleDict({"a": nn.Linear(4, 3)}), "it lacks a.bias, a.weight"),
    "other shapes": (
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5)),
        "2.weight has shape (2, 3) in the file",
    ),
}


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_another_model_leave_the_model_as_it_was(name, tmp_path):
    compress(network(), Recipe.preset("int8")).save(tmp_path / "net.safetensors")
    other, words = OTHERS[name]
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "net.safetensors", into=other)
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    assert other.training


def test_every_weight_of_the_file_is_in_the_module(tmp_path):
    artifact = compress(network(), Recipe.preset("int8"))
    artifact.save(tmp_path / "net.safetensors")
    model = network()
    assert load(tmp_path / "net.safetensors", into=model) is model
    assert all(torch.equal(value, artifact.weight(key)) for key, value in model.state_dict().items())
