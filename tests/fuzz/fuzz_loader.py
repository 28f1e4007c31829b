"""Coverage-guided fuzzing of the loader with atheris: `make fuzz SECONDS=60`.

Half of the inputs are a file as it is, its digest sealed again; the other half seed the structured mutations of
`lilliput.testing.mutate`, so that manifest and streams behind the digest are reached too.
"""

import os
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lilliput.file", "lilliput.coding", "lilliput.graph"]):
    from lilliput.core.errors import FileError
    from lilliput.file import read, write
    from lilliput.testing import mutate, small_files

FILES = [write.dumps(artifact, form) for _, artifact in small_files.artifacts() for form in ("named", "solid")]


def one(data):
    """Loads one input; anything but FileError is a finding."""
    if data[:1] == b"m":
        chance = random.Random(data[1:])
        tried = mutate.mutate(chance.choice(FILES), chance)
    else:
        tried = mutate.reseal(data)
    try:
        read.loads(tried, max_bytes=2**26).state_dict()
    except FileError as error:
        line = str(error)
    else:
        return
    assert "\n" not in line


def main():
    """Fuzzes from a corpus of the small files, for as long as the arguments say (see libFuzzer)."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(FILES):
            (Path(folder) / f"file-{number}").write_bytes(data)
            (Path(folder) / f"seed-{number}").write_bytes(b"m" + os.urandom(8))
        atheris.Setup([*sys.argv, "-timeout=20", "-rss_limit_mb=4096", "-max_len=8192", folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
