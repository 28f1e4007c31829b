"""Twice as fast, asked for: a latency budget of 0.5x on three networks, and what it costs, without any training.

    python benchmarks/latency.py [--latency 0.5x] [--only demo resnet18 efficientnet_lite0]

Each network is planned for (`lilliput plan --latency`), compressed, loaded in `native`, and measured again in turns
beside the uncompressed network in ONNX Runtime, one thread, a batch of one; the median of three such measurements
counts. The demo's CNN loses accuracy on Fashion-MNIST's test pictures; EfficientNet-Lite0 has its ImageNet weights,
20 labelled pictures and crops of them; ResNet-18 has pytorchcv's architecture with random weights, so that only the
cosine of its logits means anything. One to two minutes of one processor a network; results are kept a network at a
time. Writes `benchmarks/results/latency.json`.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import lilliput
from lilliput.run.clock import race
from lilliput.run.measure import reference
from lilliput.search.plan import Options

RESULTS = Path(__file__).parent / "results" / "latency.json"


def demo():
    """The demo's CNN, 128 pictures of its training data, and 2,000 of the test split."""
    from fashion_cnn import trained
    from fashion_mnist import load

    images, _ = load("train")
    pictures, classes = load("test")
    return trained(), [images[:128]], pictures[:2000], classes[:2000]


def resnet18():
    """ResNet-18 of pytorchcv, random weights, random pictures; norms as after some batches of training."""
    from pytorchcv.models.resnet import resnet18 as build

    torch.manual_seed(0)
    model = build()
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(4, 3, 224, 224))
    model.eval()
    return model, [torch.randn(4, 3, 224, 224)], torch.randn(16, 3, 224, 224), None


def efficientnet_lite0():
    """EfficientNet-Lite0 with its weights, crops of the first ten pictures, and all twenty."""
    from real_data import crops, imagenet_pictures
    from real_models import efficientnet_lite0 as build

    images, labels = imagenet_pictures()
    return build().eval(), [crops(8, range(10), seed=1)], images, labels


NETWORKS = {"demo": demo, "resnet18": resnet18, "efficientnet_lite0": efficientnet_lite0}


@torch.no_grad()
def logits(model, pictures):
    return torch.cat([model(batch) for batch in pictures.split(16)])


def measure(name, latency):
    """One network: planned, compressed, measured again."""
    model, data, pictures, classes = NETWORKS[name]()
    begun = time.process_time()
    recipe = lilliput.plan(model, lilliput.Budget(latency=latency), data, options=Options(batches=1, trials=2))
    planned = time.process_time() - begun
    artifact = lilliput.compress(model, recipe, data)
    net = lilliput.load(artifact)
    whole = reference(lilliput.compress(model, lilliput.Recipe(), example=data[0]))
    one = pictures[:1]
    calls = {"whole": lambda: whole(one), "net": lambda: net(one)}
    parts = [(found["net"] / found["whole"], found) for found in (race(calls, rounds=9) for _ in range(3))]
    parts.sort(key=lambda part: part[0])
    part, seconds = parts[1]
    before, after = logits(model, pictures), logits(lilliput.load(artifact, engine="dense"), pictures)
    row = {
        "network": name,
        "asked": latency,
        "part": round(part, 3),
        "parts": [round(part, 3) for part, _ in parts],
        "uncompressed ms": round(seconds["whole"] * 1e3, 3),
        "compressed ms": round(seconds["net"] * 1e3, 3),
        "way": net.chosen.way,
        "channels cut": sum(cut.share > 0 for cut in recipe.cuts),
        "layers with floats": sum(not rule.steps for rule in recipe.rules),
        "cosine": round(float(functional.cosine_similarity(before, after).mean()), 4),
        "agreement": round(float((before.argmax(1) == after.argmax(1)).float().mean()), 4),
        "planned in s": round(planned, 1),
    }
    if classes is not None:
        for word, found in (("before", before), ("after", after)):
            row[f"accuracy {word}"] = round(float((found.argmax(1) == classes).float().mean()), 4)
    return row


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", default="0.5x")
    parser.add_argument("--only", nargs="+", default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {row["network"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}
    for name in options.only:
        rows[name] = measure(name, options.latency)
        print(json.dumps(rows[name]), flush=True)
        about = {"command": "python benchmarks/latency.py", "torch": torch.__version__, "machine": platform.machine()}
        RESULTS.write_text(json.dumps({**about, "threads": 1, "rows": list(rows.values())}, indent=1) + "\n")
    table = Table(*list(dict.fromkeys(key for row in rows.values() for key in row)))
    for row in rows.values():
        table.add_row(*(str(row.get(column.header, "")) for column in table.columns))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
