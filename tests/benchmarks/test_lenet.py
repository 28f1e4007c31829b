"""The two LeNets: their published sizes, and training that repeats itself."""

from dataclasses import replace

import pytest
import torch

import lenet


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("lenet-300-100", {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}),
        ("lenet-5", {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}),
    ],
)
def test_layers_are_those_of_the_paper(name, shapes):
    model = lenet.build(name)
    weights = {key: tuple(value.shape) for key, value in model.named_parameters() if key.endswith("weight")}
    assert weights == {f"{layer}.weight": shape for layer, shape in shapes.items()}
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    total = {"lenet-300-100": 266_610, "lenet-5": 431_080}[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == total


def test_lenet_5_is_linear_between_its_poolings():
    names = [type(layer).__name__ for layer in lenet.build("lenet-5")]
    assert names == ["Conv2d", "MaxPool2d", "Conv2d", "MaxPool2d", "Flatten", "Linear", "ReLU", "Linear"]


def test_unknown_network():
    with pytest.raises(ValueError, match="no network 'vgg'"):
        lenet.train("vgg", 0)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """512 made-up pictures, of which the label is the lit row, and a recipe of two epochs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    labels = torch.arange(512) % 10
    images = torch.zeros(512, 1, 28, 28)
    images[torch.arange(512), 0, 2 * labels + 4] = 1.0
    monkeypatch.setattr(lenet, "mnist", lambda split: (images, labels))
    short = replace(lenet.RECIPES["lenet-300-100"], epochs=8, rate=0.05)
    monkeypatch.setitem(lenet.RECIPES, "lenet-300-100", short)


def test_training_learns_repeats_itself_and_is_kept(quick, monkeypatch):
    before = torch.get_rng_state()
    model = lenet.train("lenet-300-100", 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert lenet.error(model) < 10
    assert not model.training
    path = lenet.checkpoint("lenet-300-100", 1)
    first = path.read_bytes()
    path.unlink()
    lenet.train("lenet-300-100", 1)
    assert path.read_bytes() == first
    monkeypatch.setattr(lenet, "fit", lambda training: pytest.fail("trained again"))
    again = lenet.train("lenet-300-100", 1)
    assert torch.equal(again.fc1.weight, model.fc1.weight)
    assert [path.name for path in path.parent.iterdir()] == [path.name]


def test_error_is_in_per_cent(quick):
    model = lenet.build("lenet-300-100")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.fc3.bias[3] = 1.0
    assert lenet.error(model) == pytest.approx(100 * (1 - 51 / 512))
