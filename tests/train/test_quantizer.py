"""Quantizers in front of layers: placed, trained, saved, loaded; and what can't be done, in one line."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import DataError, MethodError, ModelError, NotInstalled, RecipeError
from lilliput.core.layers import weights
from lilliput.core.recipe import Recipe, Rule
from lilliput.file.artifact import Artifact
from lilliput.file.read import loads
from lilliput.file.write import dumps
from lilliput.quantize.activations.uniform import Uniform
from lilliput.quantize.uniform import Uniform as Weights
from lilliput.train.attach import attachment
from lilliput.train.fit import FitOptions, fit
from lilliput.train.quantizer import quantized, quantizers

BOTH = Rule(steps=(Weights(bits=4),), activations=Uniform(bits=4))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            act=nn.ReLU(),
            deep=nn.Conv2d(4, 4, 3),
            flat=nn.Flatten(),
            fc=nn.Linear(64, 3),
        )
    ).eval()


def batches(count=3):
    torch.manual_seed(1)
    return [torch.randn(4, 1, 6, 6) for _ in range(count)]


def labelled():
    return [(x, torch.arange(4) % 3) for x in batches()]


def through_file(artifact):
    return loads(dumps(artifact))


def test_skip_leaves_first_and_last_alone():
    model = net()
    for skip, left in {
        "none": {"conv", "deep", "fc"},
        "first": {"deep", "fc"},
        "last": {"conv", "deep"},
        "first and last": {"deep"},
    }.items():
        fitting = {w.name.removesuffix(".weight") for w in weights(model) if Rule(skip=skip).fits(w)}
        assert fitting == left
        if skip != "first and last":
            continue
        recipe = Recipe((Rule(steps=BOTH.steps, activations=BOTH.activations, skip=skip),))
        artifact = lilliput.compress(model, Recipe.loads(recipe.dumps()), batches())
        assert set(artifact.quantizers) == left
        packed = {n.removesuffix(".weight") for n, w in artifact.weights.items() if isinstance(w, lilliput.Packed)}
        assert packed == left
        asked = {layer.name.removesuffix(".weight") for layer in artifact.report.layers if layer.steps}
        assert asked == left, "the report follows the same rule"
    with pytest.raises(RecipeError, match=r"rule\[0\].skip"):
        Recipe.loads('[[rule]]\nskip = "middle"')


def test_short_forms():
    assert Recipe.loads('[[rule]]\nactivations = "uniform:5:symmetric"').rules[0].activations == Uniform(
        bits=5, form="symmetric"
    )
    assert Recipe.loads('[[rule]]\nactivations = {method = "quantize/activations/uniform", learned = true}').rules[
        0
    ].activations == Uniform(learned=True)
    for text, word in {
        '"unifrom:8"': "quantize/activations/uniform",
        '"uniform:x"': "bits",
        '"uniform:8:affine:static:0.0:minmax:false:1"': "6 settings, not 7",
        '"quantize/uniform"': "weight method, which can't stand here",
        "8": "must be a table",
    }.items():
        with pytest.raises(RecipeError, match=word):
            Recipe.loads(f"[[rule]]\nactivations = {text}")


def test_staged_training_goes_on_with_ranges_and_ends_in_one_file(tmp_path):
    """Feature maps first, then weights too, training between: learned ranges go on, the file holds what was seen."""
    model, data = net().train(), labelled()
    quantizer = Uniform(bits=4, learned=True)
    lilliput.attach(model, Recipe((Rule(activations=quantizer),)), [x for x, _ in data])
    start = quantized(model)["deep"].numbers["scale"]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    fit(model, data, epochs=2, optimizer=optimizer, options=FitOptions(progress=False))
    moved = quantized(model)["deep"].numbers["scale"]
    assert moved != start
    held = [id(p) for p in lilliput.new_parameters(model)]
    assert len(held) == 3
    lilliput.attach(model, Recipe((Rule(steps=(Weights(bits=4),), activations=quantizer),)))
    assert quantized(model)["deep"].numbers["scale"] == moved
    assert [id(p) for p in lilliput.new_parameters(model)] == held, "an optimizer goes on with them"
    fit(model, data, epochs=1, optimizer=optimizer, options=FitOptions(progress=False))
    model.eval()
    x = batches()[0]
    artifact = lilliput.pack(model)
    artifact.save(tmp_path / "net.safetensors")
    with torch.no_grad():
        seen = model(x)
        assert torch.equal(lilliput.load(tmp_path / "net.safetensors", engine="dense")(x), seen)
        assert torch.equal(lilliput.load(tmp_path / "net.safetensors", into=net())(x), seen)
    assert [w.name for w in weights(model)] == [w.name for w in weights(net())] or len(weights(model)) == 8


def test_a_checkpoint_holds_the_ranges(tmp_path):
    """Killed after an epoch, the same call goes on to the same numbers, learned scales too."""
    recipe, data = Recipe((Rule(activations=Uniform(bits=3, learned=True)),)), labelled()

    def trained(epochs, path):
        model = lilliput.attach(net(), recipe, [x for x, _ in data])
        fit(model, data, epochs=epochs, options=FitOptions(progress=False, checkpoint=path, seed=4))
        return model

    whole = trained(2, None)
    torch.manual_seed(9)
    half = lilliput.attach(net(), recipe, [x for x, _ in data])
    stop = iter([True, True, True, True, False])

    def log(values, step):
        if not next(stop):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(half, data, epochs=2, options=FitOptions(progress=False, checkpoint=tmp_path / "c", seed=4, log=log))
    again = trained(2, tmp_path / "c")
    for one, two in zip(quantized(whole).values(), quantized(again).values(), strict=True):
        assert one == two


def test_loaded_models_are_compressed_again_with_their_quantizers():
    artifact = through_file(lilliput.compress(net(), Recipe((Rule(activations=Uniform(bits=3)),)), batches()))
    model = lilliput.load(artifact, into=net())
    keys = set(model.state_dict())
    assert keys == set(net().state_dict())
    again = lilliput.compress(model, Recipe((Rule(steps=(Weights(),)),)), batches())
    assert again.quantizers == artifact.quantizers
    assert lilliput.load(artifact, into=model) is model
    assert len(quantizers(model)) == 3
    plain = lilliput.load(lilliput.compress(net(), Recipe(), batches()), into=model)
    assert not quantizers(plain)


def test_recurrent_and_transposed_layers_and_keywords():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 3, 2)
            self.rnn = nn.LSTM(5, 4, batch_first=True)
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(input=self.rnn(self.up(x))[0])

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 2, 4)
    lilliput.attach(model, Recipe((Rule(activations=Uniform(bits=4)),)), [x])
    assert set(quantized(model)) == {"up", "rnn", "fc"}
    artifact = through_file(lilliput.pack(model))
    with torch.no_grad():
        assert torch.equal(lilliput.load(artifact, engine="dense")(x), model(x))
        assert torch.equal(lilliput.load(artifact, into=Net())(x), model(x))


def test_attention_and_embeddings_are_left_with_a_note():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 8)
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
            self.fc = nn.Linear(8, 2)

        def forward(self, x):
            h = self.table(x)
            return self.fc(self.mix(h, h, h, need_weights=False)[0])

    model = lilliput.attach(Net(), Recipe((BOTH,)), [torch.arange(4)[None]])
    assert set(quantized(model)) == {"fc"}
    notes = attachment(model).notes
    assert "without calling the layer" in notes["mix.out_proj.weight"]
    assert "no linear, convolution or recurrent layer" in notes["table.weight"]
    with pytest.raises(RecipeError, match=r"rule\[0\]: its activations fit no layer"):
        lilliput.attach(Net(), Recipe((Rule("table*", activations=Uniform()),)), [torch.arange(4)[None]])


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.a(x)


@pytest.mark.parametrize("way", ["compress", "attach"])
def test_what_can_t_be_calibrated_is_one_line_that_names_the_layer(way):
    def done(model, recipe, data, **more):
        (lilliput.compress if way == "compress" else lilliput.attach)(model, recipe, data, **more)

    recipe, x = Recipe((Rule(activations=Uniform()),)), torch.randn(4, 3)
    cases = [
        (MethodError, "b.weight .*no batch of the data reached this layer", Unused(), [x]),
        (MethodError, "weight .*all zeros in calibration", nn.Linear(3, 2), [torch.zeros(4, 3)]),
        (MethodError, "weight .*needs data", nn.Linear(3, 2), None),
        (DataError, "NaN or infinite", nn.Linear(3, 2), [x * torch.nan]),
        (DataError, r"of shape \(4, 5\): the model can't take it", nn.Linear(3, 2), [torch.randn(4, 5)]),
    ]
    for kind, text, model, data in cases:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(kind, match=text) as caught:
            done(model, recipe, data)
        assert "\n" not in str(caught.value)
        assert not quantizers(model), "the user's model is as it was"
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_nan_in_training_names_the_layer():
    model = lilliput.attach(net(), Recipe((Rule(activations=Uniform(bits=4)),)), batches()).train()
    with torch.no_grad():
        model.deep.weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(DataError, match=r"fc: 64 of 256 activations .* NaN or infinite"):
        model(batches()[0])


def test_into_another_model_changes_nothing():
    artifact = lilliput.compress(net(), Recipe((Rule(activations=Uniform()),)), batches())
    model = net()
    del model.fc
    model.fc = nn.Identity()
    with pytest.raises(ModelError):
        lilliput.load(artifact, into=model)
    assert not quantizers(model)


def test_a_file_with_a_quantizer_that_isn_t_installed_runs_but_can_t_fill():
    artifact = lilliput.compress(net(), Recipe(), batches())
    text = '{method = "quantize/activations/somebodys", bits = 3}'
    data = {"version": 1, "rule": [{"match": "*", "activations": {"method": "quantize/activations/somebodys"}}]}
    from lilliput.core.recipe import from_data

    with pytest.raises(RecipeError, match="somebodys"):
        Recipe.loads(f"[[rule]]\nactivations = {text}")
    absent = from_data(data, absent=True).rules[0].activations
    held = Artifact(
        artifact.weights, graph=artifact.graph, constants=artifact.constants, quantizers={"fc": lilliput_of(absent)}
    )
    read = through_file(held)
    lilliput.load(read)(batches()[0])
    model = net()
    with pytest.raises(NotInstalled, match="somebodys can't be carried out"):
        lilliput.load(read, into=model)
    assert all(torch.equal(v, net().state_dict()[k]) for k, v in model.state_dict().items())


def lilliput_of(method):
    from lilliput.core.activations import Quantized

    return Quantized(method, {})


def test_under_autocast_and_in_half_precision():
    model = lilliput.attach(net(), Recipe((Rule(activations=Uniform(bits=4)),)), batches())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert model(batches()[0]).dtype == torch.bfloat16
    artifact = lilliput.compress(net().bfloat16(), Recipe((BOTH,)), [x.bfloat16() for x in batches()])
    out = lilliput.load(through_file(artifact))(batches()[0].bfloat16())
    assert out.dtype == torch.bfloat16
