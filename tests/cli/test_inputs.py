"""Inputs from words and from files."""

import numpy
import pytest
import torch
from safetensors.torch import save_file

from lilliput.cli.inputs import inputs_of
from lilliput.cli.terminal import UsageError
from lilliput.core.errors import DataError


def test_one_shape_is_one_tensor_always_the_same():
    one, two = inputs_of(["2x3"]), inputs_of(["2x3:float32"])
    assert torch.equal(one, two)
    assert one.dtype == torch.float32
    assert inputs_of([]) is None
    assert inputs_of(["5:int64"]).tolist() == [1] * 5


def test_several_shapes_are_a_tuple_or_a_dict():
    found = inputs_of(["2x3 4:float16"])
    assert [tuple(t.shape) for t in found] == [(2, 3), (4,)]
    assert found[1].dtype == torch.float16
    named = inputs_of(["ids=2x16:int64", "mask=2x16:bool"])
    assert {name: t.dtype for name, t in named.items()} == {"ids": torch.int64, "mask": torch.bool}


@pytest.mark.parametrize(
    "word", ["", "x", "1x", "1xax3", "1x3:float", "a=1 2", "a=1 a=2", "-1x3", "99999x99999x99999", "1x3.0"]
)
def test_what_cannot_be_read_is_wrong_usage(word):
    with pytest.raises(UsageError, match="--input"):
        inputs_of([word or " ="])


def test_arrays_come_from_files(tmp_path):
    array = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
    numpy.save(tmp_path / "a.npy", array)
    numpy.savez(tmp_path / "b.npz", array, array + 1)
    numpy.savez(tmp_path / "c.npz", x=array)
    save_file({"x": torch.from_numpy(array)}, tmp_path / "d.safetensors")
    assert inputs_of([str(tmp_path / "a.npy")]).tolist() == array.tolist()
    assert inputs_of([str(tmp_path / "b.npz")])[1].tolist() == (array + 1).tolist()
    assert inputs_of([str(tmp_path / "c.npz")])["x"].tolist() == array.tolist()
    assert inputs_of([str(tmp_path / "d.safetensors")])["x"].tolist() == array.tolist()


def test_files_that_are_none_are_refused_and_nothing_is_unpickled(tmp_path):
    numpy.save(tmp_path / "pickled.npy", numpy.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    for name in ("pickled.npy", "broken.npz", "broken.safetensors"):
        with pytest.raises(DataError, match="can't be read as arrays"):
            inputs_of([str(tmp_path / name)])
    with pytest.raises(DataError, match="no such file"):
        inputs_of([str(tmp_path / "missing.npy")])
