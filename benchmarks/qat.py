"""Networks trained in few bits: every trained method on the demo's CNN, six on a ResNet-20, Fashion-MNIST.

    python benchmarks/qat.py                  # trains what the cache hasn't, then writes the tables
    python benchmarks/qat.py cnn --seed 1     # one network, one seed
    python benchmarks/qat.py --tables         # writes the tables of what is there, and trains nothing
    python benchmarks/qat.py --quick          # a few batches each, to see that all of it runs; writes nothing

Budget on one quiet core: `cnn` a quarter of an hour a seed, `signs` 5 minutes, `resnet-20` 25: two hours and a
quarter for three seeds; `"cnn, long"` and `"signs, long"`, some methods of these with three times the training, 8
minutes more a seed each. An epoch is 100 batches of 128 of the 50,000 training pictures, drawn anew, since all of them
for 15 epochs would take 45 hours. Killed at any point, the same command goes on: finished runs are in the cache, an
unfinished one has a checkpoint of its last epoch. The tables state of how many seeds each figure is.

Each run of a network starts from the same trained weights (of `cnn` the shipped ones, of the others those of its
seed), and trains for the same number of epochs at the same rate, full precision too; then the file is written, loaded
without the model's class and scored on the 10,000 test pictures. `signs` is the same CNN with pooling before BatchNorm
and no ReLU, as networks of signs need; its full precision has a hard tanh in place of each sign. First and last layers
stay as they are. Writes results/qat.json and docs/benchmarks/qat.md after each run.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import fashion_cnn
import fashion_mnist
import lilliput
from lilliput.core.method import find
from lilliput.train.fit import FitOptions
from real_data import cache_directory

RESULT = Path(__file__).parent / "results" / "qat.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks" / "qat.md"
VERDICT = "## Beside the targets"
"""Where the page's own words begin, which are kept."""
SEEDS = range(3)
EPOCHS = {"cnn": 10, "signs": 10, "resnet-20": 5, "cnn, long": 30, "signs, long": 30}
DENSE_EPOCHS = 10
BATCHES = 100
"""Of an epoch."""
RATE = 2e-3
ORDER = [("cnn", 0), ("signs", 0), ("resnet-20", 0), ("cnn", 1), ("cnn", 2), ("signs", 1), ("signs", 2)]
ORDER += [("resnet-20", 1), ("resnet-20", 2)]
ORDER += [(network, seed) for seed in range(3) for network in ("signs, long", "cnn, long")]
"""Networks and seeds, the most telling ones first."""
QUICK = 4
"""Batches of a quick run."""

ENDS = 'skip = "first and last"'


def rule(steps: str = "", activations: str = "", more: str = ENDS) -> str:
    """Returns a recipe of one rule; steps and activations as TOML holds them."""
    lines = ["[[rule]]", more, f"steps = [{steps}]"]
    return "\n".join([*lines, f"activations = {activations}"] if activations else lines)


def method(path: str, more: str = "") -> str:
    """Returns a step in TOML."""
    return f'{{method = "quantize/{path}"{", " + more if more else ""}}}'


DOREFA = rule(method("dorefa", "bits = 1"), '"dorefa:2"')
LEARNED = '{method = "quantize/activations/uniform", bits = 2, form = "unsigned", learned = true}'
TWO_BITS = rule(method("learned_step", "bits = 2"), LEARNED)

WEIGHTS = {
    "BWN": rule(method("binary")),
    "XNOR-Net, weights": rule(method("xnor")),
    "TWN": rule(method("ternary")),
    "TTQ": rule(method("trained_ternary")),
    "DoReFa, 1 bit": rule(method("dorefa", "bits = 1")),
    "INQ, 5 bits": rule(method("incremental"), more='schedule = {method = "quantize/portions"}'),
}
"""The six of both networks."""

# What each phase trains with; the epochs are shared out evenly.
RUNS: dict[str, dict[str, tuple[str, ...]]] = {
    "cnn": {
        "full precision": ("",),
        **{name: (text,) for name, text in WEIGHTS.items()},
        # Beside trained weights of some hundredths, the paper's limit of 1 would make stochastic signs mere coins.
        "BinaryConnect": (rule(method("binary_connect", "limit = 0.1")),),
        "BinaryConnect, stochastic": (rule(method("binary_connect", "limit = 0.1, stochastic = true")),),
        "INQ, 3 bits": (rule(method("incremental", "bits = 3"), more='schedule = {method = "quantize/portions"}'),),
        "QNN, 4 bits": (rule(method("qnn", "bits = 4")),),
        "LSQ, 2 bits": (rule(method("learned_step", "bits = 2")),),
        "ADMM's sets, +-4": (rule(method("admm")),),
        "uniform, 2 bits": (rule(method("uniform", "bits = 2")),),
        "DoReFa, W1 A2": (DOREFA,),
        "QNN, W1 A2": (rule(method("binary_network"), '"uniform:2:unsigned:static:0.75"'),),
        "BWN, A8": (rule(method("binary"), '"uniform:8"'),),
        "LSQ, W2 A2, joint": (TWO_BITS,),
        "LSQ, W2 A2, maps first": (rule("", LEARNED), TWO_BITS),
        "log, W4 A4": (
            rule(
                method("qnn", 'bits = 4, spacing = "log"'), '{method = "quantize/activations/log", calibrated = true}'
            ),
        ),
        "Ristretto, W4 A4": (rule(method("fixed_point", "bits = 4"), '"fixed_point:4"'),),
    },
    "signs": {
        "full precision": ("",),
        "BNN": (rule(method("binary_network"), '"binary"'),),
        "XNOR-Net": (rule(method("xnor"), '"binary:true"'),),
        "XNOR-Net without K": (rule(method("xnor"), '"binary"'),),
        "TNN's teacher": (rule("", '"ternary:0.5:true"'),),
    },
    "resnet-20": {"full precision": ("",), **{name: (text,) for name, text in WEIGHTS.items()}},
}
# What more training is worth to those that start farthest from their weights.
RUNS["cnn, long"] = {name: RUNS["cnn"][name] for name in ("full precision", "BWN", "TWN")}
RUNS["signs, long"] = {name: RUNS["signs"][name] for name in ("full precision", "BNN", "XNOR-Net")}


