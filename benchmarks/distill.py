"""Distillation of a ResNet-20 into small students on Fashion-MNIST, with a tenth of the labels.

    python benchmarks/distill.py              # an hour and a half on one quiet core; goes on where it stopped
    python benchmarks/distill.py --quick      # two minutes: few pictures, one seed, one student; writes nothing
    python benchmarks/distill.py --finished   # the cases that are there already

The teacher is trained on all 50,000 training pictures; students see the first tenth of these alone, three times, with
the same optimizer, seeds and order for every method. Batches of 16 and the rate are those of 16, 32 and 64 and of
2e-3 and 5e-3 that served plain training best on validation pictures. A teacher can also make use of pictures that
nobody labelled: "without labels" is logits and attention over 15,000 pictures seen once, as many steps as for the
others, by the teacher's outputs alone; "all pictures" is the same over all 50,000, three times, in batches of 64, and
"plain, as long" plain training over the labelled tenth as many times as gives the same steps. Test accuracy, mean of
three seeds with its standard error.

Beside it Hinton, Vinyals and Dean's test (2015, arXiv 1503.02531): one class is left out of the transfer set, and the
student learns it from the softened outputs for the others alone; "bias" raises that class's bias until as many pictures
get it as there are, which needs their number, but no label.
"""

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import fashion_mnist
import lilliput
import resumed
from lilliput.distill.attention import Attention
from lilliput.distill.hints import Hints
from lilliput.distill.logits import Logits
from lilliput.distill.relation import Relation
from lilliput.nets.mobilenet import MobileNet
from lilliput.nets.resnet import ResNet
from lilliput.train.fit import FitOptions

RESULT = Path(__file__).parent / "results" / "distill.json"
SHAPE: dict[str, Any] = {"num_classes": 10, "channels": 1, "size": 28}
TEACHER = ResNet(20, "cifar", **SHAPE)
GROUPS = ("layer1", "layer2", "layer3")

STUDENTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "ResNet-8, half as wide": (ResNet(8, "cifar", 0.5, **SHAPE), GROUPS),
    "MobileNet, an eighth as wide": (MobileNet(0.125, 5, **SHAPE), ("block1", "block3", "block5")),
}
"""Each with the layers whose maps are as large as those of the teacher's groups."""

KD = Logits(temperature=4.0, weight=0.9)
HARD = Logits(weight=0.0)
FIRST = ("plain", "logits + attention", "all pictures", "plain, as long", "without labels", "logits")
METHODS = (*FIRST, "attention", "gradient attention", "hints", "relation")
"""The most telling first."""


@dataclass(frozen=True)
class Settings:
    """How much is done.

    Attributes:
        teacher: epochs of the teacher.
        epochs: of the students.
        pictures: that the students see, with labels.
        batch: of the students.
        attention: weight of the distance of maps.
        seeds: of the students.
        students: how many of `STUDENTS`.
        methods: which.
        rate: highest learning rate of AdamW, of all.
        missing: class left out of the transfer set in Hinton's test.
        temperature: in that test, in which only the teacher's outputs count.
        limit: most training pictures of the teacher, and of a student that needs no labels.
        long_batch: of the students that see as much as that.
    """

    teacher: int = 4
    epochs: int = 3
    pictures: int = 5000
    batch: int = 16
    attention: float = 100.0
    seeds: tuple[int, ...] = (0, 1, 2)
    students: int = 2
    methods: tuple[str, ...] = METHODS
    rate: float = 5e-3
    missing: int = 8
    temperature: float = 8.0
    limit: int = 50_000
    long_batch: int = 64


@dataclass(frozen=True)
class Schooling:
    """What the teacher depends on; see `Settings`."""

    epochs: int
    pictures: int
    rate: float


FULL = Settings()
QUICK = Settings(1, 1, 1000, seeds=(0,), students=1, methods=("plain", "logits + attention"), limit=4000)


class Pictures:
    """Training pictures in a new order each time, from torch's generator; without augmentation."""

    def __init__(self, count: int, size: int = 64, without: int | None = None) -> None:
        images, labels = fashion_mnist.load("train")
        kept = labels[:count] != (-1 if without is None else without)
        self.images, self.labels, self.size = images[:count][kept], labels[:count][kept], size

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in torch.randperm(len(self.labels)).split(self.size):
            yield self.images[indices], self.labels[indices]


def losses(method: str, layers: tuple[str, ...], settings: Settings) -> list[Any]:
    """Returns the losses of a method, the usual weights of the papers but for attention's, for longer runs."""
    attention = Attention(layers, GROUPS, weight=settings.attention)
    return {
        "logits": [KD],
        "attention": [HARD, attention],
        "gradient attention": [HARD, Attention(form="gradient", weight=1.0)],
        "hints": [KD, Hints(layers[1:2], GROUPS[1:2])],
        "relation": [KD, Relation(weight=25.0)],
        "logits + attention": [KD, attention],
        "without labels": [Logits(temperature=KD.temperature, weight=1.0), attention],
        "all pictures": [Logits(temperature=KD.temperature, weight=1.0), attention],
    }[method]


def teacher(settings: Settings) -> nn.Module:
    """Returns the teacher, trained once and kept."""

    def train(model: nn.Module, checkpoint: Path) -> None:
        options = FitOptions(learning_rate=settings.rate, progress=False, checkpoint=checkpoint, every=50)
        lilliput.fit(model, Pictures(settings.limit, 128), epochs=settings.teacher, options=options)

    torch.manual_seed(0)
    place = resumed.place("distill", Schooling(settings.teacher, settings.limit, settings.rate))
    return resumed.network(place / "teacher.safetensors", TEACHER.build(), train)


