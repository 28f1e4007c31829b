"""Every criterion of pruning that there is, on Fashion-MNIST: before and after the same short retraining.

    python benchmarks/criteria.py             # hours on one thread; goes on where it stopped
    python benchmarks/criteria.py --quick     # minutes: few pictures, two criteria, one seed; writes nothing

The demo's CNN (`examples/fashion_cnn.py`), and with five criteria a ResNet-20, are pruned to the same sparsity in every
layer: single weights at 50 to 98 %, and filters of convolutions at 30 to 70 %. The seed is that of retraining and of
random masks. `random` is the baseline; for filters so is a network with as many channels fewer, trained from scratch as
long as the dense one. A filter that is removed gives zeros, which BatchNorm makes a constant that is trained on like a
bias (in the file it is the next layer's): before retraining these constants do much of the harm. Accuracy is that on
10,000 validation pictures. A criterion that refuses a pattern is noted with what it says.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import fashion_cnn
import fashion_mnist
import lilliput
from lilliput import Recipe, Rule
from lilliput.core.errors import MethodError
from lilliput.core.method import find_path
from lilliput.nets.resnet import ResNet
from lilliput.train.fit import FitOptions
from real_data import cache_directory

RESULT = Path(__file__).parent / "results" / "criteria.json"
PREFERRED = ("magnitude", "random", "filter_norm", "wanda", "taylor", "obd", "movement")
"""The first five of these that there are are tried on the ResNet."""


@dataclass(frozen=True)
class Settings:
    """How much is done.

    Attributes:
        unstructured: sparsities of single weights.
        filters: sparsities of filters.
        seeds: of retraining and random masks.
        retraining: epochs after pruning, AdamW with a rate that rises and falls by a cosine.
        dense: epochs of a network trained from scratch.
        rate: highest learning rate while retraining.
        batches: most training batches in an epoch; 0 for all.
        calibration: batches from which criteria collect what they need.
    """

    unstructured: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    filters: tuple[float, ...] = (0.3, 0.5, 0.7)
    seeds: tuple[int, ...] = (0, 1, 2)
    retraining: int = 2
    dense: int = 30
    rate: float = 1e-3
    batches: int = 0
    calibration: int = 8


FULL = Settings()
QUICK = Settings((0.9,), (0.5,), (0,), 1, 1, batches=30, calibration=2)


@dataclass(frozen=True)
class Case:
    """One network pruned by one criterion; criterion `scratch` is a smaller one that was never pruned."""

    net: str
    criterion: str
    pattern: str
    sparsity: float
    seed: int


def resnet20(part: float = 1.0) -> nn.Module:
    """Builds He et al.'s ResNet-20 for one input channel, with that part of the channels within the blocks."""
    return ResNet(20, "cifar", inner=part, num_classes=10, channels=1, size=28).build()


