"""Every flipped byte, every prefix and anything added is refused, and behind the digest too nothing worse happens."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import FileError
from lilliput.file import read
from lilliput.testing import mutate, small_files

NAMES = (*small_files.RECIPES, "odd")


def read_or_refused(data):
    """Reads and unpacks; True if it went well, and nothing but FileError may come of it if not."""
    try:
        read.loads(data, max_bytes=2**26).state_dict()
    except FileError as error:
        line = str(error)
    else:
        return True
    assert "\n" not in line
    return False


@pytest.mark.parametrize("form", ["named", "solid"])
def test_every_flipped_byte(small, refused, form):
    data = small("shared", form)
    for at in range(len(data)):
        refused(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])


@pytest.mark.parametrize("form", ["named", "solid"])
def test_every_byte_of_the_data_flipped_and_sealed(small, form):
    """What the digest can't catch any more is caught behind it, or gives other values, but never a crash."""
    data = small("shared", form)
    for at in range(len(data)):
        read_or_refused(mutate.reseal(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]))


@pytest.mark.parametrize("seal", [False, True])
def test_every_prefix(small, refused, seal):
    data = small("uniform", "named")
    for length in range(len(data)):
        refused(mutate.reseal(data[:length]) if seal else data[:length])


@pytest.mark.parametrize("extra", [b"\0", b" ", b"{}", b"x" * 1000])
@pytest.mark.parametrize("seal", [False, True])
def test_trailing_bytes(small, refused, extra, seal):
    data = small("uniform", "solid") + extra
    assert "cut short or added to" in refused(mutate.reseal(data) if seal else data)


def test_a_digest_of_another_file(small, refused):
    data = bytearray(small("uniform", "solid"))
    data[-1] ^= 1
    assert "damaged" in refused(bytes(data))


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff" * 8, b"PK\x03\x04" + b"\0" * 60, b"\x02" + b"\0" * 7 + b"{}"])
def test_other_files(refused, data):
    refused(data)


def test_a_plain_safetensors_file(refused, tmp_path):
    import safetensors.torch
    import torch

    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "a")
    assert "no Lilliput file" in refused((tmp_path / "a").read_bytes())


@pytest.mark.parametrize("version", [b"2", b"17", b"999999999"])
def test_a_newer_version(small, refused, version):
    data = small("uniform", "solid")
    newer = data.replace(b'"version":"1"', b'"version":"' + version + b'"', 1)
    length = int.from_bytes(data[:8], "little") + len(version) - 1
    assert "upgrade" in refused(length.to_bytes(8, "little") + newer[8:])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(["named", "solid"]), st.integers(0, 2**64))
def test_mutations(small, name, form, seed):
    read_or_refused(mutate.mutate(small(name, form), random.Random(seed)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(data):
    assert not read_or_refused(data)
    assert not read_or_refused(mutate.sealed(b"{" + data, data))
