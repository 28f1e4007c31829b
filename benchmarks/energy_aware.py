"""Energy-aware against magnitude pruning on Fashion-MNIST, without retraining: energy left at equal accuracy.

    python benchmarks/energy_aware.py        # some minutes; writes results/energy_aware.json
    python benchmarks/energy_aware.py curves # a minute; only the curves in it

The demo's CNN. A layer's sparsity is the largest of ten for which accuracy on 2,500 validation pictures stays within
0.2 % (absolute) for each layer so far of the dense network's, 1 % after all five, found layer by layer, with the layers
before it as they have become. Rows: magnitude in the model's order, and by falling energy; energy-aware pruning in both
orders, and without restoring. Magnitude at one sparsity for all layers is the plain baseline. A seed draws the 512
calibration pictures, which magnitude needs none of. Accuracy told is that on the other validation pictures; energy is
Eyeriss's, for a batch of 1.

Curves: all layers at one sparsity, six of them, by magnitude and by energy-aware pruning through the layers by falling
energy, with and without restoring; energy is then nearly equal, and accuracy tells. What is saved at an equal accuracy,
half a point and a point below the dense network, lies between two points of a curve, taken as straight there.
"""

import copy
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fashion_cnn
import fashion_mnist
from lilliput.core.layers import weights
from lilliput.core.packed import unpack
from lilliput.graph.fold import fold
from lilliput.hardware.assess import assess
from lilliput.hardware.device import Device
from lilliput.observe.collect import collect
from lilliput.prune.energy_aware import EnergyAware
from lilliput.prune.magnitude import Magnitude
from lilliput.search.layers import by_energy, layers_of

RESULT = Path(__file__).parent / "results" / "energy_aware.json"
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
EVEN = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
DROP = 0.01
DEVICE = Device.load("eyeriss")


@torch.no_grad()
def accuracy(model: nn.Module, pictures: tuple[Tensor, Tensor]) -> float:
    """Part of the pictures that are put into the right class."""
    images, labels = pictures
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500)))
    return right / len(labels)


def energy(model: nn.Module, picture: Tensor) -> float:
    """Of all layers, for one picture."""
    return sum(assess(layer, DEVICE).energy.total for layer in layers_of(model, lambda: model(picture))[0])


def prune(model: nn.Module, name: str, method: Any, images: Tensor) -> None:
    """Prunes one weight in place."""
    weight = next(weight for weight in weights(model) if weight.name == name)
    stats = collect(model, {name: method.needs}, images.split(128))[name] if method.needs else None
    with torch.no_grad():
        weight.parameter.copy_(unpack(method.pack(weight.parameter.detach(), stats)))


def in_order(
    model: nn.Module, order: list[str], kind: Any, images: Tensor, judged: tuple[Tensor, Tensor]
) -> tuple[nn.Module, dict[str, float]]:
    """Goes through the layers, each as sparse as accuracy allows."""
    dense, chosen = accuracy(model, judged), {}
    for place, name in enumerate(order, 1):
        least = dense - DROP * place / len(order)
        for sparsity in reversed(SPARSITIES):
            tried = copy.deepcopy(model)
            prune(tried, name, kind(sparsity), images)
            if accuracy(tried, judged) >= least:
                model, chosen[name] = tried, sparsity
                break
    return model, chosen


def uniform(model: nn.Module, order: list[str], judged: tuple[Tensor, Tensor]) -> tuple[nn.Module, dict[str, float]]:
    """Magnitude pruning at the largest sparsity for all that accuracy allows."""
    least = accuracy(model, judged) - DROP
    for sparsity in reversed(SPARSITIES):
        tried = copy.deepcopy(model)
        for name in order:
            prune(tried, name, Magnitude(sparsity=sparsity), judged[0])
        if accuracy(tried, judged) >= least:
            return tried, dict.fromkeys(order, sparsity)
    return model, {}


def curve(model: nn.Module, order: list[str], kind: Any, images: Tensor, told: tuple[Tensor, Tensor]) -> list[Any]:
    """Accuracy and energy of the network with all layers at each of some sparsities."""
    points = []
    for sparsity in EVEN:
        pruned = copy.deepcopy(model)
        for name in order:
            prune(pruned, name, kind(sparsity), images)
        points.append({"sparsity": sparsity, "accuracy": accuracy(pruned, told), "energy": energy(pruned, told[0][:1])})
    return points


