"""The MiniLM benchmark's own arithmetic: signed steps, sums and worst weights, the file it writes."""

import json

import torch

import minilm
from lilliput.core.packed import pack_steps
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans

WEIGHT = torch.tensor([[0.0, 2.0, -3.0, 0.0], [-1.0, 0.1, 2.0, 5.0]])


def test_steps_are_counted_from_zero_in_the_order_of_the_values() -> None:
    weights = {"fc.weight": WEIGHT}
    pruned = minilm.compressed(weights, (Magnitude(sparsity=0.375), KMeans(bits=3)))[0]
    assert pruned.levels.tolist() == [[0, 1, -2, 0], [-1, 0, 1, 2]]
    uniform = minilm.compressed(weights, (Uniform(bits=4, per="tensor"),))[0]
    assert uniform.levels.tolist() == uniform.codes.tolist() == [[0, 3, -4, 0], [-1, 0, 3, 7]]


def test_dense_values_count_from_the_one_closest_to_zero() -> None:
    packed = pack_steps(torch.tensor([[-2.0, 0.25, 1.0]]), (KMeans(bits=2),))
    codes = packed.parts["codes"].numpy()
    assert minilm.signed(packed, codes).tolist() == [[-1, 0, 1]]


def row(name: str, count: int, ours: int, entropy: float) -> dict:
    sizes = {"ours": ours, "entropy": entropy, "nncodec": 100, "zstd": 200}
    return {"weight": name, "shape": [count, 1], "coding": "rans", **sizes}


def test_entropy_is_judged_where_weights_are_many() -> None:
    rows = [row("small", 10, 110, 50.0), row("large", minilm.LARGE, 90, 100.0)]
    found = minilm.summary(rows)
    assert found["ours"] == 200
    assert found["over nncodec %"] == 0
    assert (found["worst over nncodec"], found["worst over nncodec %"]) == ("small", 10)
    assert (found["worst over entropy"], found["worst over entropy %"]) == ("large", -10)
    assert (found["weights above nncodec"], found["large weights below entropy"]) == (1, 1)


def test_a_weight_takes_a_line() -> None:
    rows = [row(f"w{number}", 4, 1, 1.0) for number in range(12)]
    text = minilm.text_of({"settings": {"k": {"summary": {}, "weights": rows}}})
    assert json.loads(text)["settings"]["k"]["weights"][11] == ["w11", [4, 1], "rans", 1, 1.0, 100, 200]
    assert sum("rans" in line for line in text.splitlines()) == 12
