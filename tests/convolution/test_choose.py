"""Choices: within the limit, remembered, and measured anew where what is remembered is no use."""

import json

import msgspec
import pytest
import torch

from lilliput.convolution import choose
from lilliput.convolution.contract import layer_of
from lilliput.convolution.mec import Mec
from lilliput.convolution.winograd import Winograd
from lilliput.core.errors import LilliputWarning, MethodError
from lilliput.hardware.layer import Layer

LAYER = Layer(4, 6, size=(10, 10), kernel=(3, 3), padding=(1, 1))


@pytest.fixture
def measured(monkeypatch):
    """Counts measurements, and makes Winograd win them."""
    seen = []

    def measure(layer, limit=None):
        seen.append((layer, limit))
        return choose.Choice("convolution/winograd", {"output": 4}, 1e-3, 2e-3, 100)

    monkeypatch.setattr(choose, "measure", measure)
    return seen


def test_a_choice_is_measured_once(tmp_path, measured):
    file = tmp_path / "deep" / "choices.json"
    first = choose.choose(LAYER, path=file)
    assert choose.choose(LAYER, path=file) == first
    assert first.algorithm() == Winograd(4)
    assert len(measured) == 1
    choose.choose(LAYER, 5000, file)
    choose.choose(Layer(4, 6, size=(10, 11), kernel=(3, 3), padding=(1, 1)), path=file)
    assert len(measured) == 3, "another limit, another layer"
    assert len(json.loads(file.read_text())) == 3


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"a": 1}', '{"a": {"name": "convolution/winograd"}}', "\x00\xff", "[" * 5000]
)
def test_what_can_t_be_read_is_measured_anew(tmp_path, measured, text):
    file = tmp_path / "choices.json"
    file.write_text(text)
    assert choose.choose(LAYER, path=file).name == "convolution/winograd"
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [("convolution/gone", {}), ("convolution/winograd", {"output": 99}), ("convolution/winograd", {"output": "x"}),
     ("share/kmeans", {"output": 4}), ("os", {})],
)  # fmt: skip
def test_a_remembered_method_that_can_t_be_is_measured_anew(tmp_path, measured, name, settings):
    file = tmp_path / "choices.json"
    choose.choose(LAYER, path=file)
    held = json.loads(file.read_text())
    for entry in held.values():
        entry |= {"name": name, "settings": settings}
    file.write_text(json.dumps(held))
    assert choose.choose(LAYER, path=file).algorithm() == Winograd(4)
    assert len(measured) == 2


def test_a_folder_that_can_t_be_written_is_only_a_warning(tmp_path, measured):
    (tmp_path / "file").write_text("")
    with pytest.warns(LilliputWarning, match="remembered"):
        assert choose.choose(LAYER, path=tmp_path / "file" / "choices.json").seconds == 1e-3


def test_candidates_keep_to_the_limit():
    none = choose.candidates(LAYER, 0)
    assert all(algorithm.cost(LAYER).workspace == 0 for algorithm in none)
    some = choose.candidates(LAYER, Mec("B").cost(LAYER).workspace)
    assert Mec("B") in some
    assert len(none) < len(some) < len(choose.candidates(LAYER))
    with pytest.raises(MethodError, match="limit"):
        choose.choose(LAYER, -1)


def test_the_measurement_itself():
    """Torch's own is always among them, and what wins computes the layer."""
    found = choose.measure(LAYER, 1 << 20)
    assert 0 < found.seconds <= found.beside
    assert msgspec.json.decode(msgspec.json.encode(found), type=choose.Choice) == found
    algorithm = found.algorithm()
    x, weight = torch.randn(1, 4, 10, 10), torch.randn(6, 4, 3, 3)
    if algorithm is not None:
        y = algorithm.run(x, algorithm.prepare(weight, LAYER), layer_of(x, weight, 1, 1))
        assert torch.allclose(y, torch.nn.functional.conv2d(x, weight, padding=1), atol=1e-4)


def test_what_can_t_win_isnt_tried(monkeypatch):
    """Bounds are kept to: of algorithms that would take an hour none is even prepared."""
    monkeypatch.setattr(choose, "at_best", lambda algorithm, layer: 0.0 if isinstance(algorithm, Mec) else 3600.0)
    tried, real = [], choose._prepared
    monkeypatch.setattr(choose, "_prepared", lambda algorithm, *rest: tried.append(algorithm) or real(algorithm, *rest))
    choose.measure(LAYER)
    assert tried == [Mec("A"), Mec("B")]


def test_bounds_are_below_what_is_measured():
    layer = Layer(32, 32, size=(28, 28), kernel=(3, 3), padding=(1, 1))
    found = choose.measure(layer)
    algorithm = found.algorithm()
    if algorithm is not None:
        assert choose.at_best(algorithm, layer) < 2 * found.seconds
