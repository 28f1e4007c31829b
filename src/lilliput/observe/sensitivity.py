"""How much a model's outputs change when one weight is replaced by its compressed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.core.data import call, inputs_of, target_of
from lilliput.core.errors import DataError
from lilliput.core.layers import weights
from lilliput.observe.divergence import Measure, divergence, measure_for, tensors
from lilliput.observe.replay import Replay

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, what is done and the total."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One or more parameters and what is tried in their place.

    Attributes:
        names: of the parameters.
        values: makes the new values, by name; called once a batch, so that not all must be held at once.
    """

    names: tuple[str, ...]
    values: Callable[[], Mapping[str, Tensor]]


def take(data: Iterable[Any], batches: int) -> list[Any]:
    """Returns the first batches of the data.

    Raises:
        DataError: if there is none, or the data can't be iterated over.
    """
    if isinstance(data, Tensor):
        return [data]
    try:
        found = list(itertools.islice(iter(data), batches))
    except TypeError:
        raise DataError(f"data must be an iterable of batches, not {type(data).__name__}") from None
    if not found:
        raise DataError("the data is empty: give an iterable with at least one batch")
    return found


def sensitivity(
    model: nn.Module,
    trials: Sequence[Trial],
    batches: Sequence[Any],
    *,
    measure: Measure | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Measures each trial's divergence from the model as it is, the mean over the batches.

    Each trial runs forward only, and only from its own layer on: the outputs of the layers before it are kept from
    the reference run of the same batch.

    Args:
        model: in eval mode; unchanged afterwards.
        trials: what is tried.
        batches: of inputs, (inputs, targets) or dicts.
        measure: how outputs are compared; by default as `divergence.measure_for` says.
        progress: called after each trial.

    Returns:
        For each trial the KL divergence in nats, or the relative squared error; infinite if the outputs aren't finite.

    Raises:
        DataError: if the model's own outputs aren't finite, or hold nothing to compare.
    """
    owners = {weight.name: [path for path, _ in weight.owners] for weight in weights(model)}
    totals = [0.0] * len(trials)
    for number, batch in enumerate(batches):
        with Replay(model, inputs_of(batch)).recording() as replay:
            check_finite(replay.output, number)
            how = measure or measure_for(replay.output, target_of(batch))
            for place, trial in enumerate(trials):
                paths = [path for name in trial.names for path in owners.get(name, [""])]
                output = replay.run(trial.values(), paths)
                totals[place] += divergence(replay.output, output, how)
                if progress:
                    progress("measuring layers", number * len(trials) + place + 1, len(batches) * len(trials))
    return [total / len(batches) for total in totals]


def whole(model: nn.Module, other: nn.Module, batches: Sequence[Any], *, measure: Measure | None = None) -> float:
    """Returns the divergence of another model of the same outputs, the mean over the batches; see `sensitivity`."""
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            reference = call(model, inputs_of(batch))
            how = measure or measure_for(reference, target_of(batch))
            total += divergence(reference, call(other, inputs_of(batch)), how)
    return total / len(batches)


def check_finite(output: Any, number: int) -> None:
    """Raises DataError unless what the uncompressed model gives is finite."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors(output)):
        raise DataError(f"batch {number}: the uncompressed model's own output is NaN or infinite; check model and data")


def interpolated(errors: Sequence[float], measured: Mapping[int, float]) -> list[float]:
    """Fills in the losses of settings that weren't measured from those that were.

    The loss of a well-trained network grows with the square of a small change of a weight, so that the ratio of loss to
    squared weight error changes slowly: it is interpolated linearly in log(error), and kept beyond the last measured
    settings. Measured losses stay as they are.

    Args:
        errors: squared weight error of each setting, >= 0.
        measured: loss by the setting's place; at least one of an error > 0.

    >>> interpolated([0.0, 1.0, 2.0, 4.0], {1: 0.1, 3: 0.4})
    [0.0, 0.1, 0.2, 0.4]
    """
    known = sorted((errors[i], max(v, 0.0) / errors[i]) for i, v in measured.items() if errors[i] > 0)
    if not known:
        return [measured.get(i, 0.0) for i in range(len(errors))]
    logs, ratios = np.log([e for e, _ in known]), np.array([r for _, r in known])
    filled = []
    for place, error in enumerate(errors):
        if place in measured:
            filled.append(measured[place])
        elif error <= 0:
            filled.append(0.0)
        else:
            filled.append(error * float(np.interp(math.log(error), logs, ratios)))
    return filled
