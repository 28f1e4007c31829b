"""Entries of quantizers that no writer wrote: each is refused by one line."""

import pytest
import torch

from lilliput.core.activations import Quantized
from lilliput.core.errors import FileError
from lilliput.file import manifest
from lilliput.file.artifact import Artifact
from lilliput.file.read import loads
from lilliput.file.write import dumps
from lilliput.quantize.activations.uniform import Uniform

METHOD = {"method": "quantize/activations/uniform"}
NUMBERS = {"scale": 0.5, "zero": 3}


def written(monkeypatch, entry):
    """A file whose manifest holds this under `q`."""
    real = manifest.strict_json.dump

    def dump(data, what):
        return real(data | {"q": entry} if what == "manifest" else data, what)

    monkeypatch.setattr(manifest.strict_json, "dump", dump)
    return dumps(Artifact({"fc.weight": torch.zeros(2, 2)}))


def test_what_is_written_is_read(monkeypatch):
    assert loads(written(monkeypatch, {"fc": [METHOD, NUMBERS]})).quantizers == {"fc": Quantized(Uniform(), NUMBERS)}


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {"fc": []},
        {"fc": [METHOD]},
        {"fc": [METHOD, NUMBERS, 1]},
        {"fc": ["quantize/uniform", NUMBERS]},
        {"fc": [{"method": "quantize/uniform"}, NUMBERS]},
        {"fc": [{"method": "../../x"}, NUMBERS]},
        {"fc": [{"method": "os/system"}, NUMBERS]},
        {"fc": [METHOD | {"bits": 99}, NUMBERS]},
        {"fc": [METHOD | {"__class__": 1}, NUMBERS]},
        {"fc": [METHOD, {}]},
        {"fc": [METHOD, {"scale": 0.5}]},
        {"fc": [METHOD, {"scale": "0.5", "zero": 0}]},
        {"fc": [METHOD, {"scale": True, "zero": 0}]},
        {"fc": [METHOD, {"scale": 2**70, "zero": 0}]},
        {"fc": [METHOD, NUMBERS | {"../x": 1}]},
        {"fc": [METHOD, {f"n{i}": 1 for i in range(65)}]},
        {"../fc": [METHOD, NUMBERS]},
        {"fc..x": [METHOD, NUMBERS]},
    ],
)
def test_nonsense_is_refused(monkeypatch, entry):
    with pytest.raises(FileError) as caught:
        loads(written(monkeypatch, entry))
    assert "\n" not in str(caught.value)


def test_numbers_that_no_file_may_hold_aren_t_written():
    for numbers in ({"scale": float("nan")}, {"scale": float("inf")}, {"a b": 1.0}):
        with pytest.raises(FileError, match="the quantizer of 'fc'"):
            dumps(Artifact({"w": torch.zeros(1)}, quantizers={"fc": Quantized(Uniform(), numbers)}))
