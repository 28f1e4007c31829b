"""Randomness of a training as a function of the seed and the step, so that it can go on from any step."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


def seed_step(seed: int, rank: int, epoch: int, batch: int, data: Any = None) -> None:
    """Seeds every global generator for one batch, so that no generator's state need be saved.

    Args:
        seed: of the training.
        rank: of this process, so that several don't draw the same.
        epoch: epochs that are over.
        batch: 0 before the data is iterated over, then the number of the batch.
        data: a loader whose own generators (of shuffling) are seeded too, and whose sampler is told the epoch.
    """
    text = f"{seed}/{rank}/{epoch}/{batch}".encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    sampler = getattr(data, "sampler", None)
    for owner in (data, sampler):
        own = getattr(owner, "generator", None)
        if isinstance(own, torch.Generator):
            own.manual_seed(number)
    if callable(tell := getattr(sampler, "set_epoch", None)):
        tell(epoch)


@contextmanager
def preserved(*models: nn.Module | None) -> Iterator[None]:
    """Leaves the CPU's global generators, and whether modules train, afterwards as they were before."""
    modes = [(module, module.training) for model in models if model is not None for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
