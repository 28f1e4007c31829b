"""Runs the code blocks of the README and the docs, and the examples in docstrings, as tests."""

import os

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser


@pytest.fixture(scope="module")
def in_temporary_directory(tmp_path_factory):
    """Documents write files; they do it here."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("document"))
    yield
    os.chdir(before)


documents = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md", "docs/benchmarks/*.md"],
    fixtures=["in_temporary_directory"],
)
docstrings = Sybil(parsers=[DocTestParser()], patterns=["src/lilliput/**/*.py"])
pytest_collect_file = (documents + docstrings).pytest()
