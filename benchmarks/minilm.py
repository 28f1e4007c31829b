"""all-MiniLM-L6-v2: bytes of its coded integers beside entropy, nncodec's DeepCABAC and zstd at the same integers.

    python benchmarks/minilm.py [--settings "k-means 16" "pruned, k-means 16"]      # writes results/minilm.json

Every weight of two dimensions or more is compressed as Lilliput does it, by k-means, uniformly, or pruned to a tenth
and then by k-means. Ours is the whole stream as the file holds it, with histograms and levels; nncodec's is its
payload alone, zstd's a frame of one byte a code at level 19. Codebooks and scales are the same for all and count for
none. nncodec needs another NumPy: it gets an environment of its own in the cache. What the others take is kept in
the cache by the digest of the integers, so a run that was broken off goes on where it was.
"""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from lilliput.coding.choose import entropy_bits
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, leaves, pack_steps
from lilliput.file.artifact import Artifact
from lilliput.file.write import plan
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans
from real_data import MissingError, cache_directory
from real_models import minilm

RESULTS = Path(__file__).parent / "results" / "minilm.json"
NNCODEC, ITS_NUMPY = "2.1.3", "1.26.4"
LARGE = 1 << 18
"""Weights from which a tensor must stay within 0.3 % of its entropy."""
SETTINGS: dict[str, tuple[WeightMethod, ...]] = {
    "k-means 16": (KMeans(bits=4),),
    "k-means 32": (KMeans(bits=5),),
    "uniform 4 bits": (Uniform(bits=4, per="tensor"),),
    "uniform 5 bits": (Uniform(bits=5, per="tensor"),),
    "pruned, k-means 16": (Magnitude(sparsity=0.9), KMeans(bits=4)),
    "pruned, k-means 32": (Magnitude(sparsity=0.9), KMeans(bits=5)),
}
COLUMNS = ("weight", "shape", "coding", "ours", "entropy", "nncodec", "zstd")


@dataclass(frozen=True)
class Coded:
    """The integers of one weight and what the file takes for them.

    Attributes:
        name: of the weight.
        codes: as they are coded.
        levels: the same as signed steps from zero through the sorted values, which is what nncodec is made for.
        coding: name of the coding that the file chose.
        size: bytes in the file.
    """

    name: str
    codes: np.ndarray
    levels: np.ndarray
    coding: str
    size: int


class Kept:
    """Sizes found before, in a file of the cache.

    Attributes:
        path: the file.
        known: bytes by peer, its version and the digest of the integers.
    """

    def __init__(self) -> None:
        self.path = cache_directory() / "minilm-sizes.json"
        self.known: dict[str, int] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def sizes(self, peer: str, arrays: list[np.ndarray], measure: Callable[[list[np.ndarray]], Iterator[int]]) -> list:
        """What `peer` takes for each array; those not known are measured, and kept one by one."""
        keys = [f"{peer} {hashlib.sha256(a.tobytes()).hexdigest()} {a.dtype} {a.shape}" for a in arrays]
        wanted = {key: array for key, array in zip(keys, arrays) if key not in self.known}
        found = measure(list(wanted.values())) if wanted else iter(())
        for key, size in zip(wanted, track(found, f"  {peer}", len(wanted), transient=True)):
            self.known[key] = size
            beside = self.path.with_suffix(".new")
            beside.write_text(json.dumps(self.known))
            beside.replace(self.path)
        return [self.known[key] for key in keys]


def environment() -> Path:
    """The Python that has nncodec; its coder needs NumPy below 2, and nothing else of what pip would bring along."""
    home = cache_directory() / "nncodec-venv"
    python, done = home / "bin" / "python", home / f"nncodec-{NNCODEC}"
    if not done.exists():
        print(f"making an environment for nncodec {NNCODEC} in {home}", file=sys.stderr)
        wanted = [f"nncodec=={NNCODEC}", f"numpy=={ITS_NUMPY}"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(home)],
            [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *wanted],
        ):
            ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if ended.returncode:
                complaint = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
                raise MissingError(f"nncodec {NNCODEC} is needed, and can't be installed: {complaint}")
        done.touch()
    return python


def nncodec(arrays: list[np.ndarray]) -> Iterator[int]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{number}.npy") for number in range(len(arrays))]
        for path, array in zip(paths, arrays):
            np.save(path, array)
        command = [str(environment()), str(Path(__file__).with_name("nncodec_sizes.py")), *paths]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)["bytes"]
        if process.returncode:
            raise RuntimeError("nncodec failed; what it says is above")


def zstd(arrays: list[np.ndarray]) -> Iterator[int]:
    import zstandard

    for array in arrays:
        yield len(zstandard.ZstdCompressor(level=19).compress(array.tobytes()))


def compressed(weights: dict[str, Tensor], steps: tuple[WeightMethod, ...]) -> list[Coded]:
    """The integers of every weight, coded as the file codes them."""
    packed = {name: pack_steps(weight, steps) for name, weight in track(weights.items(), "  packing", transient=True)}
    written = {leaf.owner: leaf for leaf in plan(Artifact(packed)).leaves if leaf.part.split(".")[-1] == "codes"}
    result = []
    for name, one in packed.items():
        codes = next(tensor for path, tensor in leaves(one) if path.split(".")[-1] == "codes").numpy()
        result.append(Coded(name, codes, signed(one, codes), written[name].how, len(written[name].data)))
    return result


