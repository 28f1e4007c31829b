"""How much each layer alone can be pruned: the user's metric, or the change of the outputs, against the sparsity."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lilliput.core.errors import DataError, MethodError
from lilliput.core.layers import Weight, weights
from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.observe.sensitivity import Progress, Trial, take
from lilliput.observe.sensitivity import sensitivity as divergences
from lilliput.prune.magnitude import Magnitude
from lilliput.search.metric import Evaluate, score
from lilliput.train.attach import plain_copy
from lilliput.train.calibrate import calibrated

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
BATCHES = 4
"""Of the data, on which outputs are compared."""


@dataclass(frozen=True)
class Curve:
    """What happens when one layer alone is pruned, and nothing is trained.

    Attributes:
        name: of the weight.
        kind: of its layer.
        shape: of the weight.
        values: metric or divergence at each of the scan's sparsities; None where the method can't do it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Scan:
    """Sensitivity of all layers.

    Attributes:
        unit: `"metric"`, higher is better, or `"divergence"`, lower is better.
        dense: the metric of the model as it is; 0 for a divergence.
        sparsities: ascending.
        curves: one a layer, in the order of the model.
    """

    unit: str
    dense: float
    sparsities: tuple[float, ...]
    curves: tuple[Curve, ...]

    def within(self, drop: float) -> dict[str, float]:
        """Returns for each layer the sparsity up to which nothing is lost beyond `drop`; 0 for sensitive layers.

        Args:
            drop: of the metric, or largest divergence.

        >>> curve = Curve("a", "linear", (2, 2), (0.9, 0.8, 0.85))
        >>> Scan("metric", 0.9, (0.3, 0.5, 0.7), (curve,)).within(0.05)
        {'a': 0.3}
        """
        found = {}
        for curve in self.curves:
            found[curve.name] = 0.0
            for sparsity, value in zip(self.sparsities, curve.values):
                lost = value is None or (self.dense - value if self.unit == "metric" else value) > drop
                if lost:
                    break
                found[curve.name] = sparsity
        return found


def sensitivity(
    model: nn.Module,
    data: Any = None,
    evaluate: Evaluate | None = None,
    *,
    method: Any = None,
    sparsities: Sequence[float] = SPARSITIES,
    progress: Progress | None = None,
) -> Scan:
    """Prunes each layer alone at several sparsities, without training (Han et al. 2015, Li et al. 2017).

    Layers that lose much at little sparsity get a smaller one, or are left alone.

    Args:
        model: a trained network; it is not changed.
        data: any iterable of batches: what criteria need is collected from it, and without `evaluate` the outputs
            on its first four batches are compared with the uncompressed model's.
        evaluate: the user's metric, `evaluate(model) -> float`, higher is better.
        method: a criterion with its pattern; its own sparsity doesn't matter. By default `prune/magnitude`.
        sparsities: which to try.
        progress: called with the stage, what is done and the total.

    Returns:
        A curve for each weight of two axes or more.

    Raises:
        DataError: neither data nor a metric, or they can't be used.
        MethodError: the method has no sparsity, or a sparsity is out of range.

    >>> import torch
    >>> found = sensitivity(nn.Linear(8, 4), [torch.ones(2, 8)], sparsities=(0.5, 0.9))
    >>> found.unit, [curve.name for curve in found.curves]
    ('divergence', ['weight'])
    """
    method = Magnitude() if method is None else method
    if data is None and evaluate is None:
        raise DataError("a sensitivity scan needs data, a metric, or both")
    if not hasattr(method, "sparsity"):
        raise MethodError(f"{type(method).__name__} has no sparsity that could be scanned")
    steps = [replace(method, sparsity=sparsity) for sparsity in sorted(set(sparsities))]
    work = plain_copy(model).eval()
    recipe = Recipe((Rule(steps=(steps[-1],)),))
    data = take(data, BATCHES) if data is not None else None
    stats = calibrated(work, recipe, data, None)
    found = [weight for weight in weights(work) if weight.kind != "vector" and weight.parameter.numel()]
    trials: list[tuple[int, int, Trial]] = []
    for number, weight in enumerate(found):
        for place, step in enumerate(steps):
            trial = _trial(weight, step, stats.get(weight.name))
            if trial is not None:
                trials.append((number, place, trial))
    only = [trial for _, _, trial in trials]
    dense = 0.0 if evaluate is None else score(evaluate, work)
    values = _metrics(work, only, evaluate, progress) if evaluate else divergences(work, only, data, progress=progress)
    table: list[list[float | None]] = [[None] * len(steps) for _ in found]
    for (number, place, _), value in zip(trials, values):
        table[number][place] = value
    curves = [Curve(w.name, w.kind, tuple(w.parameter.shape), tuple(row)) for w, row in zip(found, table)]
    unit = "divergence" if evaluate is None else "metric"
    return Scan(unit, dense, tuple(step.sparsity for step in steps), tuple(curves))


def _trial(weight: Weight, step: Any, stats: Any) -> Trial | None:
    """What pruning makes of a weight; None where the method can't take it."""
    value = weight.parameter.detach()
    try:
        step.pack(value, stats)
    except MethodError:
        return None

    def made() -> dict[str, Tensor]:
        return {weight.name: unpack(step.pack(value, stats))}

    return Trial((weight.name,), made)


def _metrics(work: nn.Module, trials: list[Trial], evaluate: Evaluate, progress: Progress | None) -> list[float]:
    values = []
    parameters = dict(work.named_parameters())
    for number, trial in enumerate(trials):
        before = {name: copy.deepcopy(parameters[name].data) for name in trial.names}
        try:
            for name, value in trial.values().items():
                parameters[name].data = value
            values.append(score(evaluate, work))
        finally:
            for name, value in before.items():
                parameters[name].data = value
        if progress is not None:
            progress("pruning layers", number + 1, len(trials))
    return values
