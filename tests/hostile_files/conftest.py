"""Fixtures of the hostile files: small valid files to start from, and how a refusal must look."""

import functools

import pytest

from lilliput.core.errors import FileError
from lilliput.file import read, write
from lilliput.testing import mutate, small_files


@functools.cache
def written(name, form):
    """Bytes of a small file."""
    artifact = small_files.odd() if name == "odd" else small_files.artifact(name)
    return write.dumps(artifact, form)


@pytest.fixture(scope="session")
def small():
    """A function (name, form) -> bytes of a valid file."""
    return written


@pytest.fixture(scope="session")
def pieces():
    """A function (name) -> the pieces of a valid file."""
    return lambda name="uniform": mutate.take_apart(written(name, "named"))


def refusal(data):
    """The one line with which a file is refused."""
    with pytest.raises(FileError) as caught:
        read.loads(data, max_bytes=2**28).state_dict()
    line = str(caught.value)
    assert line
    assert "\n" not in line
    assert len(line) < 700
    assert line.isprintable()
    return line


@pytest.fixture(scope="session")
def refused():
    """A function (bytes) -> the line with which the file is refused; fails if it isn't."""
    return refusal
