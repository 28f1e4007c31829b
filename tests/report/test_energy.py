"""Energy in reports: before and after by layer, a column, a picture, and a word where it can't be told."""

import json
import re

import pytest
import torch
from torch import nn

from lilliput.core.recipe import Recipe
from lilliput.hardware.assess import assess
from lilliput.hardware.device import Device
from lilliput.report.collect import Report
from lilliput.report.energy import PARTS, inputs
from lilliput.report.html import energy_picture, render, standalone
from lilliput.search.layers import layers_of
from lilliput.train.compress import compress

DEVICE = Device.load("eyeriss")


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()


@pytest.fixture(scope="module")
def report():
    model = build()
    return Report(compress(model, Recipe.preset("int8"), example=torch.zeros(1, 1, 8, 8)), model, device=DEVICE)


def test_the_bill_is_what_the_model_of_the_device_says(report):
    model, bill = build(), report.energy
    (noise,) = inputs(report.artifact.graph)
    layers, _ = layers_of(model, lambda: model(noise), 16)
    assert list(bill.layers) == ["0", "3"]
    for layer in layers:
        spent = bill.layers[layer.name]
        assert tuple(spent.before) == PARTS
        assert sum(spent.before.values()) == pytest.approx(assess(layer, DEVICE).energy.total)
        assert sum(spent.after.values()) < sum(spent.before.values()), "8 bits take less than 16"
    assert bill.before > bill.after > 0.3 * bill.before


def test_layers_and_json_hold_it(report):
    rows = {layer.name: layer for layer in report.layers}
    assert rows["3.weight"].energy == pytest.approx(sum(report.energy.layers["3"].after.values()))
    assert rows["3.bias"].energy is None
    told = json.loads(json.dumps(report.to_dict()))
    assert told["energy"]["device"] == "eyeriss"
    assert told["layers"][0]["energy_before"] > told["layers"][0]["energy"] > 0


def test_the_page_has_a_column_and_a_picture(report):
    page = render(report)
    assert "Energy on eyeriss" in page
    assert page.count("Energy of each layer on eyeriss") >= 1
    assert re.search(r"<button type=\"button\">Energy</button>", page)
    without = render(Report(report.artifact, build()))
    assert "Energy" not in without


def test_a_picture_of_its_own(report):
    picture = standalone(energy_picture(report.energy))
    assert picture.startswith("<svg ")
    assert 'xmlns="http://www.w3.org/2000/svg"' in picture
    assert picture.count("<rect") == 2 * 2 * len(PARTS)
    assert "--t0: #" in picture
    assert "\n" not in picture.partition("<style>")[0]


def test_where_it_can_t_be_told_the_report_says_so():
    artifact = compress(build(), Recipe.preset("int8"))
    told = Report(artifact, build(), device=DEVICE)
    assert told.energy is None
    assert any("graph" in note for note in told.notes)
    other = Report(compress(build(), Recipe(), example=torch.zeros(1, 1, 8, 8)), device=DEVICE)
    assert other.energy is None
    assert all(layer.energy is None for layer in other.layers)


def test_open_sizes_and_whole_numbers():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))
    graph = compress(model, Recipe(), example=torch.zeros(2, 7, dtype=torch.int64)).graph
    (value,) = inputs(graph)
    assert value.dtype == torch.int64
    assert value.shape[0] == 1
    assert not value.any()
