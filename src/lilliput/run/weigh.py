"""What memory an engine takes for a file, found in a process of its own: python -m lilliput.run.weigh FILE ENGINE."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path


def resident() -> int | None:
    """Returns the bytes of memory that this process holds; None where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def weigh(path: Path, engine: str, threads: int) -> int | None:
    """Returns how many bytes more a process holds once an engine has loaded a file and run it.

    Args:
        path: of the file.
        engine: its name.
        threads: of torch.

    Returns:
        Bytes; None where that can't be found out.
    """
    words = [sys.executable, "-m", "lilliput.run.weigh", str(path), engine]
    ran = subprocess.run(
        words, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(ran.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return found if isinstance(found, int) else None


def main(path: str, engine: str) -> None:
    """Loads, runs, and prints the growth in bytes."""
    import torch

    from lilliput.core.data import call
    from lilliput.core.method import find
    from lilliput.core.recipe import Recipe
    from lilliput.file.read import read
    from lilliput.run.examples import example_inputs
    from lilliput.run.measure import arguments
    from lilliput.train.compress import compress

    made = find("run", engine)()
    # What the engine itself takes is no part of the network.
    made.load(compress(torch.nn.Linear(2, 2), Recipe(), example=torch.rand(1, 2)))(torch.rand(1, 2))
    graph = read(path).graph
    assert graph is not None
    given = arguments(graph, example_inputs(graph))
    gc.collect()
    before = resident()
    net = made.load(read(path))
    with torch.no_grad():
        call(net, given)
    gc.collect()
    after = resident()
    print(json.dumps(None if before is None or after is None else max(after - before, 0)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