@dataclass(frozen=True)
class Some:
    """The first batches of others, as an epoch."""

    whole: Any
    count: int

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.whole):
            if number == self.count:
                return
            yield batch

    def __len__(self) -> int:
        return self.count


def signs_cnn() -> nn.Module:
    """Returns the CNN in the order that signs need: convolution, pooling, BatchNorm, and a hard tanh."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 1
    for number, outputs in enumerate((16, 32, 64), start=1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
        layers[f"tanh{number}"] = nn.Hardtanh()
        inputs = outputs
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(64 * 3 * 3, 512, bias=False)
    layers["norm4"] = nn.BatchNorm1d(512)
    layers["tanh4"] = nn.Hardtanh()
    layers["fc2"] = nn.Linear(512, 10)
    return nn.Sequential(layers)


def built(network: str) -> nn.Module:
    """Returns a network that isn't trained."""
    if network.startswith("cnn"):
        return fashion_cnn.fashion_cnn()
    if network.startswith("signs"):
        return signs_cnn()
    model: nn.Module = find("nets", "resnet")(depth=20, form="cifar", num_classes=10, channels=1, size=28).build()
    return model


def options(seed: int, path: Path | None) -> FitOptions:
    """Returns how everything is trained: AdamW by its default course."""
    return FitOptions(learning_rate=RATE, weight_decay=0.02, seed=seed, checkpoint=path, progress=False)


def dense(network: str, seed: int, quick: bool) -> nn.Module:
    """Returns the trained network that the runs of this seed start from."""
    torch.manual_seed(seed)
    model = built(network)
    network = network.removesuffix(", long")
    if network == "cnn":
        return fashion_cnn.trained()
    data = Some(fashion_mnist.train_augmented(), QUICK if quick else BATCHES)
    if quick:
        lilliput.fit(model, data, options=options(seed, None))
        return model.eval()
    path = folder() / f"{network}-{seed}-{key(network, seed, DENSE_EPOCHS)}.safetensors"
    if not path.exists():
        going = path.with_suffix(".training")
        lilliput.fit(channels_last(model), data, epochs=DENSE_EPOCHS, options=options(seed, going))
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
        going.unlink(missing_ok=True)
    model.load_state_dict(load_file(path))
    return model.eval()


def channels_last(model: nn.Module) -> nn.Module:
    """Returns the model with its convolutions laid out as they run fastest here, by a fifth."""
    return model.to(memory_format=torch.channels_last)


def folder() -> Path:
    """Returns the directory of the cache in which runs are kept."""
    path = cache_directory() / "qat"
    path.mkdir(parents=True, exist_ok=True)
    return path


