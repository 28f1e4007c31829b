"""Mutates small files many times and loads each: it is refused with one line, or read; nothing else may happen.

    python tests/fuzz/mutate_many.py 1000000

Prints how many were refused and read, the longest load, and how much memory grew; a file that makes the loader do
anything else is kept in the folder for temporary files and ends the run with status 1.
"""

import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from lilliput.core.errors import FileError
from lilliput.file import read, write
from lilliput.testing import mutate, small_files

MAX_BYTES = 2**26


def corpus():
    """The bytes of every small file in both forms."""
    return [write.dumps(artifact, form) for _, artifact in small_files.artifacts() for form in ("named", "solid")]


def peak():
    """Most memory that this process had so far, in MiB."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def outcome(data):
    """What became of a file: `refused` or `read`; any other exception goes through."""
    try:
        read.loads(data, max_bytes=MAX_BYTES).state_dict()
    except FileError as error:
        if not str(error).isprintable() or len(str(error)) > 1000:
            raise AssertionError(f"not one clear line: {str(error)[:2000]!r}") from error
        return "refused"
    return "read"


def main(count, seed=0):
    """Loads `count` mutated files; returns the exit status."""
    torch.set_num_threads(1)
    files, chance, counts, slowest = corpus(), random.Random(seed), Counter(), 0.0
    for data in files:
        assert outcome(data) == "read"
    start, clock = peak(), time.time()
    for number in range(count):
        data = mutate.mutate(files[number % len(files)], chance)
        begin = time.process_time()
        try:
            counts[outcome(data)] += 1
        except BaseException as error:
            kept = Path(tempfile.gettempdir()) / f"lilliput-crash-{seed}-{number}"
            kept.write_bytes(data)
            print(f"{kept}: {type(error).__name__}: {error}")
            return 1
        slowest = max(slowest, time.process_time() - begin)
    print(
        f"{count} mutated files: {counts['refused']} refused, {counts['read']} read, nothing else; slowest "
        f"{slowest:.2f} s, memory grew by {peak() - start:.0f} MiB, {time.time() - clock:.0f} s in all (seed {seed})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])))
