"""Dynamic network surgery of LeNet-5 (Guo, Yao and Chen 2016, arXiv 1608.04493): weights kept, error and file.

    python benchmarks/surgery.py              # three seeds on one thread; trains what the cache hasn't
    python benchmarks/surgery.py --seed 1     # one seed, for the cache alone, from which a later run takes it
    python benchmarks/surgery.py --quick      # one seed, one epoch a phase; writes nothing

As in the paper the convolutions and the fully connected layers are treated one after the other; the dense networks are
those of `lenet.py`. Then the masks stay and the surviving weights of each layer share 16 values, as in a file of Deep
Compression. The paper's table has 431 k weights, of which 4.0 k are kept, 108 times fewer, at an error of 0.91 % before
and after, in 16,000 iterations; others have found that hard to repeat.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import lenet
import lilliput
from lilliput import Recipe, Rule
from lilliput.prune.sparse import Sparse
from lilliput.prune.surgery import Surgery
from lilliput.quantize.float16 import Float16
from lilliput.share.kmeans import KMeans
from real_data import cache_directory, mnist

NAME = "lenet-5"
EXAMPLE = torch.zeros(1, 1, 28, 28)
BATCH = 128
RESULT = Path(__file__).parent / "results" / "surgery.json"
PAPER = {"weights": 431_080, "kept": 4_000, "times": 108, "error": 0.91}


@dataclass(frozen=True)
class Settings:
    """How the network is operated on: SGD with Nesterov momentum, the rate falling to 0 by a cosine in each phase.

    Attributes:
        deviations: by layer, how far above the mean magnitude the threshold lies, in standard deviations.
        order: the layers of each phase; those of earlier phases keep their masks and train on.
        epochs: passes over the training pictures in each phase, and with shared values.
        rate: highest learning rate in each phase.
        decay: weight decay; it acts on weights behind the mask too, which so come back more rarely.
        shared_rate: of the shared values, by Adam.
        rounds: updates of the masks in a phase.
        until: part of a phase after which its masks are fixed.
        values: shared by the survivors of each layer.
    """

    deviations: dict[str, float]
    order: tuple[tuple[str, ...], ...] = (("conv1", "conv2"), ("fc1", "fc2"))
    epochs: tuple[int, ...] = (3, 6, 1)
    rate: float = 0.03
    decay: float = 5e-4
    shared_rate: float = 2e-4
    rounds: int = 1500
    until: float = 0.7
    values: int = 16


SETTINGS = Settings({"conv1": 1.0, "conv2": 3.0, "fc1": 8.0, "fc2": 3.0})


def operated(seed: int, settings: Settings) -> nn.Module:
    """Trains a dense network on under surgery, one set of layers after the other; returns it plain."""
    model = lenet.train(NAME, seed)
    generator = torch.Generator().manual_seed(seed)
    done: list[str] = []
    for layers, epochs in zip(settings.order, settings.epochs):
        rules = [Rule(f"{name}.weight", (Sparse(),)) for name in done]
        for name in layers:
            step = Surgery(settings.deviations[name], rounds=settings.rounds, until=settings.until)
            rules.append(Rule(f"{name}.weight", (step,)))
        lilliput.attach(model, Recipe(tuple(rules)), example=EXAMPLE)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, settings.rate, momentum=0.9, nesterov=True, weight_decay=settings.decay)
        fit(model, optimizer, epochs, generator)
        lilliput.detach(model)
        done += layers
    return model


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, generator: torch.Generator) -> None:
    """Trains in place, `advance` before each step; the learning rate falls by a cosine."""
    images, labels = mnist("train")
    steps = len(labels) // BATCH
    highest = [group["lr"] for group in optimizer.param_groups]
    model.train()
    for step in range(epochs * steps):
        if step % steps == 0:
            order = torch.randperm(len(labels), generator=generator)[: steps * BATCH].view(steps, BATCH)
        progress = step / (epochs * steps)
        lilliput.advance(model, progress)
        for group, rate in zip(optimizer.param_groups, highest):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
        indices = order[step % steps]
        optimizer.zero_grad()
        functional.cross_entropy(model(images[indices]), labels[indices]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    lilliput.advance(model, 1.0)
    model.eval()


def shared(model: nn.Module, seed: int, settings: Settings) -> nn.Module:
    """Lets the survivors of each layer share few values, trains those, and returns the attached network."""
    share = (Sparse(), KMeans(k=settings.values), Float16())
    biases = Rule(layers="vector", steps=(KMeans(k=settings.values), Float16()))
    lilliput.attach(model, Recipe((Rule(steps=share), biases), "surgery"), example=EXAMPLE)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), settings.shared_rate)
    fit(model, optimizer, settings.epochs[-1], torch.Generator().manual_seed(seed))
    return model


def run(seed: int, settings: Settings) -> dict[str, Any]:
    """Operates on one network, and measures."""
    start = time.perf_counter()
    dense = lenet.train(NAME, seed)
    row: dict[str, Any] = {"seed": seed, "dense_error": lenet.error(dense, "test")}
    model = operated(seed, settings)
    parameters = dict(model.named_parameters())
    row["kept"] = {name: int(torch.count_nonzero(p)) for name, p in parameters.items()}
    row["validation_error"] = lenet.error(model)
    row["error"] = lenet.error(model, "test")
    total, left = sum(p.numel() for p in parameters.values()), sum(row["kept"].values())
    row |= {"parameters": total, "parameters_kept": left, "times": total / left}
    artifact = lilliput.pack(shared(model, seed, settings))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        row["file_bytes"] = artifact.save(path)
        row["file_error"] = lenet.error(lilliput.load(path), "test")
    row["file_times"] = 4 * total / row["file_bytes"]
    row["seconds"] = round(time.perf_counter() - start)
    return row


def known(seed: int, settings: Settings) -> dict[str, Any]:
    """Returns what `run` gives, from the cache if it is there."""
    text = json.dumps([dataclasses.asdict(settings), lenet.checkpoint(NAME, seed).name], sort_keys=True)
    path = cache_directory() / "surgery" / f"seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    if not path.is_file():
        row = run(seed, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(row))
        os.replace(part, path)
    return dict(json.loads(path.read_text()))


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows beside the paper's as Markdown."""
    lines = ["| | dense error | kept | times fewer | error | file | ratio | error of the file |", "| --- " * 8 + "|"]
    lines.append(
        f"| paper | {PAPER['error']:.2f} % | {PAPER['kept']:,} | {PAPER['times']} | {PAPER['error']:.2f} % | | | |"
    )
    for row in rows:
        lines.append(
            f"| seed {row['seed']} | {row['dense_error']:.2f} % | {row['parameters_kept']:,} | {row['times']:.0f} "
            f"| {row['error']:.2f} % | {row['file_bytes']:,} | {row['file_times']:.0f} | {row['file_error']:.2f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the seeds, writes the JSON and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch a phase; nothing is written")
    parser.add_argument("--seed", type=int, help="this seed alone; nothing is written but to the cache")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = dataclasses.replace(SETTINGS, epochs=(1, 1, 1)) if options.quick else SETTINGS
    alone = options.seed if options.seed is not None else 0 if options.quick else None
    rows = []
    for seed in range(3) if alone is None else [alone]:
        rows.append(run(seed, settings) if options.quick else known(seed, settings))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    if alone is not None:
        return
    means = {
        key: statistics.mean(row[key] for row in rows)
        for key in ("dense_error", "error", "parameters_kept", "times", "file_bytes", "file_times", "file_error")
    }
    machine = {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    result = {
        "machine": machine,
        "settings": dataclasses.asdict(settings),
        "paper": PAPER,
        "seeds": rows,
        "mean": means,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
