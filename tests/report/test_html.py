"""The page needs nothing but itself, escapes what strangers wrote, and runs only its own script."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from lilliput.core.recipe import Recipe, Rule
from lilliput.file.artifact import Artifact
from lilliput.file.read import read
from lilliput.quantize.uniform import Uniform
from lilliput.report.collect import Layer, Report
from lilliput.report.facts import Stage, record
from lilliput.report.html import TONES, render, tones_of
from lilliput.report.text import BARS, digits, percent, printable, size_text, sparkline
from lilliput.train.compress import compress

VOID = {"meta", "br", "link", "img", "input", "hr"}
EVIL = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>\x1b[31m"


class Page(HTMLParser):
    """Collects elements and attributes, and checks that tags are nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID and not (self.open and self.open[-1] == "svg" and tag == "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def evil_artifact():
    recipe = Recipe((Rule("*", (Uniform(bits=4),), why=EVIL),), name=EVIL)
    weight = Uniform(bits=4).pack(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    facts = {"notes": {EVIL: EVIL, "<b>": "</dl>"}, "error": {EVIL: 0.5}}
    artifact = Artifact({"<i>evil</i>.weight": weight, "x": torch.ones(3, 3)}, recipe, facts=facts)
    return record(artifact, before=0.5, after=0.4, stages=[Stage(EVIL, 100, 0.5), Stage("coded", 50)])


def test_the_page_is_nested_well_and_fetches_nothing():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    artifact = compress(model, Recipe.preset("int8"), example=torch.rand(1, 1, 8, 8))
    text = render(Report(artifact, model))
    page = Page(text)
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "data", "action", "background"}
    assert not re.search(r"https?:|url\(|@import|//[a-z]", text)
    for name in ("0.weight", "3.weight"):
        assert f"<b>{name}</b>" in text
    assert page.tags.count("svg") >= 6
    assert len(text) < 60_000


def test_what_strangers_wrote_stays_text():
    text = render(Report(evil_artifact()))
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert "i" not in page.tags or "<i>evil" not in text
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "\x1b" not in text
    assert "&lt;i&gt;evil&lt;/i&gt;.weight" in text


def test_the_policy_lets_only_the_own_script_run():
    page = Page(render(Report(evil_artifact())))
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_picture_has_a_title():
    page = Page(render(Report(evil_artifact())))
    pictures = [value for name, value in page.attributes if name == "aria-label"]
    assert len(pictures) == page.tags.count("svg")
    assert all(pictures)


def test_stages_and_metric_are_told_when_known_and_left_out_when_not():
    told = render(Report(evil_artifact()))
    assert "Stage by stage" in told
    assert "0.5000" in told
    assert "-0.1000" in told
    plain = render(Report(Artifact({"w": torch.ones(2, 2)})))
    assert "Stage by stage" not in plain
    assert "metric" not in plain.split("<main>")[1].split("<section>")[0]


def test_an_empty_network_has_a_page():
    Page(render(Report(Artifact({}))))


def test_more_methods_than_colours_share_the_last():
    def layer(number):
        return Layer(
            f"l{number}",
            "linear",
            (1,),
            "F32",
            1,
            0.1,
            100 - number,
            0.1,
            8.0,
            f"m{number}",
            "",
            {},
            "",
            None,
            False,
            "",
            None,
            None,
        )

    tones = tones_of([layer(number) for number in range(12)])
    assert [tones[f"m{number}"] for number in range(5)] == [0, 1, 2, 3, 4]
    assert max(tones.values()) == TONES - 1
    assert tones["kept"] not in {tones[f"m{number}"] for number in range(12)}


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (999.6, "1.00 kB"), (1000, "1.00 kB"), (12_345_678, "12.3 MB")]
)
def test_sizes_in_words(count, words):
    assert size_text(count) == words


def test_numbers_in_words():
    assert [digits(v) for v in (0, 9.999, 12.34, 0.012345, float("nan"), 1e-9)] == [
        "0", "10.0", "12.3", "0.0123", "–", "1.00e-09",
    ]  # fmt: skip
    assert percent(1) == "100.0 %"
    assert sparkline([0] * 32) == " " * 16
    assert set(sparkline(range(32))) <= set(BARS)
    assert printable("a\x1b[2Jb\n") == "a�[2Jb�"


def test_each_layers_share_histogram_and_kurtosis_with_the_original_and_without(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)).eval()
    path = tmp_path / "net.safetensors"
    compress(model, Recipe.preset("int8"), example=torch.rand(1, 1, 8, 8)).save(path)
    both, alone = Report(read(path), model, path), Report(read(path), path=path)
    for report in (both, alone):
        rows = re.findall(r"<tr class=.*?</tr>", render(report), re.DOTALL)
        layers = [layer for layer in report.layers if f"<b>{layer.name}</b>" in "".join(rows)]
        assert {layer.name for layer in layers} >= {"0.weight", "3.weight"}
        for layer, row in zip(layers, rows, strict=True):
            assert f"<small>{percent(layer.parameter_share)}</small>" in row
            kurtosis = f"{digits(layer.before.kurtosis)}<br>→ " if layer.before else ""
            assert f">{kurtosis}{digits(layer.after.kurtosis)}</td>" in row
            assert row.count('class="present"') == 1
            assert row.count('class="past"') == (report is both)
    assert all(layer.before for layer in both.layers if layer.after)
    assert "give the report the original model" in render(alone)
    assert "give the report the original model" not in render(both)
