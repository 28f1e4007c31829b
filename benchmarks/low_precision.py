"""Trainings in low precision beside float32: a small CNN on Fashion-MNIST, the same pictures, epochs and rates for all.

    python benchmarks/low_precision.py                       # all; writes results/low_precision.json, prints the table
    python benchmarks/low_precision.py --runs "qnn 6"        # one

20,000 pictures, one epoch, batches of 128, SGD with momentum 0.9 and a cosine of the rate; two seeds. The network is
that of benchmarks/gradient_hooks.py.
"""

import argparse
import json
import math
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import fashion_mnist
from gradient_hooks import network
from lilliput.train.low_precision.dorefa import Dorefa
from lilliput.train.low_precision.flexpoint import Flexpoint
from lilliput.train.low_precision.float16 import Float16
from lilliput.train.low_precision.qnn import Qnn

RESULTS = Path(__file__).parent / "results" / "low_precision.json"
EPOCHS, BATCH, PICTURES, RATE, SEEDS = 1, 128, 20_000, 0.05, (0, 1)

RUNS: dict[str, Any] = {
    "float32": None,
    "dorefa 8": Dorefa(bits=8, ends=True),
    "dorefa 6": Dorefa(bits=6, ends=True),
    "dorefa 4": Dorefa(bits=4, ends=True),
    "dorefa 2": Dorefa(bits=2, ends=True),
    "dorefa 2 without noise": Dorefa(bits=2, ends=True, noise=False),
    "qnn 6": Qnn(bits=6),
    "qnn 4": Qnn(bits=4),
    "flexpoint 16": Flexpoint(bits=16),
    "flexpoint 12": Flexpoint(bits=12),
    "float16": Float16(),
    "float16 without loss scaling": Float16(scale=0.0),
    "bfloat16": Float16(form="bfloat16", scale=0.0),
}


def trained(method: Any, seed: int) -> dict[str, float]:
    """Trains once; returns validation accuracy, mean loss of the last epoch and what the session counted."""
    images, labels = (part[:PICTURES] for part in fashion_mnist.load("train"))
    model = network()
    torch.manual_seed(seed)
    for module in model:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    steps, start, losses = EPOCHS * (PICTURES // BATCH), time.perf_counter(), []
    with method.on(model, optimizer) if method is not None else nullcontext() as session:
        for step in range(steps):
            if step % (PICTURES // BATCH) == 0:
                order, losses = torch.randperm(PICTURES), []
            own = order[step % (PICTURES // BATCH) * BATCH :][:BATCH]
            loss = functional.cross_entropy(model(images[own]), labels[own])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * (step + 1) / steps))
        accuracy = fashion_mnist.accuracy(model)
    counted = {} if session is None else {"skipped": session.skipped, "overflows": session.overflows}
    seconds = time.perf_counter() - start
    return {"accuracy": accuracy, "loss": statistics.mean(losses), "seconds": round(seconds, 1), **counted}


def table(results: dict[str, Any]) -> str:
    """Means over the seeds, and the difference from float32 in points with its standard error, seed by seed."""
    lines = ["| training | accuracy | to float32 | loss | skipped, overflows |", "| --- | --- | --- | --- | --- |"]
    for name, runs in results.items():
        gaps = [100 * (run["accuracy"] - base["accuracy"]) for run, base in zip(runs, results["float32"])]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        counted = f"{sum(r.get('skipped', 0) for r in runs)}, {sum(r.get('overflows', 0) for r in runs)}"
        accuracy, loss = (statistics.mean(run[key] for run in runs) for key in ("accuracy", "loss"))
        gap = f"{statistics.mean(gaps):+.2f} +- {error:.2f}"
        lines.append(f"| {name} | {100 * accuracy:.2f} % | {gap} | {loss:.4f} | {counted} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", default=list(RUNS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.runs:
        results[name] = [trained(RUNS[name], seed) for seed in SEEDS]
        print(name, results[name], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
