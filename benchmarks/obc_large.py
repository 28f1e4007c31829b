"""Optimal brain compression of AlexNet's largest layer: 4096 x 9216, 37.7 M weights: time, and memory at its peak.

    python benchmarks/obc_large.py                      # 15 minutes on one thread; goes on where it stopped
    python benchmarks/obc_large.py --long               # also the default, 32 steps of the fit: half an hour
    python benchmarks/obc_large.py --size 512x1152      # another size; writes nothing

The layer is `nn.Linear(9216, 4096)` with random weights. Its inputs lie near 512 of 9216 directions, with noise, so
that they correlate as those of a trained network do. Memory is what the operating system counts as resident at the
peak, less what it counted before the layer existed: with the layer itself, its Gram matrix, and all that the libraries
want. Collecting the Gram matrix and packing are counted apart; the limit, for either, is the layer and three Gram
matrices. The error is |(W - W') X|^2 on inputs that weren't seen, as a part of |W X|^2. Each row has its own process.
"""

import argparse
import itertools
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lilliput
from lilliput.observe.collect import collect
from lilliput.prune.obc import OBC
from real_data import cache_directory

RESULT = Path(__file__).parent / "results" / "obc_large.json"
BATCHES, BATCH = 8, 512
FACTORS = 512
SIZE = "4096x9216"


def resident(peak: bool) -> int:
    """Returns bytes of memory in use, now or at the peak since `forget_peak`."""
    name = "VmHWM" if peak else "VmRSS"
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def forget_peak() -> None:
    """Sets the peak to what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")


def inputs(columns: int, seed: int, count: int) -> Iterator[Tensor]:
    """Yields batches of correlated inputs; the directions are the same for all seeds."""
    generator = torch.Generator().manual_seed(0)
    strengths = torch.linspace(1, 0.05, FACTORS)[:, None]
    mixing = torch.randn(FACTORS, columns, generator=generator) * strengths / FACTORS**0.5
    generator.manual_seed(seed)
    for _ in range(count):
        rows = torch.randn(BATCH, FACTORS, generator=generator) @ mixing
        yield torch.relu_(rows.add_(torch.randn(rows.shape, generator=generator), alpha=0.2))


def measure(pattern: str, steps: int, outputs: int, columns: int) -> dict[str, Any]:
    """Collects and packs in this process; returns a row of the table."""
    torch.manual_seed(0)
    needs = {"weight": OBC.needs}
    method = OBC(sparsity=0.5, pattern=pattern, refit=steps)
    small = nn.Linear(64, 64, bias=False)
    stats = collect(small, needs, [torch.randn(128, 64)])["weight"]
    method.pack(small.weight.detach(), stats)  # what is made once by libraries
    before = resident(peak=False)
    layer = nn.Linear(columns, outputs, bias=False)
    weight = layer.weight.detach()
    forget_peak()
    start = time.perf_counter()
    stats = collect(layer, needs, inputs(columns, 1, BATCHES))["weight"]
    row = {"pattern": pattern, "refit": steps, "rows": outputs, "columns": columns}
    row |= {"collect_seconds": round(time.perf_counter() - start, 1), "collect_bytes": resident(peak=True) - before}
    forget_peak()
    start, used = time.perf_counter(), time.process_time()
    packed = method.pack(weight, stats)
    row |= {"pack_seconds": round(time.perf_counter() - start, 1)}
    row |= {"pack_cpu_seconds": round(time.process_time() - used, 1), "pack_bytes": resident(peak=True) - before}
    row["limit_bytes"] = 4 * (outputs * columns + 3 * columns * columns)
    made = lilliput.unpack(packed)
    row["sparsity"] = 1 - int(torch.count_nonzero(made)) / made.numel()
    seen = next(inputs(columns, 2, 1))
    wanted = seen @ weight.T
    row["error"] = float((seen @ made.T - wanted).square().sum() / wanted.square().sum())
    return row


def known(pattern: str, steps: int, size: str) -> dict[str, Any]:
    """Returns what `measure` gives, from the cache if it is there, else from a new process."""
    path = cache_directory() / "obc_large" / f"{size}-{pattern.replace(':', '-')}-{steps}-{BATCHES}.json"
    if not path.is_file():
        command = [sys.executable, __file__, "--one", pattern, str(steps), *size.split("x")]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(output)
    return dict(json.loads(path.read_text()))


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as Markdown."""
    lines = ["| pattern | `refit` | collect | pack | peak, collect | peak, pack | limit | error |", "| --- " * 8 + "|"]
    for row in rows:
        sizes = " | ".join(f"{row[key] / 1e6:,.0f} MB" for key in ("collect_bytes", "pack_bytes", "limit_bytes"))
        seconds = f"{row['collect_seconds']:.0f} s | {row['pack_seconds']:.0f} s (CPU {row['pack_cpu_seconds']:.0f} s)"
        lines.append(f"| {row['pattern']} | {row['refit']} | {seconds} | {sizes} | {row['error']:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Measures what isn't known yet, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default=SIZE, help="rows x columns; writes nothing")
    parser.add_argument("--long", action="store_true", help="the default number of steps too")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(measure(options.one[0], *map(int, options.one[1:]))))
        return
    rows = []
    for steps, pattern in itertools.product([0, 4, 32] if options.long else [0, 4], ["unstructured", "2:4"]):
        rows.append(known(pattern, steps, options.size))
        print(json.dumps(rows[-1]), flush=True)
        machine = {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
        result = {"machine": machine, "inputs": BATCHES * BATCH, "factors": FACTORS, "rows": rows}
        if options.size == SIZE:
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
