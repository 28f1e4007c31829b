"""Layer by layer: each weight's turn comes once, with what the model has become; in the end it is `attach`."""

import pytest
import torch
from torch import nn

import lilliput
from lilliput import Recipe, Rule
from lilliput.core.errors import MethodError, RecipeError
from lilliput.prune.apoz import APoZ
from lilliput.prune.entropy import Entropy
from lilliput.prune.magnitude import Magnitude
from lilliput.share.kmeans import KMeans
from lilliput.train.attach import attachment


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def data():
    source = torch.Generator().manual_seed(1)
    return [(torch.randn(32, 6, generator=source), torch.randint(3, (32,), generator=source)) for _ in range(2)]


def test_without_training_it_is_attach():
    recipe = Recipe((Rule(steps=(Magnitude(sparsity=0.5), KMeans(bits=2))),))
    slowly, at_once = network(), network()
    names = list(lilliput.in_turn(slowly, recipe))
    lilliput.attach(at_once, recipe)
    assert names == ["0.weight", "2.weight", "4.weight"]
    for place in (0, 2, 4):
        assert torch.equal(slowly[place].weight, at_once[place].weight)
    assert attachment(slowly).recipe == recipe


def test_a_later_layer_is_judged_by_what_the_model_has_become():
    recipe = Recipe((Rule(match="0.weight", steps=(Magnitude(sparsity=0.9),)), Rule(steps=(Entropy(sparsity=0.5),))))
    model = network()
    for name in lilliput.in_turn(model, recipe, data()):
        if name == "0.weight":
            with torch.no_grad():  # stands for training that silences the first four outputs of the second layer
                model[2].weight[:4] = 0
                model[2].bias[:4] = -1
    assert (model[2].weight[:4] == 0).all()
    assert (model[2].weight[4:] != 0).any(1).all()


def test_masks_of_earlier_turns_stay_through_training():
    recipe = Recipe((Rule(match="[02].weight", steps=(APoZ(sparsity=0.5),)),))
    model, masks = network(), {}
    for name in lilliput.in_turn(model, recipe, data(), order=["2.weight"]):
        masks[name] = dict(model.named_modules())[name[0]].weight != 0
        before = model[4].weight.detach().clone()
        lilliput.fit(model, data(), epochs=2)
        assert not torch.equal(model[4].weight, before)
    assert list(masks) == ["2.weight", "0.weight"]
    assert torch.equal(model[2].weight != 0, masks["2.weight"])
    assert torch.equal(model[0].weight != 0, masks["0.weight"])
    lilliput.pack(model)


def test_mistakes_are_told_before_anything_changes():
    model = network()
    for recipe, order, text in (
        (Recipe((Rule(steps=(Magnitude(sparsity=0.5, scope="global"),)),)), (), "global"),
        (Recipe((Rule(steps=(Magnitude(sparsity=0.5),)),)), ("7.weight",), "7.weight"),
        (Recipe((Rule(),)), (), "no step"),
    ):
        with pytest.raises(RecipeError, match=text):
            next(lilliput.in_turn(model, recipe, order=order))
    with pytest.raises(MethodError, match=r"0\.weight"):
        next(lilliput.in_turn(model, Recipe((Rule(steps=(Entropy(sparsity=0.5),)),))))
    assert attachment(model) is None
