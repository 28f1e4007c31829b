"""Structural cuts as data, and modules made smaller by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lilliput.core.cut import Cut, Resize
from lilliput.core.errors import ModelError


@dataclass(frozen=True)
class Cuts:
    """A set of cuts that go together.

    Args:
        cuts: at most one for each axis of a tensor.
        values: tensors that hold other numbers afterwards, by name, in their shape after the cut.
        lines: what was removed, and what was kept and why.
        sizes: attributes of the user's modules that must follow.
    """

    cuts: tuple[Cut, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    sizes: tuple[Resize, ...] = ()


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
    changes = [(_holder_of(model, size), size) for size in cuts.sizes]
    kept = {(cut.parameter, cut.axis): cut for cut in cuts.cuts}
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    made: dict[int, Tensor] = {}
    for name in dict.fromkeys([*(cut.parameter for cut in cuts.cuts), *cuts.values]):
        value = (cuts.values[name].to(state[name]) if name in cuts.values else smaller[name]).clone()
        made[id(state[name])] = value
        # Tied weights stay tied, under all their names and in all modules that share them.
        parameter = nn.Parameter(value, requires_grad=state[name].requires_grad)
        for alias in names[id(state[name])]:
            owner, _, leaf = alias.rpartition(".")
            holder = model.get_submodule(owner)
            if leaf in holder._parameters:
                holder._parameters[leaf] = parameter
            else:
                holder._buffers[leaf] = value
    resized: set[int] = set()
    for name in {alias for key in made for alias in names[key]}:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if id(module) not in resized:
            resized.add(id(module))
            _resize(module, kept.get((f"{owner}.weight" if owner else "weight", 0)))
    for module, size in changes:
        held = vars(module)[size.attribute]
        vars(module)[size.attribute] = size.new[0] if isinstance(held, int) else type(held)(size.new)


def _holder_of(model: nn.Module, size: Resize) -> nn.Module:
    """Finds the module whose attribute is to change; only an integer, or some, that are there are ever replaced."""
    try:
        module = model.get_submodule(size.module)
    except AttributeError:
        raise ModelError(f"a cut changes a size of {size.module!r}, which the model doesn't have") from None
    held = vars(module).get(size.attribute)
    if held != size.old[0] and tuple(held if isinstance(held, list | tuple) else ()) != size.old:
        raise ModelError(
            f"a cut changes {size.attribute!r} of {size.module!r} from {size.old}, the model has {str(held)[:80]}"
        )
    return module


def _resize(module: nn.Module, cut: Cut | None) -> None:
    """Sets the sizes that a module states to those of its tensors; `cut` is what its weight's axis 0 lost."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups > 1 and cut is not None:
            module.groups = _whole_blocks(cut, module.groups)
        rows, columns = module.weight.shape[0], module.weight.shape[1] * module.groups
        module.in_channels, module.out_channels = (rows, columns) if module.transposed else (columns, rows)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        tensors = [tensor for tensor in (module.running_mean, module.weight) if tensor is not None]
        module.num_features = tensors[0].numel()
    elif isinstance(module, nn.GroupNorm):
        if cut is not None:
            module.num_groups = _whole_blocks(cut, module.num_groups)
        module.num_channels = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif type(module).__name__ == "Conv1D" and isinstance(vars(module).get("nx"), int):
        # The transposed linear layer of GPT-2 in transformers.
        vars(module)["nx"], vars(module)["nf"] = vars(module)["_parameters"]["weight"].shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, nn.RNNBase):
        module.hidden_size, module.input_size = (
            getattr(module, f"{name}_l0").shape[1] for name in ("weight_hh", "weight_ih")
        )
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    elif isinstance(module, nn.RNNCellBase):
        module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]


def _whole_blocks(cut: Cut, groups: int) -> int:
    """How many groups are left: as many as before, unless whole ones went."""
    size = cut.size // groups
    counts = [0] * groups
    for index in cut.kept:
        counts[index // size] += 1
    left = sum(count > 0 for count in counts)
    return left if all(count in (0, size) for count in counts) else groups


def compose(first: Cuts, second: Cuts) -> Cuts:
    """Returns the cuts that do at once what two do one after the other.

    Args:
        first: made first.
        second: made on what the first left.

    Example:
        >>> both = compose(Cuts((Cut("w", 0, (0, 2, 3), 4),)), Cuts((Cut("w", 0, (1, 2), 3),)))
        >>> both.cuts
        (Cut(parameter='w', axis=0, kept=(2, 3), size=4),)
    """
    cuts = {(cut.parameter, cut.axis): cut for cut in first.cuts}
    for cut in second.cuts:
        before = cuts.get((cut.parameter, cut.axis))
        if before is not None:
            cut = replace(before, kept=tuple(before.kept[index] for index in cut.kept))  # noqa: PLW2901
        cuts[cut.parameter, cut.axis] = cut
    sizes = {(size.module, size.attribute): size for size in first.sizes}
    for size in second.sizes:
        old = sizes.get((size.module, size.attribute), size).old
        sizes[size.module, size.attribute] = replace(size, old=old)
    lines = (*first.lines, *second.lines)
    return Cuts(tuple(cuts.values()), dict(second.values), lines, tuple(sizes.values()))


def beyond(whole: Cuts, made: Cuts) -> Cuts:
    """Returns what is left of some cuts where a part of them was made; composed with that part it is the whole.

    Args:
        whole: on the model as it once was.
        made: those that the model has behind it.

    Raises:
        ModelError: what was made is no part of it.

    Example:
        >>> both, one = Cuts((Cut("w", 0, (2, 3), 4),)), Cuts((Cut("w", 0, (0, 2, 3), 4),))
        >>> beyond(both, one).cuts
        (Cut(parameter='w', axis=0, kept=(1, 2), size=3),)
    """
    done = {(cut.parameter, cut.axis): cut for cut in made.cuts}
    asked = {(cut.parameter, cut.axis): cut for cut in whole.cuts}
    cuts = []
    for key, cut in asked.items():
        before = done.get(key)
        if before is None:
            cuts.append(cut)
        elif not set(cut.kept) <= set(before.kept):
            raise ModelError(f"{cut.parameter!r} has lost other channels than the file's; load into a fresh model")
        elif cut.kept != before.kept:
            place = {index: number for number, index in enumerate(before.kept)}
            cuts.append(replace(cut, kept=tuple(place[index] for index in cut.kept), size=len(before.kept)))
    missing = next((key for key in done if key not in asked), None)
    if missing is not None:
        raise ModelError(f"{missing[0]!r} has lost channels that the file's has; load into a fresh model")
    held = {(size.module, size.attribute): size.new for size in made.sizes}
    sizes = [replace(size, old=held.get((size.module, size.attribute), size.old)) for size in whole.sizes]
    return Cuts(tuple(cuts), sizes=tuple(size for size in sizes if size.old != size.new))


_NOTE = "_lilliput_cuts"


def note_cuts(model: nn.Module, cuts: Cuts) -> None:
    """Notes on a model what was cut from it, so that a file made of it can say so.

    Args:
        model: after the cuts.
        cuts: all that were made.
    """
    # Past nn.Module's bookkeeping: no entry of the state dict.
    vars(model)[_NOTE] = cuts


def noted_cuts(model: nn.Module) -> Cuts:
    """Returns what was cut from a model by `lilliput.cut`; nothing for any other.

    Args:
        model: any module.
    """
    found = vars(model).get(_NOTE)
    return found if isinstance(found, Cuts) else Cuts()
