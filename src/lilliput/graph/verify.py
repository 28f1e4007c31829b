"""Whether a smaller model computes what the zeroed one computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.core.cut import Cut
from lilliput.graph.cut import Cuts, apply_cuts, kept_of, put_values, state_of
from lilliput.graph.duplicate import copied
from lilliput.graph.structure import tensors_in

_TOLERANCE = 2e-3
_NEARLY_ZERO = 1e-2


def run(model: nn.Module, example: Any) -> list[Tensor]:
    """Returns the tensors that a model gives for an example, as `trace` takes it."""
    if isinstance(example, Mapping):
        return tensors_in(model(**example))
    return tensors_in(model(*((example,) if isinstance(example, Tensor) else tuple(example))))


def equal(one: Tensor, two: Tensor) -> bool:
    """Whether two outputs are the same but for the order of floating-point sums."""
    if one.shape != two.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, two)
    same = torch.isfinite(one) == torch.isfinite(two)
    if not bool(same.all()):
        return False
    one, two = one.nan_to_num(0.0, 0.0, 0.0).double(), two.nan_to_num(0.0, 0.0, 0.0).double()
    scale = float(one.abs().max()) if one.numel() else 0.0
    # A network's output may be nearly the same everywhere: what counts is how much it differs from place to place.
    spread = float(one.std()) if one.numel() > 1 else scale
    return bool(((one - two).abs() <= _TOLERANCE * max(spread, 1e-3 * scale) + 1e-7 * scale + 1e-12).all())


def runnable(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters are the model's own memory; buffers, which a run may change, are not."""
    held: dict[int, Any] = {id(p): p for p in model.parameters()}
    return copied(model, held).eval()


def lively(model: nn.Module) -> dict[str, Tensor]:
    """Values for parameters that are nearly zero, by name, so that no branch's mistake is hidden by them."""
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        # Of a sum of many products each may be small. The first few values mostly tell.
        scale = (parameter.numel() / parameter.shape[0]) ** -0.5 if parameter.dim() > 1 else 1.0
        least = _NEARLY_ZERO * scale
        if float(value.flatten()[:16].abs().max()) < least and float(value.abs().max()) < least:
            drawn: Tensor = (torch.rand(parameter.shape, generator=generator) * 0.4 - 0.1) * scale
            values[name] = drawn.to(parameter)
    return values


class Trial:
    """A copy of a model that is changed, run, and changed back.

    Args:
        model: any; it is not changed.
        example: what is run, as for `trace`.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = runnable(model)
        self.example = example
        self._saved: list[tuple[nn.Module, dict[str, Any], list[dict[str, Any]]]] = []

    def enliven(self) -> Trial:
        """Puts values into parameters that are nearly zero, for all runs to come; returns itself."""
        apply_cuts(self.model, Cuts((), lively(self.model)))
        return self.keep()

    def keep(self) -> Trial:
        """Takes the model as it is for what to change back to; returns itself."""
        self._saved = []
        for module in self.model.modules():
            own = vars(module)
            tables = [dict(own[name]) for name in ("_parameters", "_buffers")]
            self._saved.append((module, dict(own), tables))
        return self

    def run(self, cuts: Cuts) -> list[Tensor]:
        """Returns what the model gives with cuts applied.

        Args:
            cuts: to apply, for this run.
        """
        try:
            apply_cuts(self.model, cuts)
            return run(self.model, self.example)
        finally:
            self.restore()

    def run_zeroed(self, cuts: Cuts) -> list[Tensor]:
        """Returns what the model gives with zeros in place of what cuts remove.

        Args:
            cuts: that name the channels.
        """
        state = state_of(self.model)
        values: dict[str, Tensor] = {}
        for one in sorted(cuts.cuts, key=lambda one: -one.axis):
            if state[one.parameter].is_floating_point():
                values[one.parameter] = _masked(state[one.parameter], one, values.get(one.parameter))
        try:
            put_values(self.model, values)
            return run(self.model, self.example)
        finally:
            self.restore()

    def restore(self) -> None:
        """Takes back what was changed."""
        for module, own, tables in self._saved:
            vars(module).clear()
            vars(module).update(own)
            for name, table in zip(("_parameters", "_buffers"), tables):
                own[name].clear()
                own[name].update(table)


def _masked(value: Tensor, cut: Cut, masked: Tensor | None) -> Tensor:
    """Zeros in place of what a cut removes, in a copy or in what is one already."""
    kept = kept_of(cut)
    if cut.axis:
        shape = [-1 if d == cut.axis else 1 for d in range(value.dim())]
        factors = torch.from_numpy(kept).to(value).reshape(shape)
        return value.detach() * factors if masked is None else masked.mul_(factors)
    gone = torch.from_numpy(np.flatnonzero(~kept)).to(value.device)
    return (value.detach().clone() if masked is None else masked).index_fill_(0, gone, 0.0)
