"""The benchmark of criteria: what it tries, its networks' sizes, and its table."""

import json

import torch

import criteria
import lilliput


def test_every_criterion_is_tried_on_the_cnn_and_five_on_the_resnet():
    found = {net: list(criteria.cases(criteria.FULL, net)) for net in ("cnn", "resnet20")}
    for net, cases in found.items():
        assert len(cases) == len(set(cases))
        assert {case.net for case in cases} == {net}
        assert {case.seed for case in cases} == {0, 1, 2}
    for pattern, names in criteria.ORDER.items():
        own = {c.criterion for c in found["cnn"] if c.pattern == pattern}
        assert own == {*names, *(("scratch",) if pattern == "filter" else ())}
        assert len({c.criterion for c in found["resnet20"] if c.pattern == pattern} - {"scratch"}) in (0, 5)


def test_every_criterion_that_prunes_by_itself_is_among_them():
    tried = {criteria.VARIANTS.get(name, (name,))[0] for names in criteria.ORDER.values() for name in names}
    criteria_there_are = {listing.path.split("/")[1] for listing in lilliput.methods() if listing.kind == "criterion"}
    # Energy-aware pruning has a benchmark of its own; `sparse` keeps what is zero already.
    assert criteria_there_are - tried == {"sparse", "energy_aware"}


def test_the_networks():
    net = criteria.resnet20().eval()
    assert sum(p.numel() for p in net.parameters()) == 269_434
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert criteria.resnet20(0.5)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    half = criteria.smaller_cnn(0.5)
    assert half(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert half.conv2.weight.shape == (16, 8, 3, 3)


def test_the_table_and_who_beats_random_masks():
    rows = [
        {
            "net": "cnn",
            "criterion": name,
            "pattern": "filter",
            "sparsity": 0.5,
            "seed": seed,
            "before": before + seed / 50,
        }
        for name, before in (("random", 0.3), ("apoz", 0.4))
        for seed in (0, 1)
    ]
    rows.append({"net": "cnn", "criterion": "obd", "pattern": "filter", "sparsity": 0.5, "seed": 0, "refused": "no"})
    text = criteria.table(rows, "before")
    assert "| random | 31.0 (1.0) |" in text
    assert "| apoz | 41.0 (1.0) |" in text
    assert "| obd | – |" in text
    better, worse = criteria.beaten(rows, "before")
    assert [(row["criterion"], row["gain"]) for row in better] == [("apoz", 10.0)]
    assert worse == []


def test_the_page_holds_the_tables():
    """What the page says of the cases that are in the JSON is what the script would write there."""
    rows = json.loads(criteria.RESULT.read_text())["cases"]
    text = criteria.PAGE.read_text()
    assert criteria.page(text, rows) == text
    other = [{**row, "after": 0.123} if row["criterion"] == "obc" and "after" in row else row for row in rows]
    assert "| obc | 12.3 (0.0) | 12.3 (0.0) |" in criteria.page(text, other)
