"""Comparing a compressed network with its original, against cases that can be worked out by hand."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lilliput.core.cut import Cut
from lilliput.core.errors import DataError, ModelError
from lilliput.core.recipe import Recipe, Rule
from lilliput.file.artifact import Artifact
from lilliput.prune.sparse import Sparse
from lilliput.quantize.uniform import Uniform
from lilliput.run.compare import compare, cut, example_of, folded
from lilliput.train.compress import compress


def kept(model, example=None):
    """An artifact that changes nothing."""
    return compress(model, Recipe((Rule("*"),)), example=example)


def test_a_network_equals_itself():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    found = compare(kept(model, torch.rand(2, 6)), model, [torch.rand(3, 6), torch.rand(5, 6)])
    assert found.outputs.largest == 0
    assert found.outputs.relative == 0
    assert found.outputs.agreement == 1
    assert found.outputs.cosine == pytest.approx(1)
    assert found.outputs.samples == 8
    assert [(layer.name, layer.weight, layer.output) for layer in found.layers] == [
        ("0.weight", 0, 0),
        ("2.weight", 0, 0),
    ]


def test_a_weight_a_tenth_too_large_puts_out_a_tenth_too_much():
    model = nn.Linear(6, 4, bias=False)
    larger = copy.deepcopy(model)
    with torch.no_grad():
        larger.weight.mul_(1.1)
    found = compare(kept(larger, torch.rand(2, 6)), model, [torch.randn(9, 6)])
    layer = found.layers[0]
    for value in (layer.weight, layer.output, layer.reached, found.outputs.relative):
        assert value == pytest.approx(0.1, rel=1e-5)
    assert found.outputs.cosine == pytest.approx(1)
    assert found.outputs.agreement == 1


def test_errors_alone_stay_with_their_layer_and_pile_up_behind_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False))
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong[0].weight.mul_(2)
    layers = {layer.name: layer for layer in compare(kept(wrong), model, [torch.randn(9, 6)]).layers}
    assert layers["0.weight"].output == pytest.approx(1)
    assert layers["1.weight"].output == 0
    assert layers["1.weight"].reached == pytest.approx(1)


def test_the_worst_layer_comes_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    bits = {"0.weight": 6, "1.weight": 2, "2.weight": 4}
    recipe = Recipe(tuple(Rule(name, (Uniform(bits=count),)) for name, count in bits.items()))
    artifact = compress(model, recipe)
    for data in (None, [torch.randn(64, 8)]):
        found = compare(artifact, model, data)
        assert [layer.name for layer in found.layers] == ["1.weight", "2.weight", "0.weight"]
    told = artifact.facts["error"]
    assert {layer.name: layer.weight for layer in found.layers} == pytest.approx(told, rel=1e-2)


def test_a_folded_network_is_compared_with_the_original_folded_in_the_same_way():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()).eval()
    with torch.no_grad():
        model[1].running_var.uniform_(10, 20)
        model[1].weight.uniform_(1, 3)
    artifact = compress(model, Recipe.preset("int8"), example=torch.rand(1, 2, 8, 8))
    assert artifact.facts["folded"] == 1
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = compare(artifact, model, [torch.randn(4, 2, 8, 8)])
    assert found.layers[0].name == "0.weight"
    assert 0 < found.layers[0].weight < 0.01
    assert found.outputs.relative < 0.01
    assert found.notes == ()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert compare(artifact, model).layers[0].weight == found.layers[0].weight


def test_classes_that_come_first_are_counted():
    model = nn.Linear(2, 2, bias=False)
    swapped = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        swapped.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    # Original: argmax(x, y); compressed: argmax(x, 2x).
    data = [torch.tensor([[1.0, 0.0], [0.1, 1.0], [2.0, 3.0], [-1.0, -2.0]])]
    found = compare(kept(swapped), model, data).outputs
    assert found.agreement == 3 / 4  # all but the first
    assert (
        found.largest == 2.0  # at (1, 0): 2 instead of 0
    )  # at (2, 3): 4 instead of 3 is 1; at (-1, -2): -2 instead of -2; at (1, 0): 2 instead of 0


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.LSTM(5, 7, batch_first=True), torch.randn(2, 3, 5)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 3, 8)),
        (nn.Embedding(10, 4), torch.ones(2, 3, dtype=torch.int64)),
    ],
)
def test_other_kinds_of_layers(model, inputs):
    model = model.eval()
    found = compare(compress(model, Recipe.preset("int8"), example=inputs), model, [inputs])
    assert 0 < found.outputs.relative < 0.05
    assert all(0 <= layer.weight < 0.02 for layer in found.layers)
    assert any(layer.output for layer in found.layers)


def test_pairs_and_dicts_are_batches():
    model = nn.Linear(3, 2)
    artifact = kept(model)
    assert compare(artifact, model, [(torch.rand(4, 3), torch.zeros(4))]).outputs.samples == 4
    assert compare(artifact, model, [{"input": torch.rand(4, 3), "labels": torch.zeros(4)}]).outputs.samples == 4


def test_bad_input_is_named():
    model = nn.Linear(3, 2)
    with pytest.raises(ModelError, match="another model"):
        compare(kept(model), nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ModelError, match="shape"):
        compare(kept(model), nn.Linear(4, 2))
    with pytest.raises(DataError, match="empty"):
        compare(kept(model), model, [])


def test_an_example_is_made_from_the_graph():
    model = nn.Linear(3, 2)
    artifact = kept(model, torch.rand(1, 3))
    assert example_of(artifact)["input"].shape == (2, 3)
    assert example_of(replace(artifact, graph=None)) is None


def test_what_cannot_be_folded_is_said():
    model = nn.Linear(3, 2)
    artifact = replace(kept(model), facts={"folded": 1})
    notes = []
    folded(artifact, model, notes=notes)
    assert len(notes) == 1
    assert "folded" in notes[0]


def test_of_a_cut_weight_what_was_kept_is_compared():
    model = nn.Linear(3, 4)
    cuts = (Cut("weight", 0, (0, 2), 4), Cut("weight", 1, (1,), 3), Cut("bias", 0, (0, 2), 4))
    state = cut(replace(kept(model), cuts=cuts), model)
    assert torch.equal(state["weight"], model.weight[[0, 2]][:, [1]])
    assert torch.equal(state["bias"], model.bias[[0, 2]])


def test_a_network_that_lost_channels_is_compared_by_what_stayed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4)).eval()
    with torch.no_grad():
        model[0].weight[3] = 0
        model[0].bias[3] = 0
    artifact = compress(model, Recipe((Rule("*", (Sparse(),)),)), example=torch.rand(2, 6))
    assert tuple(artifact.weights["0.weight"].shape) == (7, 6)
    found = compare(artifact, model, [torch.randn(9, 6)])
    assert found.outputs.relative < 1e-6
    assert {layer.name: (layer.weight, layer.output) for layer in found.layers} == {
        "0.weight": (0, None),
        "2.weight": (0, None),
        "4.weight": (0, 0),
    }
    assert "2 layers lost channels" in found.notes[0]
    assert model[0].out_features == 8


def test_an_artifact_without_weights_of_the_model_is_refused():
    with pytest.raises(ModelError):
        compare(Artifact({}), nn.Linear(2, 2))
