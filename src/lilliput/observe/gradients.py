"""Derivatives of the cost, or of the outputs, with respect to weights; and the cost itself with a weight replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lilliput.core.checks import is_finite
from lilliput.core.data import call, inputs_of, target_of
from lilliput.core.errors import DataError
from lilliput.observe.cost import Loss, cost, examples, half_curvature, size
from lilliput.observe.divergence import relative_squared, tensors

EXACT = 64
"""Weights up to which the Hessian's diagonal is computed exactly, by one more derivative of the whole model for each;
that of larger ones is estimated, without the curvature of the model itself."""

PROBES = 16
"""Random signs a batch by which a larger diagonal is estimated: eight batches give it to about an eighth."""

TOGETHER = 32
"""Derivatives that are computed at a time."""

MOST_WEIGHTS = 2048
"""Weights up to which the whole Hessian is kept: 34 MB."""

MOST_BATCHES = 8
"""Batches on which a replaced weight is evaluated."""


class ModelObserver(Protocol):
    """Collects one need of several weights, batch by batch."""

    def see(self, model: nn.Module, batch: Any, loss: Loss | None) -> None:
        """Takes one batch; the parameters require gradients."""
        ...

    def result(self, name: str) -> Any:
        """Returns what the need holds for one weight, or None if nothing was seen."""
        ...


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of the cost, of each example alone.

    Attributes:
        mean: of the weight's shape, float64.
        square: mean of the squares (the diagonal of the empirical Fisher matrix), float64.
        count: examples.
    """

    mean: Tensor
    square: Tensor
    count: int


def cost_of(model: nn.Module, batch: Any, loss: Loss | None) -> Tensor:
    """Returns the mean cost of a batch."""
    return (loss or cost)(call(model, inputs_of(batch)), target_of(batch))


class GradientsOf:
    """Collects `Gradients`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.sums = {n: [torch.zeros_like(p, dtype=torch.float64) for _ in range(2)] for n, p in parameters.items()}
        self.count = 0

    def see(self, model: nn.Module, batch: Any, loss: Loss | None) -> None:
        """Takes one batch, example by example."""
        for example in examples(batch):
            value = cost_of(model, example, loss)
            self.count += 1
            for name, slope in _slopes(value, self.parameters).items():
                self.sums[name][0].add_(slope)
                self.sums[name][1].add_(slope.double().square())

    def result(self, name: str) -> Gradients | None:
        """Returns what was seen.

        Raises:
            DataError: it isn't finite.
        """
        first, second = (_finite(total, name) for total in self.sums[name])
        return Gradients(first / self.count, second / self.count, self.count) if self.count else None


class CurvatureOf:
    """Collects the diagonal of the cost's Hessian: exactly, or that of its Gauss-Newton part.

    The Hessian of C(f(w)) is J^T H J, with J = df/dw and H the Hessian of C by the outputs f, plus a part that vanishes
    where f is linear in w or fits the targets. That first part is what Levenberg-Marquardt keeps (section 3 of LeCun,
    Denker & Solla 1990): its diagonal is never negative. With H = S S^T and v of random signs it is the mean of
    (J^T S v)^2, one derivative for a v, of all examples at once. v * Hv (Hutchinson 1990) has the right mean too, but
    all entries of the Hessian's row in its noise: half of its estimates are negative where most weights do nothing. S
    is known for `cost.cost`; with a loss of the user's own, the squares of each example's derivative are taken.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.small = {name: p for name, p in parameters.items() if p.numel() <= EXACT}
        self.large = {name: p for name, p in parameters.items() if p.numel() > EXACT}
        self.sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
        self.count = 0
        self.random = torch.Generator().manual_seed(0)

    def see(self, model: nn.Module, batch: Any, loss: Loss | None) -> None:
        """Takes one batch."""
        count = size(batch)
        self.count += count
        if self.small:
            slopes = _slopes(cost_of(model, batch, loss), self.small, create_graph=True)
            for name, slope in slopes.items():
                if slope.requires_grad:
                    entries = [part.diagonal(start) for start, part in _derivatives(slope, self.small[name])]
                    self.sums[name] += count * torch.cat(entries).reshape(slope.shape).double()
        if not self.large:
            return
        if loss is not None:
            for example in examples(batch):
                self._add(_slopes(cost_of(model, example, loss), self.large), 1)
            return
        output, half = half_curvature(call(model, inputs_of(batch)), target_of(batch))
        for _ in range(PROBES):
            signs = torch.randint(2, output.shape, generator=self.random).mul_(2).sub_(1).to(output)
            self._add(_slopes((output * half(signs)).sum(), self.large, retain_graph=True), count / PROBES)

    def _add(self, slopes: Mapping[str, Tensor], factor: float) -> None:
        for name, slope in slopes.items():
            self.sums[name].add_(slope.double().square(), alpha=factor)

    def result(self, name: str) -> Tensor | None:
        """Returns what was seen.

        Raises:
            DataError: it isn't finite.
        """
        return _finite(self.sums[name], name) / self.count if self.count else None


