"""The document names every verb, option and key that there is, and none that there isn't."""

import re
from pathlib import Path

import pytest

from lilliput.cli.app import VERBS

TEXT = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text("utf-8")


@pytest.fixture
def options(call):
    """The options of a verb, as its help tells them; a positional argument may also be given by its name."""
    return lambda verb: set(re.findall(r"--[a-z][a-z-]*", call(verb, "--help").out))


def test_every_verb_has_a_section_whose_options_exist(options):
    for verb in VERBS:
        section = re.search(rf"^### {verb}\n(.*?)(?=^###? |\Z)", TEXT, re.M | re.S)[1]
        examples = re.findall(rf"^lilliput {verb}\b.*", section, re.M)
        assert examples, verb
        for line in examples:
            assert set(re.findall(r"(?<= )--[a-z-]+", line)) <= options(verb), line


def test_every_option_is_told_of(options):
    told = set(re.findall(r"--[a-z][a-z-]*", TEXT))
    every = set().union(*(options(verb) for verb in VERBS))
    assert every - {"--target", "--file", "--family"} <= told
    assert told - {"--help"} <= every


def test_every_key_of_the_report_is_told_of(compressed, call):
    data = call("inspect", compressed, "--json").json
    keys = {*data, *data["summary"], *data["layers"][0], *data["layers"][0]["after"]}
    assert not [key for key in keys if f"`{key}`" not in TEXT]
