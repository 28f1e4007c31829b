"""Whether a smaller model computes what the zeroed one computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.graph.cut import Cuts, apply_cuts
from lilliput.graph.structure import tensors_in

_TOLERANCE = 2e-3


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


def sharing(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are the model's own memory."""
    held: dict[int, Any] = {id(p): p for p in model.parameters()}
    held |= {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, held)


def probe(model: nn.Module) -> nn.Module:
    """The model with values in parameters that are nearly zero, so that no branch's mistake is hidden by them."""
    copied = sharing(model).eval()
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, parameter in copied.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and float(parameter.detach().abs().max()) < 1e-2:
            drawn: Tensor = torch.rand(parameter.shape, generator=generator) * 0.4 - 0.1
            values[name] = drawn.to(parameter)
    apply_cuts(copied, Cuts((), values))
    return copied


def zeroed(model: nn.Module, cuts: Cuts) -> nn.Module:
    """Returns a copy with zeros in place of what cuts remove."""
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state |= dict(model.named_buffers(remove_duplicate=False))
    values: dict[str, Tensor] = {}
    for one in cuts.cuts:
        if state[one.parameter].is_floating_point():
            value = values.setdefault(one.parameter, state[one.parameter].detach().clone())
            gone = torch.ones(one.size, dtype=torch.bool)
            gone[list(one.kept)] = False
            value.index_fill_(one.axis, gone.nonzero().flatten().to(value.device), 0.0)
    copied = sharing(model)
    apply_cuts(copied, Cuts((), values))
    return copied
