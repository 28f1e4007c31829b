"""Structural cuts as data, and modules made smaller by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lilliput.core.cut import Cut
from lilliput.core.errors import ModelError


@dataclass(frozen=True)
class Cuts:
    """A set of cuts that go together.

    Args:
        cuts: at most one for each axis of a tensor.
        values: tensors that hold other numbers afterwards, by name, in their shape after the cut.
        lines: what was removed, and what was kept and why.
    """

    cuts: tuple[Cut, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def cut_tensors(tensors: Mapping[str, Tensor], cuts: Iterable[Cut]) -> dict[str, Tensor]:
    """Cuts tensors that no module holds, as those of a file.

    Args:
        tensors: by name.
        cuts: what to cut.

    Returns:
        All tensors; those cut are new.

    Raises:
        ModelError: a cut names no tensor, or an index that it doesn't have.
    """
    result = dict(tensors)
    for cut in cuts:
        tensor = result.get(cut.parameter)
        if tensor is None or not 0 <= cut.axis < tensor.dim():
            raise ModelError(f"a cut names axis {cut.axis} of {cut.parameter!r}, which is not there")
        if tensor.shape[cut.axis] != cut.size:
            raise ModelError(
                f"a cut of {cut.parameter!r} is made for {cut.size} indices along axis {cut.axis}, "
                f"the model has {tensor.shape[cut.axis]}"
            )
        if not cut.kept or min(cut.kept) < 0 or max(cut.kept) >= tensor.shape[cut.axis]:
            raise ModelError(f"a cut of {cut.parameter!r} keeps indices beyond its {tensor.shape[cut.axis]}, or none")
        kept = torch.tensor(cut.kept, device=tensor.device)
        result[cut.parameter] = tensor.detach().index_select(cut.axis, kept)
    return result


def apply_cuts(model: nn.Module, cuts: Cuts) -> None:
    """Makes the modules smaller, in place.

    Args:
        model: has linear layers, convolutions and BatchNorms by the names in the cuts.
        cuts: what to cut; `values` are set afterwards.

    Raises:
        ModelError: as for `cut_tensors`; the model is left alone.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> cut = (Cut("0.weight", 0, (0, 2), 3), Cut("0.bias", 0, (0, 2), 3), Cut("2.weight", 1, (0, 2), 3))
        >>> apply_cuts(model, Cuts(cut))
        >>> model[0].out_features, model[2].in_features, model(torch.rand(5, 2)).shape
        (2, 2, torch.Size([5, 1]))
    """
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state |= dict(model.named_buffers(remove_duplicate=False))
    smaller = cut_tensors(state, cuts.cuts)
    unknown = [name for name, value in cuts.values.items() if name not in state or smaller[name].shape != value.shape]
    if unknown:
        raise ModelError(f"new values for {unknown[0]!r} don't fit the model")
    for name in {cut.parameter for cut in cuts.cuts} | set(cuts.values):
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        value = cuts.values[name].to(state[name]) if name in cuts.values else smaller[name]
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(value.clone(), requires_grad=state[name].requires_grad)
        else:
            module._buffers[leaf] = value.clone()
        _resize(module)


def _resize(module: nn.Module) -> None:
    """Sets the sizes that a module states to those of its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
        module.num_features = module.running_mean.shape[0]
