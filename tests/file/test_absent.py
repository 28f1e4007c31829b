"""A recipe may name methods that aren't installed; a weight may not."""

import json
import warnings

import pytest
import torch
from torch import nn

from lilliput.core.errors import FileError, LilliputWarning, NotInstalled, RecipeError
from lilliput.core.recipe import Absent, Recipe
from lilliput.file import read, write
from lilliput.file.artifact import Artifact
from lilliput.report.collect import Report
from lilliput.report.html import render
from lilliput.testing.mutate import Forged
from lilliput.train.attach import attach
from lilliput.train.compress import compress

STEP = {"method": "quantize/somebodys", "bits": 3, "form": "odd", "exact": True}
RULES = [
    {"match": "*.weight", "why": "theirs", "steps": [STEP]},
    {"match": "0.*", "steps": [{"method": "prune/magnitude", "sparsity": 0.5, "pattern": "somebodys_pattern"}]},
    {"match": "*", "steps": ["quantize/uniform"], "schedule": {"method": "prune/somebodys_schedule"}},
]


def file_of(rules, **weights):
    table = {"w": {"w": ["F32", [2, 2], "=", "0000803f"], **weights}, "r": {"version": 1, "rule": rules}}
    return Forged(json.dumps(table).encode()).seal()


def test_a_recipe_with_methods_that_are_not_installed_is_read_and_kept():
    with pytest.warns(LilliputWarning, match="quantize/somebodys, prune/magnitude, prune/somebodys_schedule") as told:
        artifact = read.loads(file_of(RULES))
    assert len(told) == 1
    assert artifact.weight("w").tolist() == [[1, 1], [1, 1]]
    assert artifact.recipe.absent == ("quantize/somebodys", "prune/magnitude", "prune/somebodys_schedule")
    assert artifact.recipe.rules[0].steps == (Absent("quantize/somebodys", {"bits": 3, "form": "odd", "exact": True},
                                                     artifact.recipe.rules[0].steps[0].missing),)  # fmt: skip
    text = artifact.recipe.dumps()
    assert 'steps = [{method = "quantize/somebodys", bits = 3, form = "odd", exact = true}]' in text
    assert 'pattern = "somebodys_pattern"' in text
    with pytest.raises(RecipeError, match=r"rule\[0\].steps\[0\]: no method 'quantize/somebodys'"):
        Recipe.loads(text)


def test_it_is_written_again_as_it_was():
    with pytest.warns(LilliputWarning):
        once = read.loads(file_of(RULES))
    with pytest.warns(LilliputWarning):
        twice = read.loads(write.dumps(once))
    assert twice.recipe == once.recipe


def test_reports_say_so():
    with pytest.warns(LilliputWarning):
        report = Report(read.loads(file_of(RULES)))
    assert sum("isn't installed" in note for note in report.notes) == 3
    assert "quantize/somebodys can&#39;t be carried out" in render(report)


def test_it_cannot_be_carried_out_and_says_which():
    with pytest.warns(LilliputWarning):
        recipe = read.loads(file_of(RULES[:1])).recipe
    model = nn.Sequential(nn.Linear(2, 2))
    for use in (compress, attach):
        with pytest.raises(RecipeError, match=r"rule\[0\]: quantize/somebodys can't be carried out: no method"):
            use(model, recipe)
    with pytest.raises(NotInstalled, match="quantize/somebodys"):
        recipe.rules[0].steps[0].pack(torch.ones(2))


def test_a_weight_that_needs_it_is_refused_by_name():
    packed = {"m": "quantize/somebodys", "s": [2], "p": {"a": ["F32", [2], "=", "0000803f"]}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FileError, match=r"fc.weight was packed by quantize/somebodys, which isn't installed"):
            read.loads(file_of(RULES, **{"fc.weight": packed}))
        inner = {"m": "quantize/float16", "s": [2], "p": {"values": packed}}
        with pytest.raises(FileError, match=r"fc.weight was packed by quantize/somebodys, which isn't installed"):
            read.loads(file_of([], **{"fc.weight": inner}))


@pytest.mark.parametrize(
    "step",
    [
        "os/system", "quantize/../x", "quantize/", "quantize/" + "x" * 65, {"method": "quantize/no", "a b": 1},
        {"method": "quantize/no", "a": [1]}, {"method": "quantize/no", "a": None},
        {"method": "quantize/no", "x" * 65: 1},
        {"method": "prune/magnitude", "pattern": "../x"}, {"method": "quantize/uniform", "bits": 99},
    ],
)  # fmt: skip
def test_what_no_recipe_can_have_is_refused_all_the_same(step):
    with pytest.raises(FileError, match="manifest"):
        read.loads(file_of([{"steps": [step]}]))


def test_a_recipe_that_is_all_there_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = Recipe.preset("deep-compression")
        assert read.loads(write.dumps(Artifact({"w": torch.ones(2)}, recipe))).recipe == recipe