def key(network: str, *parts: Any) -> str:
    """Returns a name for what a run depends on."""
    text = json.dumps([network, *parts, EPOCHS[network], DENSE_EPOCHS, BATCHES, RATE], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run(network: str, name: str, seed: int, quick: bool) -> dict[str, Any]:
    """Trains one network by one method, writes its file, and scores that.

    Returns:
        Accuracy in per cent of the file, its bytes, whether it computes exactly what was trained, and seconds.
    """
    model = dense(network, seed, quick)
    if network.startswith("signs") and name != "full precision":
        for module in [child for child in model.named_children() if isinstance(child[1], nn.Hardtanh)]:
            setattr(model, module[0], nn.Identity())
    phases = RUNS[network][name]
    start, steps = time.perf_counter(), 0
    data = Some(fashion_mnist.train_augmented(), QUICK if quick else BATCHES)
    channels_last(model)
    calibration = [images for images, _ in Some(fashion_mnist.validation(), 2)]
    for number, text in enumerate(phases):
        lilliput.attach(model, lilliput.Recipe.loads(text), calibration)
        path = folder() / f"{key(network, name, seed, phases)}-{number}.training"
        count, rest = divmod(EPOCHS[network], len(phases))
        epochs = 1 if quick else count + (number == 0) * rest
        lilliput.fit(model, data, epochs=epochs, options=options(seed, None if quick else path))
        steps += epochs * len(data)
    seconds = time.perf_counter() - start
    model.eval().to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "net.safetensors"
        size = lilliput.pack(model).save(path)
        loaded = lilliput.load(path)
        # Bit for bit only as long as no dead channel is cut, which changes the order of sums.
        whole, images = lilliput.load(lilliput.pack(model, remove_dead=False), engine="dense"), calibration[0]
        with torch.no_grad():
            same = torch.equal(whole(images), model(images))
        accuracy = 0.0 if quick else 100 * fashion_mnist.test_accuracy(loaded)
    return {"accuracy": accuracy, "bytes": size, "same": same, "seconds": seconds, "step": seconds / steps}


def known(network: str, name: str, seed: int) -> dict[str, Any]:
    """Returns what `run` gives, from the cache if it is there."""
    phases = RUNS[network][name]
    path = folder() / f"{key(network, name, seed, phases)}.json"
    if not path.is_file():
        row = run(network, name, seed, quick=False)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(row))
        os.replace(part, path)
        for number in range(len(phases)):
            (folder() / f"{path.stem}-{number}.training").unlink(missing_ok=True)
    return dict(json.loads(path.read_text()))


def there() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns the runs that are in the cache, by network and method, one a seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for network, runs in RUNS.items():
        for name, phases in runs.items():
            paths = [folder() / f"{key(network, name, seed, phases)}.json" for seed in SEEDS]
            rows = [json.loads(path.read_text()) for path in paths if path.is_file()]
            if rows:
                found.setdefault(network, {})[name] = rows
    return found


def mean(values: list[float]) -> str:
    """Returns a mean with its standard error; of one value alone there is none."""
    error = f" +- {statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{error}"


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Returns the result as Markdown; differences are those of each seed to full precision of the same seed."""
    lines = [
        "# Networks trained in few bits: `python benchmarks/qat.py`",
        "",
        f"Fashion-MNIST: {EPOCHS['cnn']} epochs ({EPOCHS['resnet-20']} for ResNet-20, {EPOCHS['signs, long']} if long)",
        f"of {BATCHES} batches of 128 pictures from the same trained weights, full precision too; test accuracy",
        "of the file in per cent, its mean over the seeds and its standard error. The 10,000 pictures alone give an",
        "error of 0.26 for one accuracy; less for differences, on the same pictures. *As trained*: the file, loaded",
        "without the class, gives bit for bit the outputs of the network that was trained.",
    ]
    for network, runs in found.items():
        lines += [
            "",
            f"## {network}",
            "",
            "| | seeds | accuracy | less than full precision | file | as trained |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        full = runs.get("full precision", [])
        for name, rows in runs.items():
            accuracy = mean([row["accuracy"] for row in rows])
            less = mean([one["accuracy"] - row["accuracy"] for one, row in zip(full, rows)]) if full else ""
            size = statistics.mean(row["bytes"] for row in rows)
            same = "yes" if all(row["same"] for row in rows) else "no"
            lines.append(f"| {name} | {len(rows)} | {accuracy} | {less} | {size / 1000:,.1f} kB | {same} |")
    return "\n".join(lines) + "\n"


def write() -> None:
    """Writes the tables of the runs that are there."""
    found = there()
    machine = {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    settings = {"epochs": EPOCHS, "dense_epochs": DENSE_EPOCHS, "batches": BATCHES, "rate": RATE, "recipes": RUNS}
    RESULT.write_text(json.dumps({"machine": machine, "settings": settings, "runs": found}, indent=1) + "\n")
    page = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    start = page.find(VERDICT)
    DOCUMENT.write_text(table(found) + ("" if start < 0 else "\n" + page[start:]))


def quick(networks: list[str]) -> None:
    """Trains a few batches of everything, and says how long a step takes."""
    for network in networks:
        for name in RUNS[network]:
            row = run(network, name, 0, quick=True)
            print(f"{network:10} {name:26} {row['bytes']:>10,} bytes  file as trained: {row['same']}  "
                  f"{row['step']:.2f} s a step", flush=True)  # fmt: skip


def main() -> None:
    """Runs what is asked for; writes the tables after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(RUNS)}; all if none is given")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--tables", action="store_true", help="trains nothing")
    parser.add_argument("--quick", action="store_true", help="a few batches each; nothing is written")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    networks = asked.networks or list(RUNS)
    unknown = set(networks) - set(RUNS)
    if unknown:
        parser.error(f"no network {sorted(unknown)[0]!r}; there is {', '.join(RUNS)}")
    if asked.quick:
        quick(networks)
        return
    for network, seed in [] if asked.tables else ORDER:
        if network not in networks or asked.seed not in {None, seed}:
            continue
        for name in RUNS[network]:
            print(network, name, seed, json.dumps(known(network, name, seed)), flush=True)
            write()
    write()


if __name__ == "__main__":
    main()
