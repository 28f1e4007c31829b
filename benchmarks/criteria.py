"""Every criterion of pruning that there is, on Fashion-MNIST: before and after the same short retraining.

    python benchmarks/criteria.py             # about an hour and a half on one free core; goes on where it stopped
    python benchmarks/criteria.py --net cnn   # one network alone, so that two can run at once
    python benchmarks/criteria.py --hours 1   # begins nothing after an hour; writes what there is
    python benchmarks/criteria.py --long      # all sparsities for both networks, longer trainings: two days
    python benchmarks/criteria.py --quick     # minutes: little training, two criteria, one seed; writes nothing

The demo's CNN (`examples/fashion_cnn.py`), and with five criteria a ResNet-20, are trained once and pruned to the same
sparsity in every layer: single weights, but in the first and the last layer; filters of all convolutions, in the ResNet
of the first one of each block; and, for criteria that look at the layer which reads a channel, input channels of all
layers but the first and the last. A seed draws the calibration pictures, the order of retraining and random masks.
Accuracy is that on 5,000 validation pictures: right after pruning; with the statistics of BatchNorm taken anew from
the calibration pictures and nothing else changed; after retraining. A filter that is removed gives zeros, which
BatchNorm makes a constant: before retraining these constants do much of the harm, and new statistics take them away.

`random` is the baseline; for filters so is `scratch`, a network with as many channels fewer, trained as the dense one
was, for as many steps as training and retraining have together. A criterion that refuses a pattern is noted with what
it says. The first seed is done for everything before the second begins.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
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
from lilliput.prune.filter_norm import FilterNorm
from lilliput.prune.gradual import Gradual
from lilliput.train.fit import FitOptions
from real_data import cache_directory

RESULT = Path(__file__).parent / "results" / "criteria.json"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "pruning-criteria.md"
RATE = 5e-3
"""Highest learning rate of a network that is trained from scratch."""


class Largest(FilterNorm):
    """Removes the filters of largest norm, as Li et al. do for comparison."""

    def score(self, weight: Tensor, stats: Any = None) -> Tensor:
        """Returns the norms with the other sign."""
        return -super().score(weight, stats)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude, gradual": ("magnitude", {}),
    "movement, gradual": ("movement", {}),
    "filter_norm, L2": ("filter_norm", {"norm": 2}),
    "next_layer, lasso": ("next_layer", {"by": "lasso"}),
    "random_search, best of 16": ("random_search", {"candidates": 16}),
}
"""Besides each criterion with its defaults: (criterion, settings). Gradual ones prune within the first half of
retraining; without that movement is magnitude."""

ORDER = {
    "unstructured": (
        *("random", "magnitude", "wanda", "obd", "obc", "correlation"),
        *("magnitude, gradual", "movement, gradual", "obs"),
    ),
    "filter": (
        *("random", "filter_norm", "taylor", "obd", "obc", "largest", "wanda", "apoz", "entropy", "lda"),
        *("random_search, best of 16", "filter_norm, L2"),
    ),
    "channel": ("random", "next_layer", "next_layer, lasso", "obc", "magnitude"),
}
"""Which criteria remove what, the most telling first."""

LAYERS = {
    ("cnn", "unstructured"): ("conv2.weight", "conv3.weight", "fc1.weight"),
    ("cnn", "filter"): ("conv?.weight",),
    ("cnn", "channel"): ("conv2.weight", "conv3.weight", "fc1.weight"),
    ("resnet20", "unstructured"): ("layer*.conv?.weight",),
    ("resnet20", "filter"): ("layer*.conv1.weight",),
    ("resnet20", "channel"): ("layer*.conv2.weight",),
}


@dataclass(frozen=True)
class Grid:
    """What is done to one network.

    Attributes:
        unstructured: sparsities of single weights.
        filter: sparsities of filters.
        channel: sparsities of input channels.
        criteria: how many of each list of `ORDER`.
        epochs: of a training from scratch, AdamW with a rate that rises and falls by a cosine.
    """

    unstructured: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    filter: tuple[float, ...] = (0.3, 0.5, 0.7)
    channel: tuple[float, ...] = (0.5,)
    criteria: int = 99
    epochs: int = 12


@dataclass(frozen=True)
class Settings:
    """How much is done.

    Attributes:
        cnn: what is done to the demo's CNN.
        resnet20: what is done to the ResNet.
        seeds: see above.
        batches: of 128 pictures, of retraining.
        rate: highest learning rate while retraining.
        calibration: batches from which criteria collect what they need.
        scratch: most batches in an epoch of a training from scratch; 0 for all.
        pictures: of the 10,000 for validation, from the first on, that accuracy is measured on.
    """

    cnn: Grid = Grid()
    resnet20: Grid = Grid((0.8,), (0.5,), (), 5, 3)
    seeds: tuple[int, ...] = (0, 1, 2)
    batches: int = 50
    rate: float = 1e-3
    calibration: int = 8
    scratch: int = 0
    pictures: int = 5000


FULL = Settings()
LONG = Settings(Grid(epochs=30), Grid(criteria=5, channel=(), epochs=30), batches=782, pictures=10_000)
QUICK = Settings(
    Grid((0.9,), (0.5,), (), 2, 1), Grid((0.9,), (0.5,), (), 2, 1), (0,), batches=20, calibration=2, scratch=30
)


@dataclass(frozen=True)
class Case:
    """One network pruned by one criterion; `dense` was not, `scratch` is a smaller one that never was."""

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
    """So many batches in all, from one pass over the training pictures after the other, flipped and shifted."""

    def __init__(self, count: int) -> None:
        self.batches, self.count = fashion_mnist.train_augmented(), count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        passes = itertools.chain.from_iterable(iter(self.batches) for _ in itertools.count())
        return itertools.islice(passes, self.count)


def cases(settings: Settings, net: str) -> Iterator[Case]:
    """Yields what is to be done with a network: seed by seed, the baseline first, networks from scratch last."""
    grid: Grid = getattr(settings, net)
    points = [(pattern, s) for pattern in ORDER for s in getattr(grid, pattern)]
    yield Case(net, "dense", "none", 0.0, 0)
    for seed in settings.seeds:
        for number in range(min(grid.criteria, max(map(len, ORDER.values())))):
            for pattern, sparsity in points:
                if number < len(ORDER[pattern]):
                    yield Case(net, ORDER[pattern][number], pattern, sparsity, seed)
    middle_first = sorted(grid.filter, key=lambda sparsity: abs(sparsity - 0.5))
    for sparsity, seed in itertools.product(middle_first, settings.seeds):
        yield Case(net, "scratch", "filter", sparsity, seed)


def place(settings: Settings) -> Path:
    """Returns the folder of what is done already; other settings are another one."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return cache_directory() / "criteria" / hashlib.sha256(text.encode()).hexdigest()[:12]


