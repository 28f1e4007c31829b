"""Exact one-dimensional k-means beside its peers: time, error over the optimum, memory.

    python benchmarks/kmeans.py               # needs kmeans1d from PyPI for the oracle; writes results/kmeans.json

The values are weights of all-MiniLM-L6-v2 drawn with replacement, with a jitter of 1e-5, so that they are as many as
those of AlexNet's fc6 and are spread as trained weights are; "pruned" are those above the 91 % quantile of |w|.
Everything runs on one thread. Times are CPU seconds, the best of three.
"""

import json
import os
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lilliput.core.native import extension
from lilliput.solve import kmeans1d
from real_data import unpacked
from real_models import MINILM

FC6 = 9216 * 4096
SAMPLE = 300_000
K = 32
RESULT = Path(__file__).parent / "results" / "kmeans.json"


def values(count: int) -> Tensor:
    tensors = load_file(unpacked(MINILM) / MINILM.keep / "model.safetensors")
    source = torch.cat([w.flatten() for name, w in sorted(tensors.items()) if name.endswith("dense.weight")])
    generator = torch.Generator().manual_seed(0)
    drawn = source[torch.randint(len(source), (count,), generator=generator)]
    return drawn + 1e-5 * torch.randn(count, generator=generator)


def pruned(weights: Tensor) -> Tensor:
    size = weights.abs()
    return weights[size > size[:2_000_000].quantile(0.91)]


def seconds(run: Callable[[], Any], times: int = 3) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return round(best, 4)


def time_optimal(weights: Tensor, k: int, times: int = 3) -> dict[str, Any]:
    centroids = kmeans1d.optimal(weights, k)
    tracemalloc.start()
    kmeans1d.optimal(weights, k)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    solve = seconds(lambda: kmeans1d.optimal(weights, k), times)
    assign = seconds(lambda: kmeans1d.assign(weights, centroids), times)
    return {
        "values": len(weights),
        "k": k,
        "optimal_s": solve,
        "assign_s": assign,
        "total_s": round(solve + assign, 4),
        "peak_mb_beside_the_values": round(peak / 1e6, 1),
        "mean_squared_error": kmeans1d.objective(weights, centroids) / len(weights),
    }


def beside_oracle(weights: Tensor, k: int) -> dict[str, Any]:
    """The optimum by PyPI's kmeans1d (an independent exact program) on the same values."""
    import kmeans1d as oracle

    array = weights.double().numpy()
    start = time.process_time()
    exact = torch.tensor(oracle.cluster(array, k).centroids, dtype=torch.float64)
    taken = time.process_time() - start
    ours = kmeans1d.optimal(weights, k)
    excess = kmeans1d.objective(weights, ours) / kmeans1d.objective(weights, exact) - 1
    return {
        "values": len(weights),
        "k": k,
        "kmeans1d_s": round(taken, 3),
        "lilliput_s": seconds(lambda: kmeans1d.optimal(weights, k)),
        "error_over_optimum": excess,
    }


def starts(weights: Tensor, k: int) -> dict[str, float]:
    """Squared error over the optimum of Lloyd's iteration, run until nothing changes, by its start."""
    least = kmeans1d.objective(weights, kmeans1d.optimal(weights, k))
    found = {}
    for how in ("forgy", "density", "linear"):
        centroids = kmeans1d.lloyd(weights, kmeans1d.initial(weights, k, how))
        found[how] = round(kmeans1d.objective(weights, centroids) / least - 1, 5)
    return found


def main() -> None:
    torch.set_num_threads(1)
    weights = values(FC6)
    result: dict[str, Any] = {
        "machine": {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__},
        "compiled": extension() is not None,
        "fc6": time_optimal(weights, K),
        "fc6_pruned": time_optimal(pruned(weights), K),
        "fc6_256_values": time_optimal(weights, 256),
        "oracle": [beside_oracle(weights[:SAMPLE], k) for k in (16, K)],
        "oracle_pruned": [beside_oracle(pruned(weights)[:SAMPLE], k) for k in (16, K)],
        "starts_over_optimum": {"dense": starts(weights[:SAMPLE], K), "pruned": starts(pruned(weights)[:SAMPLE], K)},
    }
    os.environ["LILLIPUT_PURE"] = "1"
    result["fc6_in_numpy"] = time_optimal(weights, K, times=1)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
