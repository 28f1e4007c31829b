"""The two networks of the Deep Compression papers, trained on MNIST by fixed seeds and kept in the cache.

    python benchmarks/lenet.py                # train what is missing and print the dense errors

LeNet-300-100 and Caffe's LeNet-5 (20-50-500-10), as in Han et al. 2015 (arXiv 1506.02626, 1510.00149), whose dense
errors are 1.64 % and 0.80 %; these have 1.49 % and 0.66 % on test, the mean of seeds 0 to 2. The recipes were chosen
on the validation split; the last 10,000 training pictures are never trained on, so that they can decide about
compression too.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from lilliput.nets.lenet import LeNet
from real_data import MissingError, cache_directory, mnist


@dataclass(frozen=True)
class Training:
    """How a network is trained: SGD with Nesterov momentum 0.9 and one cycle of the learning rate, batches of 128.

    Attributes:
        build: Makes the network, given the dropout.
        epochs: Passes over the training pictures.
        rate: The highest learning rate.
        decay: Weight decay, of weights and biases.
        dropout: As for `build`.
    """

    build: Callable[[float], nn.Module]
    epochs: int
    rate: float
    decay: float
    dropout: float


RECIPES = {
    "lenet-300-100": Training(
        lambda dropout: LeNet("300-100", dropout).build(), epochs=30, rate=0.1, decay=1e-4, dropout=0.3
    ),
    "lenet-5": Training(lambda dropout: LeNet("5", dropout).build(), epochs=15, rate=0.05, decay=5e-4, dropout=0.3),
}


def build(name: str) -> nn.Module:
    """Builds a network by name, not trained, without dropout.

    Args:
        name: "lenet-300-100" or "lenet-5".

    Returns:
        The module of `nets/lenet`.

    Raises:
        ValueError: No such network.
    """
    return recipe(name).build(0.0)


def recipe(name: str) -> Training:
    """Returns the training of a network by name, or says which names there are."""
    if name not in RECIPES:
        raise ValueError(f"no network {name!r}: choose {' or '.join(RECIPES)}")
    return RECIPES[name]


def train(name: str, seed: int) -> nn.Module:
    """Trains a network on MNIST's first 50,000 pictures, or loads it if the cache has it.

    Args:
        name: "lenet-300-100" or "lenet-5".
        seed: Decides the first weights, the order of the pictures and the dropout. The numbers are repeated to the
            bit only on the same machine with the same torch and one thread, which is what it trains with.

    Returns:
        The trained module, without dropout, in eval mode.

    Raises:
        MissingError: MNIST can't be had.
        ValueError: No such network.
    """
    training = recipe(name)
    path = checkpoint(name, seed)
    if not path.is_file():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                state = fit(training)
        finally:
            torch.set_num_threads(threads)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file(state, part)
        os.replace(part, path)
    with torch.random.fork_rng(devices=[]):  # the weights that building draws are thrown away
        model = training.build(0.0)
    model.load_state_dict(load_file(path))
    return model.eval()


def checkpoint(name: str, seed: int) -> Path:
    """Names the cached file of a network: another recipe is another file."""
    training = RECIPES[name]
    settings = f"e{training.epochs}-r{training.rate:g}-w{training.decay:g}-d{training.dropout:g}"
    return cache_directory() / "networks" / f"{name}-{settings}-seed{seed}.safetensors"


def fit(training: Training, split: str = "train") -> dict[str, Tensor]:
    """Trains from scratch, with torch's own generator as it stands.

    Args:
        training: How.
        split: Of `mnist`.

    Returns:
        The state dict.
    """
    images, labels = mnist(split)
    model = training.build(training.dropout).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    steps = len(labels) // 128
    optimizer = torch.optim.SGD(
        model.parameters(), training.rate, momentum=0.9, nesterov=True, weight_decay=training.decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.rate, total_steps=training.epochs * steps, pct_start=0.15
    )
    for _ in range(training.epochs):
        for indices in torch.randperm(len(labels))[: steps * 128].view(steps, 128):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[indices]), labels[indices])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return {key: value.contiguous() for key, value in model.state_dict().items()}


@torch.no_grad()
def error(model: nn.Module, split: str = "validation") -> float:
    """Counts wrong answers.

    Args:
        model: In eval mode.
        split: Of `mnist`; tune on "validation", report "test".

    Returns:
        Per cent of the pictures.
    """
    images, labels = mnist(split)
    batches = zip(images.split(1000), labels.split(1000))  # type: ignore[no-untyped-call]
    wrong = sum(int((model(pictures).argmax(1) != answers).sum()) for pictures, answers in batches)
    return 100 * wrong / len(labels)


def main() -> None:
    """Prints the dense errors of three seeds."""
    for name in RECIPES:
        rows = []
        for seed in range(3):
            start = time.perf_counter()
            model = train(name, seed)
            rows.append((error(model), error(model, "test")))
            seconds = time.perf_counter() - start
            print(f"{name} seed {seed}: validation {rows[-1][0]:.2f} %, test {rows[-1][1]:.2f} %, {seconds:.0f} s")
        means = [sum(column) / len(rows) for column in zip(*rows)]
        print(f"{name} mean: validation {means[0]:.2f} %, test {means[1]:.2f} %", flush=True)


if __name__ == "__main__":
    try:
        main()
    except MissingError as missing:
        sys.exit(str(missing))