def steps_of(net: str, settings: Settings) -> int:
    """Returns how many batches a network is trained on from scratch."""
    grid: Grid = getattr(settings, net)
    return grid.epochs * (settings.scratch or len(fashion_mnist.train_augmented()))


def dense(net: str, settings: Settings) -> nn.Module:
    """Returns the trained network, which is trained once and kept."""
    path = place(settings) / f"{net}.safetensors"
    model = SMALLER[net](1.0)
    if not path.is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = SMALLER[net](1.0)
        train(model, steps_of(net, settings), RATE, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, part)
        os.replace(part, path)
    model.load_state_dict(load_file(path))
    return model.eval()


def train(model: nn.Module, batches: int, rate: float, seed: int) -> None:
    """Trains in place."""
    options = FitOptions(learning_rate=rate, seed=seed, progress=False)
    lilliput.fit(model, Some(batches), options=options)
    model.eval()


def calibration(settings: Settings, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Draws training pictures, not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return list(itertools.islice(fashion_mnist.train(), settings.calibration))


def take_statistics(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Takes the statistics of BatchNorm anew, from the batches alone."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def recipe(case: Case) -> Recipe:
    """Returns what is done to a network."""
    name, values = VARIANTS.get(case.criterion, (case.criterion, {}))
    cls: Any = Largest if name == "largest" else find_path(f"prune/{name}")
    if "seed" in {field.name for field in dataclasses.fields(cls)}:
        values = {**values, "seed": case.seed}
    step = cls(sparsity=case.sparsity, pattern=case.pattern, **values)
    schedule = Gradual(until=0.5) if case.criterion.endswith("gradual") else None
    layers = LAYERS[case.net, case.pattern]
    return Recipe(tuple(Rule(match, (step,), schedule=schedule) for match in layers))


def measured(case: Case, settings: Settings) -> dict[str, Any]:
    """Does one case; returns the accuracies, or why there are none, and the seconds that choosing took."""
    if case.criterion == "dense":
        return {"after": accuracy(dense(case.net, settings), settings.pictures)}
    if case.criterion == "scratch":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            model = SMALLER[case.net](1 - case.sparsity)
        train(model, steps_of(case.net, settings) + settings.batches, RATE, case.seed)
        return {"after": accuracy(model, settings.pictures)}
    model = dense(case.net, settings)
    batches = calibration(settings, case.seed)
    start = time.perf_counter()
    try:
        lilliput.attach(model, recipe(case), batches)
    except MethodError as refusal:
        return {"refused": str(refusal)}
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 2)}
    if not case.criterion.endswith("gradual"):
        row["before"] = accuracy(model, settings.pictures)
        take_statistics(model, batches)
        row["anew"] = accuracy(model, settings.pictures)
    train(model, settings.batches, settings.rate, case.seed)
    return row | {"after": accuracy(model, settings.pictures)}


