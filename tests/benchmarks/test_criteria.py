"""The benchmark of criteria: what it tries, its networks' sizes, and its table."""

import torch

import criteria


def test_every_criterion_is_tried_on_the_cnn_and_five_on_the_resnet():
    names = criteria.criteria()
    assert {"magnitude", "random", "filter_norm", "movement"} <= set(names)
    found = list(criteria.cases(criteria.FULL, names))
    assert {c.criterion for c in found if c.net == "cnn"} == {*names, "scratch"}
    assert len({c.criterion for c in found if c.net == "resnet20"}) == 6
    assert len(found) == len(set(found))
    assert {c.seed for c in found} == {0, 1, 2}


def test_the_networks():
    net = criteria.resnet20().eval()
    assert sum(p.numel() for p in net.parameters()) == 269_434
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert criteria.resnet20(0.5)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    half = criteria.smaller_cnn(0.5)
    assert half(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert half.conv2.weight.shape == (16, 8, 3, 3)


def test_the_table():
    rows = [
        {"net": "cnn", "criterion": name, "pattern": "filter", "sparsity": s, "before": before, "after": 0.9}
        for name, before in (("random", 0.1), ("scratch", None))
        for s in (0.3, 0.5)
    ]
    rows[0] = rows[0] | {"refused": "no"}
    text = criteria.table(rows)
    assert "| random | – | 10.0 → 90.0 |" in text
    assert "| scratch | 90.0 | 90.0 |" in text