def smaller_cnn(part: float) -> nn.Module:
    """Builds the demo's CNN with that part of the channels in each convolution."""
    model = fashion_cnn.fashion_cnn()
    inputs = 1
    for number, outputs in enumerate((16, 32, 64), start=1):
        outputs = max(round(part * outputs), 1)  # noqa: PLW2901
        setattr(model, f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        setattr(model, f"norm{number}", nn.BatchNorm2d(outputs))
        inputs = outputs
    model.fc1 = nn.Linear(inputs * 9, 512)
    return model


SMALLER: dict[str, Callable[[float], nn.Module]] = {"cnn": smaller_cnn, "resnet20": resnet20}


class Some:
    """The first batches of each pass over the training pictures, flipped and shifted."""

    def __init__(self, count: int) -> None:
        self.batches, self.count = fashion_mnist.train_augmented(), count

    def __len__(self) -> int:
        return min(self.count or len(self.batches), len(self.batches))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.islice(iter(self.batches), len(self))


def criteria() -> list[str]:
    """Names every criterion that can be found."""
    return [m.path.removeprefix("prune/") for m in lilliput.methods("prune") if m.kind == "criterion"]


def cases(settings: Settings, names: Iterable[str]) -> Iterator[Case]:
    """Yields what is to be done, the baseline first."""
    known = list(names)
    ordered = [n for n in PREFERRED if n in known] + [n for n in known if n not in PREFERRED]
    grid = [("unstructured", s) for s in settings.unstructured] + [("filter", s) for s in settings.filters]
    for net, chosen in (("cnn", ordered), ("resnet20", ordered[:5])):
        for name, (pattern, sparsity), seed in itertools.product([*chosen, "scratch"], grid, settings.seeds):
            if name != "scratch" or pattern == "filter":
                yield Case(net, name, pattern, sparsity, seed)


def place(settings: Settings) -> Path:
    """Returns the folder of what is done already; other settings are another one."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return cache_directory() / "criteria" / hashlib.sha256(text.encode()).hexdigest()[:12]


def dense(net: str, settings: Settings) -> nn.Module:
    """Returns the trained network: the demo's, or one that is trained once and kept."""
    if net == "cnn":
        return fashion_cnn.trained()
    path = place(settings) / f"{net}.safetensors"
    model = SMALLER[net](1.0)
    if not path.is_file():
        trained(model, settings, settings.dense, 5e-3, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, part)
        os.replace(part, path)
    model.load_state_dict(load_file(path))
    return model.eval()


def trained(model: nn.Module, settings: Settings, epochs: int, rate: float, seed: int) -> None:
    """Trains in place."""
    options = FitOptions(learning_rate=rate, seed=seed, progress=False)
    lilliput.fit(model, Some(settings.batches), epochs=epochs, options=options)
    model.eval()


def measured(case: Case, settings: Settings) -> dict[str, Any]:
    """Does one case; returns the accuracies before and after retraining, or why there are none."""
    if case.criterion == "scratch":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            model = SMALLER[case.net](1 - case.sparsity)
        trained(model, settings, settings.dense, 5e-3, case.seed)
        return {"before": None, "after": fashion_mnist.accuracy(model)}
    model = dense(case.net, settings)
    cls = find_path(f"prune/{case.criterion}")
    seed = {"seed": case.seed} if "seed" in {field.name for field in dataclasses.fields(cls)} else {}
    try:
        step = cls(sparsity=case.sparsity, pattern=case.pattern, **seed)
        layers = "conv2d" if case.pattern == "filter" else "*"
        batches = list(itertools.islice(fashion_mnist.train(), settings.calibration))
        lilliput.attach(model, Recipe((Rule(layers=layers, steps=(step,)),)), batches)
    except MethodError as refusal:
        return {"refused": str(refusal)}
    before = fashion_mnist.accuracy(model)
    trained(model, settings, settings.retraining, settings.rate, case.seed)
    return {"before": before, "after": fashion_mnist.accuracy(model)}


def done(case: Case, settings: Settings) -> dict[str, Any]:
    """Returns the case with what was measured, from the cache if it is there."""
    name = f"{case.net}-{case.criterion}-{case.pattern}-{case.sparsity:g}-{case.seed}.json"
    path = place(settings) / name
    if not path.is_file():
        row = dataclasses.asdict(case) | measured(case, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(row))
        os.replace(part, path)
    return dict(json.loads(path.read_text()))


def table(rows: list[dict[str, Any]]) -> str:
    """Returns means over the seeds as Markdown: a criterion a row, `before -> after` in per cent for each sparsity."""
    parts = []
    for net, pattern in sorted({(row["net"], row["pattern"]) for row in rows}):
        own = [row for row in rows if (row["net"], row["pattern"]) == (net, pattern)]
        columns = sorted({row["sparsity"] for row in own})
        lines = [f"{net}, {pattern}", "", "| | " + " | ".join(f"{100 * s:g} %" for s in columns) + " |"]
        lines.append("| --- " * (len(columns) + 1) + "|")
        for name in dict.fromkeys(row["criterion"] for row in own):
            cells = [cell([r for r in own if (r["criterion"], r["sparsity"]) == (name, s)]) for s in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def cell(rows: list[dict[str, Any]]) -> str:
    """Returns the mean of some seeds, before and after.

    >>> cell([{"before": 0.5, "after": 0.9}, {"before": 0.6, "after": 0.92}])
    '55.0 → 91.0'
    """
    if not rows or any("refused" in row for row in rows):
        return "–"
    after = f"{100 * statistics.mean(row['after'] for row in rows):.1f}"
    if rows[0]["before"] is None:
        return after
    return f"{100 * statistics.mean(row['before'] for row in rows):.1f} → {after}"


def main() -> None:
    """Does what isn't done yet, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures, two criteria, one seed; writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = QUICK if options.quick else FULL
    names = ["magnitude", "random"] if options.quick else criteria()
    rows = []
    for case in cases(settings, names):
        rows.append(measured(case, settings) | dataclasses.asdict(case) if options.quick else done(case, settings))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    if options.quick:
        return
    machine = {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    result = {"machine": machine, "settings": dataclasses.asdict(settings), "cases": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