def _slopes(value: Tensor, parameters: Mapping[str, nn.Parameter], **how: Any) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, **how)
    return {name: slope for name, slope in zip(parameters, found) if slope is not None}


def _finite(total: Tensor, name: str) -> Tensor:
    if not is_finite(total):
        raise DataError(f"{name}: derivatives of the cost are not finite; check the data and the loss")
    return total


def _derivative(value: Tensor, parameter: nn.Parameter) -> Tensor:
    found = torch.autograd.grad(value, parameter, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(parameter) if found is None else found


class HessianOf:
    """Collects 1/P sum x x^T over P examples and all outputs, x = d output / d weight: (weights, weights), float64."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = {name: p for name, p in parameters.items() if p.numel() <= MOST_WEIGHTS}
        self.sums = {n: torch.zeros(p.numel(), p.numel(), dtype=torch.float64) for n, p in self.parameters.items()}
        self.count = 0

    def see(self, model: nn.Module, batch: Any, loss: Loss | None) -> None:
        """Takes one batch."""
        output = call(model, inputs_of(batch))
        self.count += size(batch)
        for value in tensors(output):
            for name, parameter in self.parameters.items():
                for _, rows in _derivatives(value, parameter):
                    wide = rows.double()
                    self.sums[name].addmm_(wide.T, wide)

    def result(self, name: str) -> Tensor | None:
        """Returns what was seen; None for a weight that is too large.

        Raises:
            DataError: it isn't finite.
        """
        return _finite(self.sums[name], name) / self.count if self.count and name in self.sums else None


def _derivatives(values: Tensor, parameter: nn.Parameter) -> Iterator[tuple[int, Tensor]]:
    """Yields the number of the first of a few values, and the derivatives of each by the parameter, (few, numel)."""
    flat = values.flatten()
    for start in range(0, len(flat), TOGETHER):
        part = flat[start : start + TOGETHER]
        try:
            found = torch.autograd.grad(
                part,
                parameter,
                torch.eye(len(part), dtype=part.dtype, device=part.device),
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )[0]
        except RuntimeError:  # an operation that can't be batched
            found = torch.stack([_derivative(value, parameter) for value in part])
        yield start, torch.zeros(len(part), parameter.numel()).to(part) if found is None else found.flatten(1)


class EvaluateOf:
    """Keeps a few batches, to say what a weight in place of another would cost."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.batches: list[tuple[Any, Any]] = []
        self.model: nn.Module | None = None
        self.loss: Loss | None = None

    def see(self, model: nn.Module, batch: Any, loss: Loss | None) -> None:
        """Takes one batch."""
        self.model, self.loss = model, loss
        if len(self.batches) < MOST_BATCHES:
            with torch.no_grad():
                output = call(model, inputs_of(batch))
            if not all(is_finite(tensor) for tensor in tensors(output) if tensor.is_floating_point()):
                raise DataError(f"batch {len(self.batches)}: the model's output is NaN or infinite; check the data")
            self.batches.append((batch, output))

    def result(self, name: str) -> Evaluate | None:
        """Returns the function, or None if there was no batch."""
        if self.model is None:
            return None
        return Evaluate(self.model, self.parameters[name], tuple(self.batches), self.loss)


@dataclass(frozen=True, eq=False)
class Evaluate:
    """The cost of a model with one weight replaced, which is put back.

    Attributes:
        model: the model.
        parameter: the weight.
        batches: with what the model gave as it was.
        loss: of outputs and targets; None for `cost.cost`, and without targets for the squared change of the outputs.
    """

    model: nn.Module
    parameter: nn.Parameter
    batches: tuple[tuple[Any, Any], ...]
    loss: Loss | None

    def __call__(self, value: Tensor) -> float:
        """Returns the mean cost over the batches, each counted alike."""
        before, modes = self.parameter.data, {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            self.parameter.data = value.to(before)
            with torch.no_grad():
                return sum(self._one(batch, reference) for batch, reference in self.batches) / len(self.batches)
        finally:
            self.parameter.data = before
            for module, mode in modes.items():
                module.training = mode

    def _one(self, batch: Any, reference: Any) -> float:
        output, target = call(self.model, inputs_of(batch)), target_of(batch)
        if target is None and self.loss is None:
            return relative_squared(reference, output)
        return float((self.loss or cost)(output, target))
