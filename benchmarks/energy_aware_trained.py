"""Energy-aware against magnitude pruning with fine-tuning: energy at equal accuracy on Fashion-MNIST, three seeds.

    python benchmarks/energy_aware_trained.py         # all cases; writes results/energy_aware_trained.json
    python benchmarks/energy_aware_trained.py 0       # the cases of one seed: two to three minutes of CPU
    python benchmarks/energy_aware_trained.py 0 magnitude

A seed trains a network of its own (conv 8, conv 16, 64, 10; 5 epochs of 20,000 pictures), which is then pruned in
rounds, each followed by one epoch of fine-tuning with the masks held (step 5 of Yang, Chen & Sze 2017, arXiv
1611.05128: the loop is repeated):

* energy-aware: through the layers by falling energy on Eyeriss, remove, restore, least squares (512 pictures that the
  network is trained on); a layer's density is the least of 0.5, 0.6 ... 1 times what it was for which accuracy on
  2,500 validation pictures stays within 2 % (absolute) times the share of layers done so far.
* magnitude: all layers to 0.7 of their density in a round.

Accuracy told is that on the 7,500 other validation pictures, after fine-tuning; energy is Eyeriss's for one picture.
What is saved at an accuracy lies between two points of a curve, taken as straight there. A case is kept under
~/.cache/lilliput/energy-aware, so that a run that was stopped goes on.
"""

import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fashion_mnist
from energy_aware import DEVICE, accuracy, energy, prune, saved
from lilliput.prune.energy_aware import EnergyAware
from lilliput.prune.magnitude import Magnitude
from lilliput.search.layers import by_energy, layers_of

RESULT = Path(__file__).parent / "results" / "energy_aware_trained.json"
CACHE = Path.home() / ".cache" / "lilliput" / "energy-aware"
SEEDS, ROUNDS, SHARES, EVEN, DROP = (0, 1, 2), 6, (0.5, 0.6, 0.7, 0.8, 0.9), 0.7, 0.02
CASES = ("energy-aware", "magnitude")
DROPS = (0.0025, 0.005, 0.01, 0.02)


def trained(model: nn.Module, pictures: tuple[Tensor, Tensor], rate: float, epochs: int) -> None:
    """Trains by Adam with a falling rate; what is zero stays so in networks that have been pruned."""
    images, labels = pictures
    held = {p: p != 0 for p in model.parameters() if p.ndim > 1}
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps = epochs * -(-len(images) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for part in order.split(100):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for weight, mask in held.items():
                    weight.mul_(mask)
    model.eval()


def network() -> nn.Module:
    """Builds the network, not trained."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def searched(model: nn.Module, order: list[str], kind: Any, images: Tensor, judged: tuple[Tensor, Tensor]) -> nn.Module:
    """One round: each layer to the least density that accuracy allows before the network is trained again."""
    start = accuracy(model, judged)
    for place, name in enumerate(order, 1):
        weight = model.get_parameter(name)
        density = int(torch.count_nonzero(weight)) / weight.numel()
        for share in SHARES:
            tried = copy.deepcopy(model)
            prune(tried, name, kind(1 - share * density), images)
            if accuracy(tried, judged) >= start - DROP * place / len(order):
                model = tried
                break
    return model


def points_of(case: str, seed: int) -> list[dict[str, float]]:
    """Accuracy and energy, dense and after each round."""
    torch.manual_seed(seed)
    images, labels = fashion_mnist.load("train")
    drawn = torch.randperm(len(images))[:20_000]
    pictures = images[drawn], labels[drawn]
    checked, right = fashion_mnist.load("validation")
    judged, told = (checked[:2500], right[:2500]), (checked[2500:], right[2500:])
    model = network()
    trained(model, pictures, 3e-3, 5)

    def point() -> dict[str, float]:
        densities = [int(torch.count_nonzero(p)) / p.numel() for p in model.parameters() if p.ndim > 1]
        return {"accuracy": accuracy(model, told), "energy": energy(model, told[0][:1]), "densities": densities}

    points = [point()]
    for turn in range(1, ROUNDS + 1):
        layers, _ = layers_of(model, lambda model=model: model(told[0][:1]))
        names = [f"{layer.name}.weight" for layer in layers]
        if case == "energy-aware":
            order = [f"{name}.weight" for name in by_energy(layers, DEVICE)]
            model = searched(model, order, lambda s: EnergyAware(sparsity=s), pictures[0][:512], judged)
        else:
            for name in names:
                prune(model, name, Magnitude(sparsity=1 - EVEN**turn), pictures[0])
        trained(model, pictures, 1e-3, 1)
        points.append(point())
        print(case, seed, json.dumps(points[-1]), flush=True)
    return points


def main() -> None:
    """Runs the cases that aren't there yet; with all of them there, writes the figures down."""
    torch.set_num_threads(1)
    CACHE.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Any]] = {}
    for seed in [int(word) for word in sys.argv[1:] if word.isdecimal()] or SEEDS:
        for case in [word for word in sys.argv[1:] if word in CASES] or CASES:
            file = CACHE / f"{case.replace(' ', '-')}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(points_of(case, seed)))
            dense, *points = json.loads(file.read_text())
            entry = {"seed": seed, "dense": dense, "points": points}
            entry |= {f"saved at {drop:g}": saved(points, dense, drop) for drop in DROPS}
            rows.setdefault(case, []).append(entry)
    for case, entries in rows.items():
        cells = [", ".join(f"{entry[f'saved at {drop:g}']:.2f}" for entry in entries) for drop in DROPS]
        means = [statistics.mean(entry[f"saved at {drop:g}"] for entry in entries) for drop in DROPS]
        print("| " + " | ".join([case, *(f"{cell} ({mean:.2f})" for cell, mean in zip(cells, means))]) + " |")
    if not sys.argv[1:]:
        RESULT.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
