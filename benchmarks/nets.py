"""Compact networks trained for the same few epochs on Fashion-MNIST, and the same at 8 and 4 bits.

    python benchmarks/nets.py                 # half an hour on one quiet core; goes on where it stopped
    python benchmarks/nets.py --quick         # two minutes: few pictures, two networks; writes nothing

Each network of `nets/`, made narrow enough for 28 x 28 pictures, is trained on the 50,000 training pictures without
augmentation, AdamW, seed 0; SqueezeNet, which has no BatchNorm, by a smaller rate, since the others' kills it. Then the
weights are rounded to 8 and 4 bits, one scale a row, without training after it; the file is loaded without the class
and scored on the 10,000 test pictures (standard error about 0.3 points). The survey warns that compact networks
compress worse than large ones: VGG, ResNet and LeNet are there to compare. Latency is that of one picture through the
uncompressed module, the median CPU time of many, one thread, all networks in turn: quote ratios.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import fashion_mnist
import lilliput
import resumed
from distill import SHAPE, Pictures
from lilliput import Recipe, Rule
from lilliput.graph.count import counts_of
from lilliput.nets.lbcnn import LBCNN
from lilliput.nets.lenet import LeNet
from lilliput.nets.mobilenet import MobileNet
from lilliput.nets.pvanet import PVANet
from lilliput.nets.resnet import ResNet
from lilliput.nets.shufflenet import ShuffleNet
from lilliput.nets.squeezenet import SqueezeNet
from lilliput.nets.vgg import VGG
from lilliput.quantize.uniform import Uniform
from lilliput.train.fit import FitOptions

RESULT = Path(__file__).parent / "results" / "nets.json"

NETS: dict[str, Any] = {
    "MobileNet 0.25": MobileNet(0.25, **SHAPE),
    "ShuffleNet 0.25, 3 groups": ShuffleNet(3, 0.25, **SHAPE),
    "SqueezeNet 1.1, 0.5": SqueezeNet("1.1", 0.5, **SHAPE),
    "PVANet 0.125": PVANet(width=0.125, **SHAPE),
    "LBCNN, 6 blocks": LBCNN(6, 16, 32, **SHAPE),
    "ResNet-20, half as wide": ResNet(20, "cifar", 0.5, **SHAPE),
    "VGG-11, an eighth as wide": VGG(11, "cifar", 0.125, **SHAPE),
    "LeNet-5": LeNet("5", **SHAPE),
}

RATES = {"SqueezeNet 1.1, 0.5": 5e-4}
"""Of networks that the common rate kills: SqueezeNet has no BatchNorm, and a ReLU after its last layer."""


@dataclass(frozen=True)
class Settings:
    """How much is done.

    Attributes:
        epochs: over the training pictures.
        pictures: how many of these.
        rate: highest learning rate of AdamW.
        nets: names of `NETS`.
        bits: of the compressed weights.
        rounds: of measuring latency, each with every network.
    """

    epochs: int = 2
    pictures: int = 50_000
    rate: float = 3e-3
    nets: tuple[str, ...] = tuple(NETS)
    bits: tuple[int, ...] = (8, 4)
    rounds: int = 15


FULL = Settings()
QUICK = Settings(1, 2000, nets=("ShuffleNet 0.25, 3 groups", "LBCNN, 6 blocks"), rounds=3)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = NETS[name].build()
    return model


def trained(name: str, settings: Settings) -> nn.Module:
    """Returns a network, trained once and kept."""
    settings = dataclasses.replace(settings, rate=RATES.get(name, settings.rate))

    def train(model: nn.Module, checkpoint: Path) -> None:
        options = FitOptions(learning_rate=settings.rate, clip=1.0, progress=False, checkpoint=checkpoint, every=50)
        lilliput.fit(model, Pictures(settings.pictures, 128), epochs=settings.epochs, options=options)

    only = dataclasses.replace(settings, nets=(name,), bits=(), rounds=0)
    return resumed.network(resumed.place("nets", only) / "net.safetensors", built(name), train)


def measured(name: str, settings: Settings) -> dict[str, Any]:
    """Counts, accuracy, and both again from files."""
    model = trained(name, settings)
    row: dict[str, Any] = {"net": name, **dataclasses.asdict(counts_of(NETS[name]))}
    row["accuracy"] = fashion_mnist.test_accuracy(model)
    for bits in settings.bits:
        recipe = Recipe((Rule(steps=(Uniform(bits=bits, per="row"),)),))
        artifact = lilliput.compress(model, recipe, example=torch.zeros(1, 1, 28, 28))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.safetensors"
            size = artifact.save(path)
            row[f"{bits} bits"] = {"bytes": size, "accuracy": fashion_mnist.test_accuracy(lilliput.load(path))}
    return row


@torch.no_grad()
def latencies(settings: Settings) -> dict[str, float]:
    """Returns the median milliseconds of one picture, by network; their rounds are interleaved."""
    models = {name: trained(name, settings) for name in settings.nets}
    picture, found = torch.randn(1, 1, 28, 28), {name: [] for name in models}  # type: ignore[var-annotated]
    for _ in range(settings.rounds):
        for name, model in models.items():
            model(picture)
            start = time.thread_time()
            for _ in range(5):
                model(picture)
            found[name].append((time.thread_time() - start) / 5)
    return {name: 1e3 * statistics.median(times) for name, times in found.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as Markdown; drops are in points below the uncompressed network."""
    bits = [key for key in rows[0] if key.endswith(" bits")]
    head = ["network", "parameters", "MACs", "ms", "accuracy", *(f"{b}: {w}" for b in bits for w in ("bytes", "drop"))]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in rows:
        cells = [row["net"], f"{row['parameters']:,}", f"{row['macs']:,}", f"{row['milliseconds']:.2f}"]
        cells.append(f"{100 * row['accuracy']:.2f} %")
        for key in bits:
            cells += [f"{row[key]['bytes']:,}", f"{100 * (row['accuracy'] - row[key]['accuracy']):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Does what isn't done yet, prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures, two networks; writes nothing")
    parser.add_argument("--finished", action="store_true", help="write what is measured already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = QUICK if options.quick else FULL
    rows = []
    for name in settings.nets:
        rate = RATES.get(name, settings.rate)
        place = resumed.place("nets", dataclasses.replace(settings, nets=(), rounds=0, rate=rate))
        path = place / f"{name}.json".replace(" ", "_").replace("/", "_")
        if options.finished and not path.is_file():
            continue
        rows.append(resumed.result(path, lambda n=name: measured(n, settings)))  # type: ignore[misc]
        print(json.dumps(rows[-1]), flush=True)
    settings = dataclasses.replace(settings, nets=tuple(row["net"] for row in rows))
    for name, milliseconds in latencies(settings).items():
        next(row for row in rows if row["net"] == name)["milliseconds"] = milliseconds
    print(table(rows))
    if not options.quick:
        result = {"machine": resumed.machine(), "settings": dataclasses.asdict(settings), "nets": rows}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
