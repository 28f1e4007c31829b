"""Latencies side by side: candidates take turns, and the median of their rounds counts."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

LEAST, MOST = 3, 15
"""Rounds."""

BRIEF = 0.003
"""Seconds below which a call is made once more before it counts."""


def clock() -> Callable[[], float]:
    """Returns what time is taken with: that of the processor where one thread works, which others hardly disturb."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def race(calls: Mapping[str, Callable[[], Any]], seconds: float = 0.3, rounds: int | None = None) -> dict[str, float]:
    """Measures some calls in turns.

    Args:
        calls: by name; each is called once before it counts.
        seconds: how long all of it should take; at least three rounds are done, at most fifteen.
        rounds: how many, whatever they take.

    Returns:
        Median seconds of one call, by name.

    >>> sorted(race({"a": lambda: 1, "b": lambda: sum(range(1000))}))
    ['a', 'b']
    """
    now = clock()
    first, brief = 0.0, set()
    for name, call in calls.items():
        call()
        begun = now()
        call()
        once = now() - begun
        first += once
        if once < BRIEF:
            brief.add(name)
    wanted = rounds or min(max(round(seconds / max(first, 1e-9)), LEAST), MOST)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffled = list(calls.items()), random.Random(0)
    for _ in range(wanted):
        # Another order each time, and brief calls twice: a call pays for what the one before it left in the caches.
        shuffled.shuffle(order)
        for name, call in order:
            if name in brief:
                call()
            begun = now()
            call()
            taken[name].append(now() - begun)
    return {name: statistics.median(each) for name, each in taken.items()}