def student(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = STUDENTS[name][0].build()
    return model


def taught(name: str, method: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Trains one student by one method."""
    model, options = student(name, seed), FitOptions(learning_rate=settings.rate, seed=seed, progress=False)
    data, epochs = Pictures(settings.pictures, settings.batch), settings.epochs
    if method == "without labels":
        data, epochs = Pictures(settings.pictures * epochs, settings.batch), 1
    if method == "all pictures":
        data = Pictures(settings.limit, settings.long_batch)
    if method == "plain, as long":
        data = Pictures(settings.pictures, settings.long_batch)
        epochs = epochs * settings.limit // settings.pictures
    if method.startswith("plain"):
        lilliput.fit(model, data, epochs=epochs, options=options)
    else:
        chosen = losses(method, STUDENTS[name][1], settings)
        lilliput.fit(model, data, epochs=epochs, loss=chosen, teacher=teacher(settings), options=options)
    return {"student": name, "method": method, "seed": seed, "accuracy": fashion_mnist.test_accuracy(model)}


def one_class_missing(seed: int, settings: Settings) -> dict[str, Any]:
    """Hinton's test, with the first student."""
    name = next(iter(STUDENTS))
    model = student(name, seed)
    data = Pictures(settings.pictures, settings.batch, without=settings.missing)
    loss = Logits(temperature=settings.temperature, weight=1.0)
    options = FitOptions(learning_rate=settings.rate, seed=seed, progress=False)
    lilliput.fit(model, data, epochs=settings.epochs, loss=loss, teacher=teacher(settings), options=options)
    model.eval()
    images, labels = fashion_mnist.load("test")
    with torch.no_grad():
        scores = torch.cat([model(part) for part in images.split(500)])
    wanted = labels == settings.missing
    others = scores.clone()
    others[:, settings.missing] = -math.inf
    # The class's score less the best of the others, largest first: the bias lets as many through as there are.
    lead = (scores[:, settings.missing] - others.amax(1)).sort(descending=True).values
    raised = scores.clone()
    raised[:, settings.missing] -= lead[int(wanted.sum()) - 1] - 1e-6
    row: dict[str, Any] = {"seed": seed}
    for what, found in (("as trained", scores), ("with bias", raised)):
        right = found.argmax(1) == labels
        row[what] = {"all": right.double().mean().item(), "missing class": right[wanted].double().mean().item()}
    return row


def spread(values: list[float]) -> str:
    """Returns mean and standard error in per cent.

    >>> spread([0.5, 0.6, 0.7])
    '60.00 % (5.77)'
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} % ({100 * error:.2f})"


def gain(rows: list[dict[str, Any]], name: str, method: str) -> str:
    """Returns how far a method is above plain training, in points, and in standard errors of the difference."""
    plain, own = (
        [row["accuracy"] for row in rows if (row["student"], row["method"]) == (name, m)] for m in ("plain", method)
    )
    difference = statistics.mean(own) - statistics.mean(plain)
    if len(own) < 2:
        return f"{100 * difference:+.2f}"
    error = math.sqrt((statistics.variance(own) + statistics.variance(plain)) / len(own))
    return f"{100 * difference:+.2f} ({difference / max(error, 1e-9):+.1f} errors)"


def table(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    lines = [f"Teacher: {100 * result['teacher']:.2f} %.", ""]
    for name in dict.fromkeys(row["student"] for row in result["students"]):
        own = [row for row in result["students"] if row["student"] == name]
        lines += [f"| {name} | test accuracy | above plain, points |", "| --- | --- | --- |"]
        for method in dict.fromkeys(row["method"] for row in own):
            values = [row["accuracy"] for row in own if row["method"] == method]
            lines.append(f"| {method} | {spread(values)} | {gain(own, name, method)} |")
        lines.append("")
    if not result["missing"]:
        return "\n".join(lines)
    lines += ["| one class left out | all classes | that class |", "| --- | --- | --- |"]
    for what in ("as trained", "with bias"):
        cells = [spread([row[what][c] for row in result["missing"]]) for c in ("all", "missing class")]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Does what isn't done yet, prints the tables and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures, one seed, one student; writes nothing")
    parser.add_argument("--finished", action="store_true", help="write what is measured already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = QUICK if options.quick else FULL
    place = resumed.place("distill", settings)
    rows = []
    cases = list(itertools.product(settings.seeds, list(STUDENTS)[: settings.students], settings.methods))
    order = list(STUDENTS)
    for seed, name, method in sorted(cases, key=lambda case: (case[2] not in FIRST, order.index(case[1]))):
        path = place / f"{name}-{method}-{seed}.json".replace(" ", "_")
        if options.finished and not path.is_file():
            continue
        rows.append(resumed.result(path, lambda n=name, m=method, s=seed: taught(n, m, s, settings)))  # type: ignore[misc]
        print(json.dumps(rows[-1]), flush=True)
    missing = []
    for seed in settings.seeds:
        if options.finished and not (place / f"missing-{seed}.json").is_file():
            continue
        missing.append(resumed.result(place / f"missing-{seed}.json", lambda s=seed: one_class_missing(s, settings)))  # type: ignore[misc]
        print(json.dumps(missing[-1]), flush=True)
    result = {
        "machine": resumed.machine(),
        "settings": dataclasses.asdict(settings),
        "teacher": fashion_mnist.test_accuracy(teacher(settings)),
        "students": rows,
        "missing": missing,
    }
    print(table(result))
    if not options.quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
