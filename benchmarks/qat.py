"""Networks trained in few bits: every trained method on the demo's CNN, six on a ResNet-20, Fashion-MNIST.

    python benchmarks/qat.py                  # three seeds on one thread; trains what the cache hasn't
    python benchmarks/qat.py cnn --seed 1     # one network, one seed, for the cache alone
    python benchmarks/qat.py --quick          # a few batches each, to see that all of it runs; writes nothing

Budget on one quiet core: `cnn` 10 hours, `signs` 5, `resnet-20` 30, estimated from the time of a step, that `--quick`
states. Killed at any point, the same command goes on: finished runs are in the cache, an unfinished one has a
checkpoint of its last epoch.

Each run of a network starts from the same trained weights (of `cnn` the shipped ones, of the others those of its
seed), and trains for the same number of epochs at the same rate, full precision too; then the file is written, loaded
without the model's class and scored on the 10,000 test pictures. `signs` is the same CNN with pooling before BatchNorm
and no ReLU, as networks of signs need; its full precision has a hard tanh in place of each sign. First and last layers
stay as they are. Writes results/qat.json and docs/benchmarks/qat.md when all runs are there.
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
SEEDS = range(3)
EPOCHS = 15
DENSE_EPOCHS = 20
RATE = 2e-3
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
        "BinaryConnect": (rule(method("binary_connect")),),
        "BinaryConnect, stochastic": (rule(method("binary_connect", "stochastic = true")),),
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


@dataclass(frozen=True)
class Some:
    """The first few batches of others, for a quick run."""

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
    if network == "cnn":
        return fashion_cnn.fashion_cnn()
    if network == "signs":
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
    if network == "cnn":
        return fashion_cnn.trained()
    if quick:
        lilliput.fit(model, Some(fashion_mnist.train_augmented(), QUICK), options=options(seed, None))
        return model.eval()
    path = folder() / f"{network}-{seed}-{key(network, seed, DENSE_EPOCHS)}.safetensors"
    if not path.exists():
        going = path.with_suffix(".training")
        lilliput.fit(model, fashion_mnist.train_augmented(), epochs=DENSE_EPOCHS, options=options(seed, going))
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
        going.unlink(missing_ok=True)
    model.load_state_dict(load_file(path))
    return model.eval()


def folder() -> Path:
    """Returns the directory of the cache in which runs are kept."""
    path = cache_directory() / "qat"
    path.mkdir(parents=True, exist_ok=True)
    return path


def key(*parts: Any) -> str:
    """Returns a name for what a run depends on."""
    text = json.dumps([*parts, EPOCHS, DENSE_EPOCHS, RATE], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run(network: str, name: str, seed: int, quick: bool) -> dict[str, Any]:
    """Trains one network by one method, writes its file, and scores that.

    Returns:
        Accuracy in per cent of the file, its bytes, whether it computes exactly what was trained, and seconds.
    """
    model = dense(network, seed, quick)
    if network == "signs" and name != "full precision":
        for module in [child for child in model.named_children() if isinstance(child[1], nn.Hardtanh)]:
            setattr(model, module[0], nn.Identity())
    phases = RUNS[network][name]
    start, steps = time.perf_counter(), 0
    data: Any = fashion_mnist.train_augmented()
    if quick:
        data = Some(data, QUICK)
    calibration = [images for images, _ in Some(fashion_mnist.validation(), 2)]
    for number, text in enumerate(phases):
        lilliput.attach(model, lilliput.Recipe.loads(text), calibration)
        path = folder() / f"{key(network, name, seed, phases)}-{number}.training"
        epochs = 1 if quick else EPOCHS // len(phases) + (number == 0) * (EPOCHS % len(phases))
        lilliput.fit(model, data, epochs=epochs, options=options(seed, None if quick else path))
        steps += epochs * len(data)
    seconds = time.perf_counter() - start
    model.eval()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "net.safetensors"
        size = lilliput.pack(model).save(path)
        loaded = lilliput.load(path)
        # Bit for bit only as long as no dead channel is cut, which changes the order of sums.
        whole, images = lilliput.load(lilliput.pack(model, remove_dead=False)), calibration[0]
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


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns means over the seeds, and the standard error of the accuracy."""
    accuracy = [row["accuracy"] for row in rows]
    error = statistics.stdev(accuracy) / math.sqrt(len(accuracy)) if len(accuracy) > 1 else 0.0
    return {
        "accuracy": statistics.mean(accuracy),
        "standard_error": error,
        "bytes": statistics.mean(row["bytes"] for row in rows),
        "same": all(row["same"] for row in rows),
        "seconds": statistics.mean(row["seconds"] for row in rows),
    }


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Returns the result as Markdown."""
    lines = [
        "# Networks trained in few bits: `python benchmarks/qat.py`",
        "",
        f"Fashion-MNIST, {len(SEEDS)} seeds, {EPOCHS} epochs each from the same trained weights; test accuracy of the",
        "file in per cent with its standard error over the seeds. The 10,000 pictures alone give one of 0.26.",
    ]
    for network, runs in found.items():
        lines += [
            "",
            f"## {network}",
            "",
            "| | accuracy | less than full precision | file |",
            "| --- | --- | --- | --- |",
        ]
        full = runs["full precision"]["accuracy"]
        for name, row in runs.items():
            lines.append(
                f"| {name} | {row['accuracy']:.2f} +- {row['standard_error']:.2f} | {full - row['accuracy']:.2f} "
                f"| {row['bytes'] / 1000:,.1f} kB |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is asked for; writes the table once everything is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(RUNS)}; all if none is given")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--quick", action="store_true", help="a few batches each; nothing is written")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    networks, seeds = asked.networks or list(RUNS), SEEDS if asked.seed is None else [asked.seed]
    unknown = set(networks) - set(RUNS)
    if unknown:
        parser.error(f"no network {sorted(unknown)[0]!r}; there is {', '.join(RUNS)}")
    if asked.quick:
        for network in networks:
            for name in RUNS[network]:
                row = run(network, name, 0, quick=True)
                print(f"{network:10} {name:26} {row['bytes']:>10,} bytes  file as trained: {row['same']}  "
                      f"{row['step']:.2f} s a step", flush=True)  # fmt: skip
        return
    for network in networks:
        for name in RUNS[network]:
            for seed in seeds:
                print(network, name, seed, json.dumps(known(network, name, seed)), flush=True)
    if asked.networks or asked.seed is not None:
        return
    found = {
        network: {name: summary([known(network, name, seed) for seed in SEEDS]) for name in RUNS[network]}
        for network in RUNS
    }
    machine = {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    settings = {"epochs": EPOCHS, "dense_epochs": DENSE_EPOCHS, "rate": RATE, "recipes": RUNS}
    RESULT.write_text(json.dumps({"machine": machine, "settings": settings, "runs": found}, indent=1) + "\n")
    DOCUMENT.write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