@torch.no_grad()
def accuracy(model: nn.Module, count: int) -> float:
    """Returns the part of the first validation pictures that a model in eval mode gets right."""
    batches = itertools.islice(fashion_mnist.validation(500), math.ceil(count / 500))
    right = [(model(images).argmax(1) == labels).double().mean().item() for images, labels in batches]
    return statistics.mean(right)


def path_of(case: Case, settings: Settings) -> Path:
    """Returns where a case that is done lies."""
    name = f"{case.net}-{case.criterion}-{case.pattern}-{case.sparsity:g}-{case.seed}.json"
    return place(settings) / name.replace(", ", "-")


def do(case: Case, settings: Settings) -> None:
    """Does a case and keeps what was measured."""
    path = path_of(case, settings)
    row = dataclasses.asdict(case) | measured(case, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(row))
    os.replace(part, path)


Rows = list[dict[str, Any]]
WHEN = {"before": "right after pruning", "anew": "BatchNorm's statistics anew", "after": "after retraining"}


def table(rows: Rows, when: str) -> str:
    """Returns means and standard errors over the seeds in per cent as Markdown: a criterion a row."""
    parts = []
    for net, pattern in dict.fromkeys((r["net"], r["pattern"]) for r in rows if r["pattern"] != "none"):
        own = [r for r in rows if (r["net"], r["pattern"]) == (net, pattern) and ("refused" in r or when in r)]
        columns = sorted({row["sparsity"] for row in own})
        lines = [f"{net}, {pattern}, {WHEN[when]}:", "", "| | " + " | ".join(f"{100 * s:g} %" for s in columns) + " |"]
        lines.append("| --- " * (len(columns) + 1) + "|")
        for name in dict.fromkeys(row["criterion"] for row in own):
            cells = [cell([r for r in own if (r["criterion"], r["sparsity"]) == (name, s)], when) for s in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def cell(rows: Rows, when: str) -> str:
    """Returns the mean of some seeds and its standard error.

    >>> cell([{"before": 0.5}, {"before": 0.6}], "before"), cell([{"before": 0.5}], "before")
    ('55.0 (5.0)', '50.0')
    """
    values = [100 * row[when] for row in rows if when in row]
    if not values:
        return "–"
    error = f" ({statistics.stdev(values) / math.sqrt(len(values)):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{error}"


def beaten(rows: Rows, when: str) -> tuple[Rows, Rows]:
    """Compares each criterion with random masks, seed by seed, where either is above chance.

    Returns:
        Those that are better, and those that aren't, each with the mean difference in points and its standard error.
    """
    better, worse = [], []
    known = {(r["net"], r["criterion"], r["pattern"], r["sparsity"], r["seed"]): r[when] for r in rows if when in r}
    points = dict.fromkeys(k[:4] for k in known if k[1] not in ("random", "dense", "scratch", "largest"))
    for net, name, pattern, sparsity in points:
        pairs = [
            (value, known[net, "random", pattern, sparsity, seed])
            for (*point, seed), value in known.items()
            if point == [net, name, pattern, sparsity] and (net, "random", pattern, sparsity, seed) in known
        ]
        if not pairs or max(map(max, pairs)) < 0.15:
            continue
        gains = [100 * (own - other) for own, other in pairs]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        row = {"net": net, "criterion": name, "pattern": pattern, "sparsity": sparsity}
        row |= {"gain": round(statistics.mean(gains), 2), "error": round(error, 2), "seeds": len(gains)}
        (better if row["gain"] > 0 else worse).append(row)
    return better, worse


def page(text: str, rows: Rows) -> str:
    """Returns the page with its tables, and the list of what random masks equal, made anew from the rows."""
    heads = ("## Right after pruning", "## BatchNorm's statistics taken anew", "## After retraining")
    for head, when in zip(heads, WHEN, strict=True):
        before, found, rest = text.partition(head)
        own, end, after = rest.partition("\n## ")
        lines = own.split("\n")
        first = next(place for place, line in enumerate(lines) if line.startswith("cnn, "))
        last = max(place for place, line in enumerate(lines) if line.startswith("| "))
        tables = table(rows, when).replace(f", {WHEN[when]}:", ":").split("\n")
        text = before + found + "\n".join([*lines[:first], *tables, *lines[last + 1 :]]) + end + after
    worse = [
        f"* `{row['criterion']}` at {100 * row['sparsity']:g} % ({row['pattern']}, {row['net']}) "
        f"{row['gain']:.1f} ({row['error']:.1f})"
        for row in beaten(rows, "after")[1]
    ]
    lines = text.split("\n")
    first = next(place for place, line in enumerate(lines) if line.startswith("* `") and "(filter, cnn)" in line)
    count = next(place for place, line in enumerate(lines[first:]) if not line.startswith("* `"))
    return "\n".join([*lines[:first], *worse, *lines[first + count :]])


def main() -> None:
    """Does what isn't done yet, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little training, two criteria, one seed; writes nothing")
    parser.add_argument("--long", action="store_true", help="all sparsities, longer trainings")
    parser.add_argument("--net", choices=sorted(SMALLER), help="one network alone; writes nothing but to the cache")
    parser.add_argument("--hours", type=float, default=math.inf, help="begin nothing after so many hours")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = QUICK if options.quick else LONG if options.long else FULL
    wanted = [case for net in SMALLER if options.net in (None, net) for case in cases(settings, net)]
    end = time.monotonic() + 3600 * options.hours
    rows, left = [], 0
    for case in wanted:
        known = path_of(case, settings)
        if not known.is_file() and time.monotonic() >= end:
            left += 1
            continue
        if not known.is_file():
            do(case, settings)
            print(known.read_text(), flush=True)
        rows.append(json.loads(known.read_text()))
    print("\n\n".join(table(rows, when) for when in WHEN))
    for when, text in WHEN.items():
        better, worse = beaten(rows, when)
        print(f"\n{text}: {len(better)} better than random masks; not better:")
        print(*map(json.dumps, worse), sep="\n")
    print(f"{len(rows)} cases done, {left} left")
    if options.quick or options.net:
        return
    machine = {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    against = {when: dict(zip(("better", "not better"), beaten(rows, when), strict=True)) for when in WHEN}
    result = {"machine": machine, "settings": dataclasses.asdict(settings), "left": left}
    RESULT.write_text(json.dumps(result | {"against random": against, "cases": rows}, indent=1) + "\n")
    if not options.long:
        PAGE.write_text(page(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
