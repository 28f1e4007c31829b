"""The report tells what is in the file: sizes from its bytes, values before and after, and facts of the right kind."""

import copy
import errno
import json
import math
import os

import pytest
import torch
from torch import nn

from lilliput.core.errors import FileError, ModelError
from lilliput.core.recipe import Recipe, Rule
from lilliput.file.artifact import Artifact
from lilliput.file.read import read
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.uniform import Uniform
from lilliput.report.collect import Report
from lilliput.report.facts import Stage, accuracy, number, record, stages_of
from lilliput.report.html import render
from lilliput.train.attach import attach
from lilliput.train.compress import compress, pack


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)
    ).eval()


RECIPE = Recipe(
    (
        Rule("4.*", (Magnitude(sparsity=0.75), Uniform(bits=4)), why="most of the weights"),
        Rule("*", (Uniform(bits=6),), layers="conv*"),
    )
)


@pytest.fixture
def saved(tmp_path):
    model = network()
    artifact = compress(model, RECIPE, example=torch.rand(2, 1, 8, 8))
    path = tmp_path / "net.safetensors"
    artifact.save(path)
    return model, artifact, path


def test_every_size_is_that_of_the_written_file(saved):
    _, _, path = saved
    report = Report(read(path), path=path)
    size = path.stat().st_size
    assert report.summary.bytes == size
    assert sum(report.summary.parts.values()) == size
    in_layers = sum(layer.bytes for layer in report.layers)
    assert in_layers <= report.summary.parts["streams"] + report.summary.parts["floats"]
    assert report.summary.original == sum(t.numel() * t.element_size() for t in network().state_dict().values())
    assert report.summary.ratio == report.summary.original / size
    assert sum(layer.parameter_share for layer in report.layers) == pytest.approx(1)


def test_without_a_file_the_bytes_that_would_be_written_are_counted(saved):
    _, artifact, path = saved
    assert artifact.report.summary.bytes == path.stat().st_size
    assert artifact.report.summary.file == ""


def test_layers_tell_method_reason_error_and_values_before_and_after(saved):
    model, artifact, path = saved
    layers = {layer.name: layer for layer in Report(read(path), model, path).layers}
    linear = layers["4.weight"]
    assert (linear.kind, linear.shape, linear.why) == ("linear", (10, 144), "most of the weights")
    assert linear.method == "prune/sparse > quantize/uniform"
    assert linear.steps == "prune/magnitude sparsity=0.75, quantize/uniform bits=4"
    assert linear.before.zeros == 0
    assert linear.after.zeros >= 0.75
    assert linear.error == artifact.facts["error"]["4.weight"]
    assert linear.bits == 8 * linear.bytes / 1440
    assert layers["4.bias"].method == "kept"
    assert layers["4.bias"].error is None


def test_values_before_are_those_of_the_folded_weights_that_were_packed(saved):
    model, _, _ = saved
    with torch.no_grad():
        model[1].running_var.mul_(100)
    artifact = compress(model, RECIPE, example=torch.rand(2, 1, 8, 8))
    layer = next(la for la in Report(artifact, model).layers if la.name == "0.weight")
    # Folding divides the convolution by sqrt(running_var + eps); without it the values would be ten times larger.
    assert layer.before.deviation == pytest.approx(layer.after.deviation, rel=0.05)


def test_kinds_come_from_the_graph_where_the_model_is_not_at_hand(saved):
    _, _, path = saved
    kinds = {layer.name: layer.kind for layer in Report(read(path), path=path).layers}
    assert (kinds["0.weight"], kinds["4.weight"], kinds["4.bias"]) == ("conv2d", "linear", "vector")


def test_cuts_and_tied_weights_are_told():
    model = network()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[1].bias[2] = -1
    report = Report(compress(model, RECIPE, example=torch.rand(2, 1, 8, 8)), model)
    told = report.to_dict()
    assert {"parameter": "0.weight", "axis": 0, "size": 4, "kept": 3} in told["cuts"]
    layer = next(layer for layer in report.layers if layer.name == "0.weight")
    assert (layer.shape, layer.before.zeros) == ((3, 1, 3, 3), 0)
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    tied[1].weight = tied[0].weight
    report = compress(tied, Recipe.preset("int8")).report
    assert report.to_dict()["aliases"] == {"1.weight": "0.weight"}
    assert "also 1.weight" in render(report)
    assert report.summary.parameters == 20


def test_another_model_is_refused(saved):
    _, artifact, _ = saved
    with pytest.raises(ModelError, match="another model"):
        _ = Report(artifact, nn.Linear(3, 3)).layers


def test_the_json_is_strict_and_holds_what_to_dict_gives(saved, tmp_path):
    model, _, path = saved
    report = Report(read(path), model, path)
    report.save(tmp_path / "report.json")

    def refuse(word):
        raise AssertionError(word)

    data = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert data == json.loads(json.dumps(report.to_dict()))
    assert data["format"] == "lilliput-report"
    assert [layer["name"] for layer in data["layers"]] == list(report.artifact.weights)


