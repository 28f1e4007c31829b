"""Which parameters a model has, whose they are and what they are."""

import pytest
from torch import nn

from lilliput.core.layers import weights
from lilliput.core.recipe import Recipe
from lilliput.train.attach import attach


@pytest.mark.parametrize(
    ("module", "kinds"),
    [
        (nn.Linear(2, 3), {"weight": "linear", "bias": "vector"}),
        (nn.Conv1d(2, 3, 1), {"weight": "conv1d", "bias": "vector"}),
        (nn.ConvTranspose2d(2, 3, 1, bias=False), {"weight": "conv_transpose2d"}),
        (nn.Embedding(2, 3), {"weight": "embedding"}),
        (nn.LayerNorm(3), {"weight": "vector", "bias": "vector"}),
        (nn.LayerNorm((3, 4)), {"weight": "matrix", "bias": "matrix"}),
        (nn.MultiheadAttention(4, 2, bias=False), {"in_proj_weight": "attention", "out_proj.weight": "linear"}),
        (nn.GRUCell(2, 3, bias=False), {"weight_ih": "recurrent", "weight_hh": "recurrent"}),
        (nn.LSTM(2, 3, bias=False), {"weight_ih_l0": "recurrent", "weight_hh_l0": "recurrent"}),
        (nn.PReLU(), {"weight": "vector"}),
    ],
)
def test_kinds(module, kinds):
    assert {w.name: w.kind for w in weights(module)} == kinds


def test_shared_module_and_tied_weight_are_listed_once_with_all_names():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "c": nn.Linear(4, 4, bias=False)})
    model["b"] = model["a"]
    model["c"].weight = model["a"].weight
    found = {w.name: w for w in weights(model)}
    assert list(found) == ["a.weight", "a.bias"]
    assert set(found["a.weight"].aliases) == {"b.weight", "c.weight"}
    assert found["a.bias"].aliases == ("b.bias",)


def test_names_are_those_of_the_plain_model_when_attached():
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    before = {w.name: (w.kind, id(w.parameter)) for w in weights(model)}
    assert set(before) == set(dict(model.named_parameters()))
    attach(model, Recipe.loads('[[rule]]\nsteps = ["quantize/uniform"]'))
    assert {w.name: (w.kind, id(w.parameter)) for w in weights(model)} == before
