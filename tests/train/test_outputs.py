"""Quantizers behind layers: where they stand, what they clip, and that the file computes what was attached."""

from dataclasses import replace

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

import lilliput
from lilliput.core.activations import Quantized
from lilliput.core.errors import DataError, FileError, MethodError, ModelError
from lilliput.core.recipe import Recipe
from lilliput.export.onnx import to_onnx
from lilliput.file.read import loads
from lilliput.file.write import dumps
from lilliput.graph.results import open_results
from lilliput.graph.trace import trace
from lilliput.run.load import load
from lilliput.train.quantizer import place, quantized, remove

RECIPE = Recipe.loads("""
[[rule]]
steps = [{method = "quantize/uniform", bits = 8}]
activations = "uniform:8"
outputs = "uniform:8"
""")


OUTPUTS = Recipe.loads("[[rule]]\noutputs = 'uniform:8'")


class Residual(nn.Module):
    """A sum, a concatenation, a pool, a padded convolution and an output that stays as it is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)
        self.c, self.fc = nn.Conv2d(16, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        y = self.b(functional.relu6(self.a(functional.pad(x, (1, 1, 1, 1)))))
        z = torch.cat([x + y, y], 1)
        return self.fc(self.c(z).relu().mean((2, 3)))


def batches(count=2):
    return [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def net():
    model = Residual()
    model.train()
    for batch in batches(4):
        model(batch)
    return model.eval()


def test_they_stand_where_no_other_quantizer_takes_the_result():
    graph, _ = trace(net(), batches()[0])
    names = {f"{path}.weight" for path in ("stem", "a", "b", "c", "fc")}
    found = {result.path: (result.low, result.high) for result in open_results(graph, names, names)}
    assert found == {"norm": (0.0, torch.inf), "b": (-torch.inf, torch.inf), "c": (0.0, torch.inf)}
    found = {result.path: result.high for result in open_results(graph, names, names - {"b.weight"})}
    assert found["a"] == 6, "b takes it as it is"


def test_what_the_activation_clips_is_clipped_on_the_levels():
    artifact = lilliput.compress(net(), RECIPE, batches())
    assert artifact.quantizers["norm:out"].numbers["zero"] == 0, "nothing below 0 is left by the ReLU"
    assert artifact.quantizers["b:out"].numbers["zero"] > 0
    assert Recipe.loads(artifact.recipe.dumps()) == RECIPE
    report = {layer.name: layer.activations for layer in artifact.report.layers}
    assert "comes out" in report["b.weight"]


def test_training_saw_what_the_file_computes():
    model, x = net(), batches(3)[2]
    keys = set(model.state_dict())
    lilliput.attach(model, RECIPE, batches())
    assert {"norm:out", "b:out", "c:out", "stem"} <= set(quantized(model))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()
    for batch in batches():
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    artifact = loads(dumps(lilliput.pack(model.eval())))
    with torch.no_grad():
        seen = model(x)
        assert torch.equal(load(artifact, engine="dense")(x), seen)
        assert torch.equal(load(artifact, into=Residual())(x), seen)
    before = quantized(model)
    assert quantized(lilliput.attach(model, RECIPE, batches(1))) == before, "the same again goes on with its numbers"
    assert set(lilliput.detach(model).state_dict()) == keys
    with pytest.raises(ModelError, match="another model"):
        load(loads(dumps(artifact)), into=nn.Sequential(nn.Linear(2, 2)))


def test_all_convolutions_are_computed_with_integers():
    artifact = lilliput.compress(net(), RECIPE, batches())
    tensors = {name: artifact.weight(name) for name in artifact.weights} | dict(artifact.constants)
    made = to_onnx(artifact.graph, tensors, artifact.weights)
    floats = {init.name for init in made.graph.initializer if init.data_type == onnx.TensorProto.FLOAT}
    kinds = [node for node in made.graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}]
    assert len(kinds) == 5
    assert not any(set(node.input) & floats for node in kinds), "no weight is float"
    x = batches(3)[2]
    with torch.no_grad():
        wanted, found = load(artifact, engine="dense")(x), load(artifact, engine="onnxruntime")(x)
    assert float((found - wanted).abs().max()) < 0.05 * float(wanted.std())


def test_bad_input_is_one_line():
    for recipe, data, kind, text in (
        (RECIPE, None, MethodError, "needs data"),
        (OUTPUTS, None, DataError, "outputs of layers can't be quantized without"),
        (RECIPE, [torch.zeros(2, 3, 8, 8)], MethodError, "all zeros"),
        (RECIPE, [torch.full((2, 3, 8, 8), torch.nan)], DataError, "NaN or infinite"),
        (RECIPE, [torch.zeros(2, 4, 8, 8)], DataError, "can't take it"),
    ):
        for way in (lilliput.compress, lilliput.attach):
            model = net()
            with pytest.raises(kind, match=text) as caught:
                way(model, recipe, data)
            assert "\n" not in str(caught.value)
            assert not quantized(model)


def test_missing_scales_at_export_are_one_line():
    artifact = lilliput.compress(net(), RECIPE, batches())
    model = net()
    for key in ("b", "b:out"):
        bare = {**artifact.quantizers, key: Quantized(artifact.quantizers[key].method)}
        with pytest.raises(FileError, match=f"quantizer of '{key}': .*'scale' is missing") as caught:
            loads(dumps(replace(artifact, quantizers=bare)))
        assert "\n" not in str(caught.value)
        place(model, {key: bare[key]})
        with pytest.raises(MethodError, match="'scale' is missing: calibrate with data="):
            model(batches()[0])
        remove(model)
