"""The benchmarks of distillation and of compact networks: every method and network they name can be run."""

import pytest
import torch

import distill
import nets
import resumed
from lilliput.graph.count import counts_of
from lilliput.train.lesson import Lesson


@pytest.mark.parametrize("name", distill.STUDENTS)
def test_every_method_teaches_every_student(name):
    torch.manual_seed(0)
    teacher, student = distill.TEACHER.build(), distill.student(name, 0)
    x, y = torch.randn(4, 1, 28, 28), torch.arange(4)
    for method in (method for method in distill.METHODS if not method.startswith("plain")):
        losses = distill.losses(method, distill.STUDENTS[name][1], distill.QUICK)
        loss = Lesson(student, teacher, losses, example=x)(x, y)
        loss.backward()
        assert torch.isfinite(loss)


def test_students_are_smaller():
    teacher = counts_of(distill.TEACHER)
    assert all(counts_of(net).macs < teacher.macs / 5 for net, _ in distill.STUDENTS.values())


def test_tables():
    rows = [
        {"student": "a", "method": m, "seed": s, "accuracy": value + 0.01 * s}
        for m, value in (("plain", 0.5), ("logits", 0.6))
        for s in range(3)
    ]
    assert distill.gain(rows, "a", "logits") == "+10.00 (+12.2 errors)"
    missing = [
        {"seed": 0, "as trained": {"all": 0.5, "missing class": 0.1}, "with bias": {"all": 1, "missing class": 1}}
    ]
    text = distill.table({"teacher": 0.9, "students": rows, "missing": missing})
    assert "| logits | 61.00 % (0.58) | +10.00 (+12.2 errors) |" in text
    assert "| as trained | 50.00 % (0.00) | 10.00 % (0.00) |" in text
    row = {"net": "n", "parameters": 1234, "macs": 5, "accuracy": 0.9, "milliseconds": 1.0}
    row["4 bits"] = {"bytes": 700, "accuracy": 0.85}
    assert "| n | 1,234 | 5 | 1.00 | 90.00 % | 700 | 5.00 |" in nets.table([row])


def test_networks_take_the_pictures():
    for name, net in nets.NETS.items():
        assert nets.built(name).eval()(torch.zeros(1, 1, 28, 28)).shape == (1, 10), name
        assert counts_of(net).macs < 40_000_000, name


def test_results_and_networks_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = resumed.place("x", distill.FULL)
    assert folder != resumed.place("x", distill.QUICK)
    asked = []
    for _ in range(2):
        assert resumed.result(folder / "a.json", lambda: asked.append(1) or {"b": 1}) == {"b": 1}
    assert asked == [1]
    layer = torch.nn.Linear(2, 2)
    resumed.network(folder / "n.safetensors", layer, lambda model, checkpoint: model.bias.data.fill_(7.0))
    again = resumed.network(folder / "n.safetensors", torch.nn.Linear(2, 2), None)
    assert torch.equal(again.weight, layer.weight)
    assert again.bias.tolist() == [7.0, 7.0]
