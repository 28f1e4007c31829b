"""What users get wrong, with every criterion that can be found: one clear line, and their model as it was."""

import copy
import math

import pytest
import torch
from torch import nn

import lilliput
from lilliput import Recipe, Rule
from lilliput.core.errors import DataError, LilliputError, MethodError
from lilliput.core.method import find_path, methods

CRITERIA = [m.path for m in methods("prune") if m.kind == "criterion"]
CALIBRATED = [path for path in CRITERIA if find_path(path).needs]
EXAMPLE = torch.zeros(1, 2, 6, 6)


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).eval()


def data(count=16):
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 2, 6, 6, generator=source)
    return [(inputs, torch.arange(count) % 3)]


def steps(path, **settings):
    return Recipe((Rule(steps=(find_path(path)(**{"sparsity": 0.5, **settings}),)),))


def refused(kind, model, recipe, *batches):
    """Compresses in vain; returns what was said."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind) as raised:
        lilliput.compress(model, recipe, *batches, example=EXAMPLE)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) or bool(value.isnan().any()) for name, value in before.items())
    assert not any(module._forward_hooks for module in model.modules())
    said = str(raised.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("path", CRITERIA)
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan])
def test_sparsity_outside_0_to_1(path, sparsity):
    with pytest.raises(MethodError, match=r"^prune: sparsity = .* is outside 0 \.\. 1 \(exclusive\)$"):
        find_path(path)(sparsity=sparsity)


@pytest.mark.parametrize("path", CRITERIA)
def test_more_to_keep_than_there_are(path):
    with pytest.raises(MethodError, match=r"5.*4"):
        find_path(path)(pattern="5:4")


@pytest.mark.parametrize("path", CALIBRATED)
def test_no_data(path):
    said = refused(MethodError, net(), steps(path))
    assert path in said
    assert "needs data" in said


@pytest.mark.parametrize("path", ["prune/lda", "prune/obd", "prune/taylor"])
def test_no_labels(path):
    said = refused(LilliputError, net(), steps(path), [data()[0][0]])
    assert "target" in said


@pytest.mark.parametrize("path", CRITERIA)
def test_calibration_on_one_example(path):
    """It works, or it is said that more is needed; never a NaN."""
    model = net()
    try:
        artifact = lilliput.compress(model, steps(path), data(1), example=EXAMPLE)
    except LilliputError as error:
        assert "more data" in str(error), error  # noqa: PT017 (either is right)
        return
    for name, packed in artifact.weights.items():
        assert bool(lilliput.unpack(packed).isfinite().all()), name


@pytest.mark.parametrize("path", CRITERIA)
def test_dead_layer(path):
    """A layer that always gives zeros, and one that always gets zeros, are pruned as any other."""
    model = net()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1)
    artifact = lilliput.compress(model, steps(path), data(), example=EXAMPLE, remove_dead=False)
    for name, packed in artifact.weights.items():
        assert bool(lilliput.unpack(packed).isfinite().all()), name


@pytest.mark.parametrize("path", [p for p in CRITERIA if p not in {"prune/obs", "prune/energy_aware"}])
@pytest.mark.parametrize("pattern", ["filter", "channel"])
def test_a_layer_keeps_a_channel(path, pattern):
    artifact = lilliput.compress(
        net(), steps(path, sparsity=0.99, pattern=pattern), data(), example=EXAMPLE, remove_dead=False
    )
    for name in ("0.weight", "2.weight", "5.weight"):
        alive = lilliput.unpack(artifact.weights[name]).flatten(2).any(-1) if name != "5.weight" else None
        alive = lilliput.unpack(artifact.weights[name]) != 0 if alive is None else alive
        groups = alive.any(1 if pattern == "filter" else 0)
        assert int(groups.sum()) == 1, f"{name}: {int(groups.sum())} left"


@pytest.mark.parametrize("path", CALIBRATED)
def test_activations_that_are_not_finite(path):
    model = net()
    model[0].bias.data[1] = math.inf
    model[0].weight.data[1] = 0
    batches = data()
    said = refused(LilliputError, model, steps(path), batches)
    assert "finite" in said


@pytest.mark.parametrize("path", CALIBRATED)
def test_inputs_that_are_not_finite(path):
    batches = data()
    batches[0][0][3, 1, 2, 2] = math.nan
    said = refused(DataError, net(), steps(path), batches)
    assert "finite" in said