def signed(packed: Packed | Tensor, codes: np.ndarray) -> np.ndarray:
    """Codes of shared values as steps from the value closest to zero, in the order of the values."""
    inner = packed
    while isinstance(inner, Packed) and "codes" not in inner.parts:
        inner = inner.parts["values"]
    assert isinstance(inner, Packed)
    if "codebook" not in inner.parts:
        return codes
    table = inner.tensor("codebook").numpy()
    table = np.concatenate([np.zeros(1, table.dtype), table]) if inner.settings["zero"] else table
    ranks = np.argsort(np.argsort(table))
    return (ranks - ranks[np.abs(table).argmin()]).astype(np.int16)[codes]


def rows_of(weights: dict[str, Tensor], steps: tuple[WeightMethod, ...], kept: Kept) -> list[dict[str, Any]]:
    """A row for each weight: bytes by every way."""
    coded = compressed(weights, steps)
    theirs = kept.sizes(f"nncodec {NNCODEC}", [one.levels for one in coded], nncodec)
    frames = kept.sizes(f"zstandard {version('zstandard')} level 19", [one.codes for one in coded], zstd)
    return [
        {
            "weight": one.name,
            "shape": list(one.codes.shape),
            "coding": one.coding,
            "ours": one.size,
            "entropy": round(entropy_bits(one.codes) / 8, 1),
            "nncodec": their,
            "zstd": frame,
        }
        for one, their, frame in zip(coded, theirs, frames)
    ]


def over(row: dict[str, Any], what: str) -> float:
    """Per cent by which our bytes are above those of another."""
    return round(100 * (row["ours"] / row[what] - 1), 3)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all weights, and the worst weight of each comparison; entropy is judged where tensors are large."""
    total = {name: sum(row[name] for row in rows) for name in ("ours", "entropy", "nncodec", "zstd")}
    count = sum(int(np.prod(row["shape"])) for row in rows)
    large = [row for row in rows if np.prod(row["shape"]) >= LARGE]
    found: dict[str, Any] = {**total, "bits per weight": round(8 * total["ours"] / count, 4)}
    for what, which in (("nncodec", rows), ("zstd", rows), ("entropy", large)):
        worst = max(which, key=lambda row: over(row, what))
        found[f"over {what} %"] = over(total, what)
        found[f"worst over {what} %"] = over(worst, what)
        found[f"worst over {what}"] = worst["weight"]
    found["weights above nncodec"] = sum(row["ours"] > row["nncodec"] for row in rows)
    found["large weights"] = len(large)
    found["large weights below entropy"] = sum(row["ours"] < row["entropy"] for row in large)
    return found


def printed(settings: dict[str, Any]) -> Table:
    table = Table(
        "", *(f"{name}\nbytes" for name in ("ours", "entropy", "nncodec", "zstd-19")), "over nncodec %\nall / worst",
        "above\nnncodec", "over zstd %\nall / worst", "over entropy %\nall / worst large", "large below\nentropy",
    )  # fmt: skip
    for name, found in settings.items():
        one = found["summary"]
        pairs = [f"{one[f'over {what} %']:+.2f} / {one[f'worst over {what} %']:+.2f}" for what in ("nncodec", "zstd")]
        entropy = f"{one['over entropy %']:+.2f} / {one['worst over entropy %']:+.2f}"
        sums = [f"{one[what]:,.0f}" for what in ("ours", "entropy", "nncodec", "zstd")]
        below = f"{one['large weights below entropy']} of {one['large weights']}"
        row = (name, *sums, pairs[0], str(one["weights above nncodec"]), pairs[1], entropy, below)
        table.add_row(*row)
    return table


def text_of(result: dict[str, Any]) -> str:
    """JSON in which a weight takes one line."""
    lines, settings = {}, {}
    for name, found in result["settings"].items():
        marks = [f"{name} {number}" for number in range(len(found["weights"]))]
        lines.update((mark, [row[c] for c in COLUMNS]) for mark, row in zip(marks, found["weights"]))
        settings[name] = {"summary": found["summary"], "weights": marks}
    text = json.dumps({**result, "settings": settings}, indent=1)
    for mark, line in lines.items():
        text = text.replace(f'"{mark}"', json.dumps(line))
    return text + "\n"


def main() -> None:
    """Measures the settings, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = minilm()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim >= 2}
    kept = Kept()
    settings: dict[str, Any] = {}
    for name in options.settings:
        begun = time.perf_counter()
        rows = rows_of(weights, SETTINGS[name], kept)
        settings[name] = {"summary": summary(rows), "weights": rows}
        print(f"{name}: {time.perf_counter() - begun:.0f} s, {json.dumps(settings[name]['summary'])}", flush=True)
    Console(width=200).print(printed(settings))
    if len(settings) < len(SETTINGS):
        return
    about = {
        "command": "python benchmarks/minilm.py",
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "nncodec": NNCODEC, "zstandard": version("zstandard")},
        "weights": sum(weight.numel() for weight in weights.values()),
        "columns": COLUMNS,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text_of({**about, "settings": settings}))


if __name__ == "__main__":
    try:
        main()
    except MissingError as error:
        sys.exit(str(error))
