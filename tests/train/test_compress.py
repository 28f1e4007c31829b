"""`compress` without an input: the model's memory is read, never written, never kept; and what it takes is bounded."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

from lilliput.core.errors import DataError, ModelError, RecipeError
from lilliput.core.packed import Packed, leaves, unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.file.read import loads
from lilliput.file.write import dumps
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.float16 import Float16
from lilliput.quantize.uniform import Uniform
from lilliput.run.load import load
from lilliput.share.kmeans import KMeans
from lilliput.train.attach import attach, attachment
from lilliput.train.compress import compress, pack

RECIPES = {
    "pruned and shared": Recipe((Rule(steps=(Magnitude(sparsity=0.8), KMeans(bits=3), Float16())),)),
    "pruned": Recipe((Rule(steps=(Magnitude(sparsity=0.8),)),)),
    "halved": Recipe((Rule(steps=(Float16(),)),)),
    "biases too": Recipe((Rule(layers="vector", steps=(Float16(),)), Rule(steps=(Uniform(bits=4),)))),
}


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", RECIPES)
def test_nothing_of_the_artifact_is_the_models_memory(name, dtype):
    """Half precision weights too: packing those to 16 bits gives the weight itself back."""
    model = net(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    artifact = compress(model, RECIPES[name])
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(p.requires_grad for p in model.parameters())
    assert model.training
    kept = {key: [leaf.clone() for _, leaf in leaves(value)] for key, value in artifact.weights.items()}
    with torch.no_grad():
        for tensor in after.values():
            tensor.zero_()
    for key, value in artifact.weights.items():
        assert all(torch.equal(leaf, old) for (_, leaf), old in zip(leaves(value), kept[key], strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_weights_with_an_input_and_without(name):
    model = net().eval()
    bare = compress(model, RECIPES[name], fold=False, remove_dead=False)
    traced = compress(model, RECIPES[name], example=torch.rand(1, 3, 3, 3), fold=False, remove_dead=False)
    assert list(bare.weights) == list(traced.weights)
    for key, value in bare.weights.items():
        assert torch.equal(unpack(value), unpack(traced.weights[key]))
    assert bare.facts["error"] == traced.facts["error"]


def test_the_error_is_relative_to_the_weight():
    model = nn.Linear(700, 300)
    artifact = compress(model, RECIPES["pruned and shared"])
    before, after = model.weight.detach().double(), unpack(artifact.weights["weight"]).double()
    assert artifact.facts["error"]["weight"] == float(f"{float((after - before).norm() / before.norm()):.3g}")


def test_a_weight_parametrized_by_somebody_else_is_refused():
    model = nn.Linear(4, 4)
    parametrize.register_parametrization(model, "weight", nn.Identity())
    with pytest.raises(ModelError, match="parametrization of its own"):
        compress(model, RECIPES["pruned"])


def test_tied_weights_stay_one():
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    model["b"].weight = model["a"].weight
    artifact = compress(model, RECIPES["pruned and shared"])
    assert artifact.aliases == {"b.weight": "a.weight"}
    assert isinstance(artifact.weights["a.weight"], Packed)


NOTHING = Recipe((Rule(match="9.*", steps=(Uniform(),)),))


@pytest.mark.parametrize("use", [compress, attach])
def test_a_pattern_that_matches_nothing_is_named(use):
    model = net()
    with pytest.raises(RecipeError, match=r"rule\[0\] \(match = '9.\*'.* fits no weight; there is"):
        use(model, NOTHING)
    assert attachment(model) is None


@pytest.mark.parametrize("use", [compress, attach])
@pytest.mark.parametrize("data", [[], (), DataLoader(TensorDataset(torch.empty(0, 3, 3, 3)), batch_size=2)])
def test_an_empty_loader_is_named(use, data):
    model = net()
    with pytest.raises(DataError, match="the data is empty"):
        use(model, RECIPES["pruned"], data)
    assert attachment(model) is None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["0.weight", "3.bias"])
def test_weights_that_are_nan_are_named_with_their_layer(bad, name):
    model = net()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[1] = bad
    with pytest.raises(ModelError, match=rf"{name}: 1 of \d+ weights are NaN or infinite"):
        compress(model, RECIPES["pruned"])


def test_weights_that_training_made_nan_are_not_packed():
    model = attach(net(), RECIPES["halved"])
    with torch.no_grad():
        model[3].bias[0] = torch.nan
    with pytest.raises(ModelError, match=r"3.bias: 1 of 4 weights are NaN"):
        pack(model)


def residual():
    """Two folded BatchNorms and one that stays, since its convolution is used twice."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
            self.twice, self.stays = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
            self.head, self.last = nn.Linear(6, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.twice(torch.relu(self.norm(self.conv(x))))
            return self.last(self.head((self.stays(y) + y).mean((2, 3))))

    torch.manual_seed(1)
    model = Residual()
    for norm in (model.norm, model.stays, model.last):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.2, 2)
    return model.eval()


@pytest.mark.parametrize("name", RECIPES)
def test_the_graph_needs_no_folded_batch_norm_and_the_users_class_is_filled_all_the_same(name):
    model, x = residual(), torch.randn(5, 3, 9, 9)
    artifact = loads(dumps(compress(model, RECIPES[name], example=x)))
    assert [node.operator for node in artifact.graph.nodes].count("aten.batch_norm.default") == 1
    assert "norm.running_var" not in artifact.graph.tensors
    net, filled = load(artifact), load(artifact, into=residual())
    torch.testing.assert_close(net(x), filled(x), rtol=1e-5, atol=1e-5)
    for key, value in filled.state_dict().items():
        assert torch.equal(value, artifact.weight(key))


def test_a_recipe_that_changes_nothing_changes_no_output():
    model, x = residual(), torch.randn(5, 3, 9, 9)
    artifact = compress(model, Recipe(), example=x)
    torch.testing.assert_close(load(artifact)(x), model(x), rtol=1e-5, atol=1e-5)


MEMORY = """
import torch
from torch import nn
import lilliput
from lilliput.prune.magnitude import Magnitude
from lilliput.share.kmeans import KMeans

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

recipe = lilliput.Recipe((lilliput.Rule(steps=(Magnitude(sparsity=0.9), KMeans(bits=5))),))
lilliput.compress(nn.Linear(600, 600), recipe)
before = peak()
model = nn.Linear(8192, 4096, bias=False).requires_grad_(False)
model.weight += 1  # no weight is zero by chance: masking scores takes their memory once more
lilliput.compress(model, recipe)
print((peak() - before) / (4 * 8192 * 4096))
"""


def test_one_large_layer_takes_its_own_memory_one_and_a_half_times_more():
    """The weight, its dense pruned copy and the codes: 2.25; sorting the scores would take 7, a wide mask sum 4."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2.7
