"""How far a model's outputs are from those of the uncompressed model; no labels needed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.errors import DataError

Measure = Literal["kl", "squared"]


def tensors(output: Any) -> Iterator[Tensor]:
    """Yields the floating-point tensors of an output: a tensor, or a tuple, list, dict or dataclass of outputs.

    >>> [t.tolist() for t in tensors({"a": torch.ones(1), "b": (torch.zeros(1), 3)})]
    [[1.0], [0.0]]
    """
    if isinstance(output, Tensor):
        if output.dtype.is_floating_point:
            yield output
        return
    if isinstance(output, Mapping):
        output = output.values()
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = [getattr(output, item.name) for item in dataclasses.fields(output)]
    elif not isinstance(output, list | tuple):
        return
    for part in output:
        yield from tensors(part)


def kl(reference: Tensor, output: Tensor) -> float:
    """Mean over rows of KL(softmax(reference) || softmax(output)) in nats.

    Args:
        reference: logits of the uncompressed model, (..., classes).
        output: logits of the same shape.

    >>> kl(torch.zeros(2, 3), torch.zeros(2, 3))
    0.0
    """
    p = torch.log_softmax(reference.double(), -1)
    q = torch.log_softmax(output.double(), -1)
    return float((p.exp() * (p - q)).sum(-1).mean().clamp(min=0))


def relative_squared(reference: Any, output: Any) -> float:
    """|output - reference|^2 / |reference|^2, the mean over the tensors of the outputs.

    >>> relative_squared(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    0.04
    """
    parts = []
    for before, after in zip(tensors(reference), tensors(output)):
        power = float(before.double().square().sum())
        parts.append(float((after.double() - before.double()).square().sum()) / (power or 1.0))
    return sum(parts) / max(len(parts), 1)


def measure_for(output: Any, target: Any) -> Measure:
    """Says how outputs like this one are compared: logits by their divergence, others by their squared error.

    One matrix (N, C) with C >= 2 is taken for logits if the targets are N whole numbers below C, or if there are no
    targets and its rows aren't all of length one, as embeddings are.

    Raises:
        DataError: if there is nothing to compare.

    >>> measure_for(torch.randn(4, 10), torch.tensor([0, 9, 3, 3])), measure_for(torch.randn(4, 10), torch.randn(4, 10))
    ('kl', 'squared')
    """
    found = list(tensors(output))
    if not found:
        raise DataError("the model's outputs hold no floating-point tensor, so that nothing can be compared")
    logits = found[0]
    if len(found) > 1 or logits.ndim != 2 or logits.shape[1] < 2 or not len(logits):
        return "squared"
    if target is None:
        lengths = logits.double().norm(dim=1)
        return "squared" if bool(((lengths - 1).abs() < 1e-3).all()) else "kl"
    if not isinstance(target, Tensor) or target.dtype.is_floating_point or target.shape != logits.shape[:1]:
        return "squared"
    low, high = (int(end) for end in target.aminmax())
    return "kl" if 0 <= low <= high < logits.shape[1] else "squared"


def divergence(reference: Any, output: Any, measure: Measure) -> float:
    """Compares two outputs of a model.

    Args:
        reference: of the uncompressed model.
        output: of the compressed one.
        measure: see `measure_for`.

    Returns:
        Zero if they are equal; infinite if the output isn't finite where the reference is.
    """
    if measure == "kl":
        value = kl(next(tensors(reference)), next(tensors(output)))
    else:
        value = relative_squared(reference, output)
    return float("inf") if math.isnan(value) else value
