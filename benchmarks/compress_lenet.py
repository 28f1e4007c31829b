"""Pruning, sharing and fine-tuning of the two LeNets in a plain training loop; finished parts are kept in the cache.

The networks of `lenet.py` are pruned by magnitude while they train on, then share few values that are trained too. The
dense network of the same seed is the teacher throughout. All settings were chosen on the validation split with seed 0.
"""

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lenet
import lilliput
from lilliput import Recipe, Rule
from lilliput.distill.logits import Logits
from lilliput.prune.iterative import Iterative
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.float16 import Float16
from lilliput.share.kmeans import KMeans
from real_data import cache_directory, mnist

EXAMPLE = torch.zeros(1, 1, 28, 28)
BATCH = 256
ADVANCE = 20
"""Optimizer steps from one move of the pruning schedule to the next."""


@dataclass(frozen=True)
class Layer:
    """What becomes of one layer's weight.

    Attributes:
        sparsity: Part of the weights that is removed.
        values: Number of shared values for the others.
    """

    sparsity: float
    values: int


@dataclass(frozen=True)
class Settings:
    """How a network is compressed: Adam, the learning rate falling to 0 by a cosine in either phase, batches of 256.

    Attributes:
        layers: By the name of the layer.
        bias_values: Number of values that the biases of a layer share.
        epochs: Passes over the 50,000 training pictures while pruning, and while the shared values are trained.
        rate: Highest learning rate while pruning.
        shared_rate: The same for the shared values.
        until: Part of the pruning phase after which nothing more is removed.
        temperature: Of the distillation from the dense network.
        weight: Part of the teacher in the loss; the rest is cross-entropy with the labels.
    """

    layers: dict[str, Layer]
    bias_values: int = 16
    epochs: tuple[int, int] = (20, 4)
    rate: float = 2e-3
    shared_rate: float = 4e-4
    until: float = 0.6
    temperature: float = 2.0
    weight: float = 0.5

    def recipe(self, sharing: KMeans | None = None) -> Recipe:
        """Returns the recipe that prunes, or with `sharing` (whose `k` is set for each layer unless given) shares."""
        rules = []
        schedule = Iterative(rounds=100, until=self.until)
        for name, layer in self.layers.items():
            prune = Magnitude(sparsity=layer.sparsity)
            if sharing is None:
                rules.append(Rule(f"{name}.weight", (prune,), schedule=schedule))
            else:
                k = sharing.k or layer.values
                rules.append(Rule(f"{name}.weight", (prune, dataclasses.replace(sharing, k=k), Float16())))
        if sharing is not None:
            rules.append(Rule(layers="vector", steps=(KMeans(k=self.bias_values), Float16())))
        return Recipe(tuple(rules), "deep-compression")


SETTINGS = {
    "lenet-300-100": Settings(
        {"fc1": Layer(0.955, 12), "fc2": Layer(0.93, 12), "fc3": Layer(0.65, 12)},
        epochs=(30, 6),
        weight=0.7,
    ),
    "lenet-5": Settings(
        {"conv1": Layer(0.4, 16), "conv2": Layer(0.85, 12), "fc1": Layer(0.955, 12), "fc2": Layer(0.8, 12)},
        epochs=(14, 3),
        rate=1e-3,
        shared_rate=2e-4,
        weight=0.7,
    ),
}
QUICK = (1, 1)
"""Epochs with `--quick`."""
OPTIMUM = KMeans()


def pruned(name: str, seed: int, settings: Settings) -> nn.Module:
    """Prunes a network while training it on, or loads it if the cache has it.

    Args:
        name: "lenet-300-100" or "lenet-5".
        seed: Of the dense network, and of the order of the pictures.
        settings: How.

    Returns:
        The plain module in eval mode, pruned weights exactly 0.
    """
    model = lenet.train(name, seed)
    path = cached(name, seed, settings, "pruned")
    if not path.is_file():
        teacher = lenet.train(name, seed)
        lilliput.attach(model, settings.recipe(), example=EXAMPLE)
        fit(model, teacher, settings, epochs=settings.epochs[0], rate=settings.rate, seed=seed)
        lilliput.detach(model)
        store(path, model.state_dict())
    model.load_state_dict(load_file(path))
    return model.eval()


def shared(name: str, seed: int, settings: Settings, sharing: KMeans = OPTIMUM) -> tuple[nn.Module, nn.Module]:
    """Shares the values of a pruned network and trains them; the cache remembers.

    Args:
        name: "lenet-300-100" or "lenet-5".
        seed: As for `pruned`.
        settings: How.
        sharing: The start of k-means; `k` for all layers, or 0 for that of the settings.

    Returns:
        The network before and after fine-tuning, both attached, in eval mode.
    """
    before, after = (pruned(name, seed, settings) for _ in range(2))
    for model in (before, after):
        lilliput.attach(model, settings.recipe(sharing), example=EXAMPLE)
    path = cached(name, seed, settings, f"shared-{sharing.init}-{sharing.k}")
    if not path.is_file():
        teacher = lenet.train(name, seed)
        fit(after, teacher, settings, epochs=settings.epochs[1], rate=settings.shared_rate, seed=seed)
        store(path, after.state_dict())
    after.load_state_dict(load_file(path))
    return before.eval(), after.eval()


def fit(model: nn.Module, teacher: nn.Module, settings: Settings, *, epochs: int, rate: float, seed: int) -> None:
    """Trains an attached model in place, its schedules moving along; one thread, so that a seed gives the same bits."""
    images, labels = mnist("train")
    known = outputs(teacher, images)
    loss_of = Logits(temperature=settings.temperature, weight=settings.weight)
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, rate, fused=True)
    steps = len(labels) // BATCH
    model.train()
    for step in range(epochs * steps):
        progress = step / (epochs * steps)
        if step % steps == 0:
            order = torch.randperm(len(labels), generator=generator)[: steps * BATCH].view(steps, BATCH)
        if step % ADVANCE == 0:
            lilliput.advance(model, progress)
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
        indices = order[step % steps]
        optimizer.zero_grad()
        loss = loss_of.loss(model(images[indices]), known[indices], labels[indices])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    lilliput.advance(model, 1.0)
    model.eval()


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Returns a network's outputs for many pictures."""
    return torch.cat([model(batch) for batch in torch.split(images, 1000)])


def cached(name: str, seed: int, settings: Settings, what: str, suffix: str = "safetensors") -> Path:
    """Names the cached file of a part: other settings, or another dense network, are another file."""
    text = json.dumps([dataclasses.asdict(settings), lenet.checkpoint(name, seed).name], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return cache_directory() / "deep-compression" / f"{name}-seed{seed}-{digest}-{what}.{suffix}"


def store(path: Path, state: dict[str, Tensor]) -> None:
    """Writes a cached file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file({key: value.contiguous() for key, value in state.items()}, part)
    os.replace(part, path)