def saved(points: list[Any], dense: dict[str, float], drop: float) -> float:
    """How many times less energy is taken at dense accuracy - drop, between the points around it."""
    wanted = dense["accuracy"] - drop
    line = [(dense["accuracy"], dense["energy"]), *((p["accuracy"], p["energy"]) for p in points)]
    for (high, before), (low, after) in itertools.pairwise(line):
        if low < wanted:
            part = (max(high, wanted) - wanted) / (max(high, wanted) - low)
            return dense["energy"] / (before + part * (after - before))
    return dense["energy"] / line[-1][1]


def curves() -> dict[str, Any]:
    """Magnitude and energy-aware pruning at the same sparsities; three draws of calibration pictures."""
    model = fashion_cnn.trained().eval()
    fold(model, torch.zeros(1, 1, 28, 28))
    images, labels = fashion_mnist.load("validation")
    told = images[:5000], labels[:5000]
    train, _ = fashion_mnist.load("train")
    layers, _ = layers_of(model, lambda: model(images[:1]))
    order = [f"{name}.weight" for name in by_energy(layers, DEVICE)]
    dense = {"energy": energy(model, images[:1]), "accuracy": accuracy(model, told)}
    found: dict[str, Any] = {"dense": dense, "rows": {}}
    for seed in range(3):
        drawn = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:512]]
        runs: dict[str, Any] = {"energy-aware": lambda s: EnergyAware(sparsity=s)}
        runs["energy-aware without restoring"] = lambda s: EnergyAware(sparsity=s, restore=0.0)
        if not seed:
            runs["magnitude"] = lambda s: Magnitude(sparsity=s)
        for row, kind in runs.items():
            points = curve(model, order, kind, drawn, told)
            entry = {"seed": seed, "points": points}
            entry |= {f"saved at {drop:g}": saved(points, dense, drop) for drop in (0.005, 0.01)}
            found["rows"].setdefault(row, []).append(entry)
            print(row, json.dumps(entry), flush=True)
    return found


def main() -> None:
    """Measures all rows for three seeds, prints them and writes them down."""
    if sys.argv[1:] == ["curves"]:
        RESULT.write_text(json.dumps(json.loads(RESULT.read_text()) | {"curves": curves()}, indent=1) + "\n")
        return
    begun = time.perf_counter()
    model = fashion_cnn.trained().eval()
    fold(model, torch.zeros(1, 1, 28, 28))
    images, labels = fashion_mnist.load("validation")
    judged, told = (images[:2500], labels[:2500]), (images[2500:5000], labels[2500:5000])
    train, _ = fashion_mnist.load("train")
    layers, _ = layers_of(model, lambda: model(images[:1]))
    names = [f"{layer.name}.weight" for layer in layers]
    falling = [f"{name}.weight" for name in by_energy(layers, DEVICE)]
    dense = {"energy": energy(model, images[:1]), "accuracy": accuracy(model, told)}
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(3):
        drawn = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:512]]
        runs = {
            "energy-aware, by energy": (falling, lambda s: EnergyAware(sparsity=s)),
            "energy-aware without restoring, by energy": (falling, lambda s: EnergyAware(sparsity=s, restore=0.0)),
            "energy-aware, in the model's order": (names, lambda s: EnergyAware(sparsity=s)),
        }
        if not seed:
            runs["magnitude, by energy"] = (falling, lambda s: Magnitude(sparsity=s))
            runs["magnitude, in the model's order"] = (names, lambda s: Magnitude(sparsity=s))
        found = {row: in_order(model, order, kind, drawn, judged) for row, (order, kind) in runs.items()}
        if not seed:
            found["magnitude, one sparsity for all"] = uniform(model, names, judged)
        for row, (pruned, chosen) in found.items():
            entry = {"seed": seed, "accuracy": accuracy(pruned, told), "sparsities": chosen}
            entry["saving"] = dense["energy"] / energy(pruned, images[:1])
            rows.setdefault(row, []).append(entry)
            print(row, json.dumps(entry), flush=True)
    seconds = time.perf_counter() - begun
    results = {"dense": dense, "drop": DROP, "rows": rows, "seconds": seconds, "curves": curves()}
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{seconds:.0f} s, dense {dense}")


if __name__ == "__main__":
    main()