def test_a_report_of_another_ending_is_refused(saved, tmp_path):
    with pytest.raises(FileError, match=r"\.html or \.json"):
        saved[1].report.save(tmp_path / "report.pdf")
    with pytest.raises(FileError, match="doesn't exist"):
        saved[1].report.save(tmp_path / "nowhere" / "report.html")


def test_measurements_are_kept_in_the_file(saved, tmp_path):
    stages = [Stage("dense", 6000, 0.9), Stage("coded", 900, 0.89)]
    record(saved[1], before=0.9, after=0.89, stages=stages).save(tmp_path / "told.safetensors")
    report = Report(read(tmp_path / "told.safetensors"))
    assert report.stages == tuple(stages)
    assert (report.summary.before, report.summary.after) == (0.9, 0.89)


def test_stages_tell_the_accuracy_where_nothing_else_does():
    facts = record(Artifact({}), stages=[Stage("a", 9, 0.5), Stage("b", 8), Stage("c", 7, 0.4)]).facts
    assert accuracy(facts) == (0.5, 0.4)


@pytest.mark.parametrize(
    "value", [None, 7, "x", [1], {"name": 3}, [{"name": "a", "bytes": "b"}], [{"bytes": 3}], [None]]
)
@pytest.mark.parametrize("key", ["stages", "accuracy", "error", "notes", "original"])
def test_facts_of_a_stranger_can_be_anything(key, value):
    artifact = Artifact({"w": torch.ones(2, 2)}, facts={key: value})
    report = artifact.report
    assert report.summary.ratio > 0
    assert len(report.layers) == 1
    assert report.stages == ()
    json.dumps(report.to_dict(), allow_nan=False)


def test_numbers_of_a_stranger_that_are_none():
    facts = {"error": {"w": "big", "v": True, "u": 0.5}, "original": -8, "stages": [{"name": "x", "bytes": -1}]}
    report = Artifact({"w": torch.ones(2)}, facts=facts).report
    assert report.layers[0].error is None
    assert report.summary.original == 8
    assert stages_of(facts) == ()
    assert [number(value) for value in (math.inf, math.nan, 10**400, True, "1", None, 3)] == [None] * 6 + [3.0]


def test_an_empty_network_and_odd_tensors_have_a_report():
    weights = {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "half": torch.ones(2).half(),
        "b": torch.ones(2) > 0,
    }
    for report in (Artifact({}).report, Artifact(weights).report):
        assert len(report.layers) == len(report.artifact.weights)
        json.dumps(report.to_dict(), allow_nan=False)


def test_a_trained_weight_has_no_error_but_against_its_original():
    """The plain copy of an attached model holds the packed values already: compared with those the error would be 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    original = copy.deepcopy(model)
    attach(model, Recipe((Rule("0.*", (Magnitude(sparsity=0.5),)),)))
    with torch.no_grad():
        model[0].parametrizations.weight.original.mul_(1.25)
    artifact = pack(model)
    assert "error" not in artifact.facts
    assert artifact.facts["trained"] is True
    alone = {layer.name: layer for layer in Report(artifact).layers}
    assert (alone["0.weight"].error, alone["0.weight"].trained) == (None, True)
    assert not alone["2.weight"].trained
    told = {layer.name: layer for layer in Report(artifact, original).layers}
    before = original[0].weight.detach()
    expected = float((model[0].weight.detach() - before).norm() / before.norm())
    assert told["0.weight"].error == pytest.approx(expected, rel=1e-5)
    assert expected > 0.25
    assert told["2.weight"].error is None
    assert ">trained</td>" in render(Report(artifact))
    assert ">trained</td>" not in render(Report(artifact, original))
    assert "packing and training changed together" in render(Report(artifact, original))


def test_a_network_that_was_not_trained_has_errors_and_does_not_say_so(saved):
    layers = Report(read(saved[2])).layers
    assert not any(layer.trained for layer in layers)
    assert "packing and training" not in render(Report(saved[1]))


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_full_disk_leaves_the_old_report_and_nothing_else(saved, tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("old")
    names = sorted(os.listdir(tmp_path))

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device; nothing was left"):
        Report(saved[1]).save(tmp_path / name)
    assert (tmp_path / name).read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("trained", [False, True])
def test_macs_before_and_after_a_cut(trained, tmp_path):
    """4 filters of 9 weights at 36 places and 144 x 10; half of the filters go."""
    recipe = Recipe.loads("[[cut]]\nshare = 0.5")
    example = torch.rand(3, 1, 8, 8)
    artifact = pack(attach(network(), recipe, example=example)) if trained else compress(network(), recipe, example)
    artifact.save(tmp_path / "net.safetensors")
    report = Report(read(tmp_path / "net.safetensors"), path=tmp_path / "net.safetensors")
    assert report.summary.macs == (4 * 9 * 36 + 144 * 10, 2 * 9 * 36 + 72 * 10)
    assert report.to_dict()["summary"]["macs"] == report.summary.macs
    assert "1,368</b><span>MACs for one input, 50.0 % of 2,736" in render(report)
    assert "MACs" not in render(Report(compress(network(), RECIPE, example)))
