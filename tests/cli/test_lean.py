"""What must not be imported for help: a subprocess looks."""

import subprocess
import sys

from lilliput.cli.app import VERBS

SCRIPT = """
import sys, lilliput
assert "torch" not in sys.modules and "numpy" not in sys.modules, "import lilliput"
from lilliput.cli import main
for words in [["--help"], ["--version"], [], *([verb, "--help"] for verb in {verbs!r})]:
    assert main(words) == 0, words
    for heavy in ("torch", "numpy", "jinja2", "safetensors"):
        assert heavy not in sys.modules, (words, heavy)
assert main(["compress", "--nonsense"]) == 2
assert "torch" not in sys.modules
"""


def test_help_and_import_are_lean():
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(verbs=VERBS)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    for verb in VERBS:
        # Each verb's help teaches by an example.
        assert f"lilliput {verb} " in ran.stdout


def test_runs_as_a_module():
    helped = subprocess.run([sys.executable, "-m", "lilliput", "--help"], capture_output=True, text=True, check=False)
    assert helped.returncode == 0
    assert helped.stdout.startswith("Usage: lilliput ")
    refused = subprocess.run([sys.executable, "-m", "lilliput", "compress", "--x"], capture_output=True, check=False)
    assert refused.returncode == 2
