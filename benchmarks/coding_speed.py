"""Speed of the codings, one thread: encode and decode, compiled and NumPy, on synthetic weights of a known kind.

    OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/coding_speed.py

Writes benchmarks/results/coding_speed.json. Times are CPU seconds, the best of several runs.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lilliput.coding.choose import codings, entropy_bits
from lilliput.core.native import extension

SHAPE = (2048, 2048)
TARGETS = {
    "compiled decode, dense": 200,
    "compiled decode, sparse": 400,
    "numpy decode, dense": 50,
    "compiled encode, dense": 20,
}
"""Million symbols a second that rANS is to reach."""


def weights(random: np.random.Generator) -> dict[str, np.ndarray]:
    scales = np.exp(random.normal(0, 0.3, (SHAPE[0], 1)))
    bell = random.laplace(0, 1.6, SHAPE)
    kept = random.random(SHAPE) < 0.1
    return {
        "dense": (np.rint(bell).clip(-8, 7) + 8).astype(np.uint8),
        "dense, rows differ": (np.rint(bell * scales).clip(-8, 7) + 8).astype(np.uint8),
        "sparse": (kept * random.integers(1, 16, SHAPE)).astype(np.uint8),
        "8 bits": np.rint(random.normal(0, 25, SHAPE)).clip(-127, 127).astype(np.int8),
    }


def fastest(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def measure(name: str, array: np.ndarray, kind: str) -> dict[str, object]:
    coding = codings()[name]
    data = coding.encode(array)
    if data is None:
        return {}
    os.environ["LILLIPUT_PURE"] = "0" if kind == "compiled" else "1"
    encode = fastest(lambda: coding.encode(array), 2)
    decode = fastest(lambda: coding.decode(data, array.shape, array.dtype), 5)
    return {
        "coding": name,
        "kind": kind,
        "bits_per_weight": round(8 * len(data) / array.size, 4),
        "encode_million_per_second": round(array.size / encode / 1e6, 1),
        "decode_million_per_second": round(array.size / decode / 1e6, 1),
    }


def main() -> None:
    if extension() is None:
        raise SystemExit("the extension isn't built: run `make ext` first")
    rows = []
    for label, array in weights(np.random.default_rng(0)).items():
        entropy = round(entropy_bits(array) / array.size, 4)
        for name in codings():
            for kind in ("compiled", "numpy") if name == "rans" else ("numpy",):
                found = measure(name, array, kind)
                if found:
                    rows.append({"weights": label, "entropy_bits_per_weight": entropy, **found})
                    print(*rows[-1].values(), sep="  ")
    rans = {(row["kind"], row["weights"]): row for row in rows if row["coding"] == "rans"}
    reached = {}
    for target in TARGETS:
        way, kind = target.split(", ")
        row = rans[way.split()[0], kind]
        reached[target] = row[f"{way.split()[1]}_million_per_second"]
    result = {
        "what": "million symbols a second, one thread, CPU time",
        "machine": platform.machine(),
        "processor": next((x.split(":")[1].strip() for x in _cpu_lines() if x.startswith("model name")), ""),
        "numpy": np.__version__,
        "elements": int(np.prod(SHAPE)),
        "targets": TARGETS,
        "reached": reached,
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / "coding_speed.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(reached, indent=1))


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
