"""Structural cuts as data, and modules made smaller by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lilliput.core.cut import Cut, Resize, Skip
from lilliput.core.errors import ModelError
from lilliput.graph.duplicate import copied
from lilliput.graph.skip import check_skip, inside, put_skip


@dataclass(frozen=True)
class Cuts:
    """A set of cuts that go together.

    Args:
        cuts: at most one for each axis of a tensor.
        values: tensors that hold other numbers afterwards, by name, in their shape after the cut.
        lines: what was removed, and what was kept and why.
        sizes: attributes of the user's modules that must follow.
        blocks: residual blocks that are gone, before anything else is cut.
        macs: multiplications of the network on the example before all of this; None if they weren't counted.
    """

    cuts: tuple[Cut, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    sizes: tuple[Resize, ...] = ()
    blocks: tuple[Skip, ...] = ()
    macs: int | None = None


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
    # The first axis first: whole rows are cheap, and fewer are left for the others.
    for cut in sorted(cuts, key=lambda cut: cut.axis):
        tensor = result.get(cut.parameter)
        if tensor is None or not 0 <= cut.axis < tensor.dim():
            raise ModelError(f"a cut names axis {cut.axis} of {cut.parameter!r}, which is not there")
        if tensor.shape[cut.axis] != cut.size:
            raise ModelError(
                f"a cut of {cut.parameter!r} is made for {cut.size} indices along axis {cut.axis}, "
                f"the model has {tensor.shape[cut.axis]}"
            )
        kept = np.array(cut.kept, np.int64)
        if not len(kept) or kept.min() < 0 or kept.max() >= tensor.shape[cut.axis]:
            raise ModelError(f"a cut of {cut.parameter!r} keeps indices beyond its {tensor.shape[cut.axis]}, or none")
        result[cut.parameter] = tensor.detach().index_select(cut.axis, torch.from_numpy(kept).to(tensor.device))
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
    made, names = _made(model, cuts)
    modules = dict(model.named_modules(remove_duplicate=False))
    changes = [(_holder_of(model, size), size) for size in cuts.sizes]
    for skip in cuts.blocks:
        put_skip(model, skip)
    # Tied weights stay tied, under all their names and in all modules that share them.
    for key, value in made.items():
        for alias in names[key]:
            _put(modules, alias, value)
    _follow(modules, cuts, changes, [names[key] for key in made])


def _put(modules: Mapping[str, nn.Module], name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    holder = modules[owner]
    table: dict[str, Any] = holder._parameters if leaf in holder._parameters else holder._buffers
    table[leaf] = value


def put_values(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Puts tensors, without copying them, in place of parameters and buffers of their shapes.

    Args:
        model: any module, changed in place.
        values: by name; what is tied to that name is replaced with it.
    """
    state = state_of(model)
    found = {id(state[name]): value for name, value in values.items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    made: dict[int, Tensor] = {}
    for name, old in state.items():
        value = found.get(id(old))
        if value is not None:
            if id(old) not in made:
                made[id(old)] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
            _put(modules, name, made[id(old)])


def smaller_copy(model: nn.Module, cuts: Cuts) -> nn.Module:
    """Returns a copy with its modules made smaller; what isn't cut is copied, what is cut is copied cut.

    Args:
        model: as for `apply_cuts`; it is not changed.
        cuts: what to cut.

    Raises:
        ModelError: as for `cut_tensors`.
    """
    made, names = _made(model, cuts)
    smaller = copied(model, dict(made))
    changes = [(_holder_of(smaller, size), size) for size in cuts.sizes]
    for skip in cuts.blocks:
        put_skip(smaller, skip)
    modules = dict(smaller.named_modules(remove_duplicate=False))
    _follow(modules, cuts, changes, [names[key] for key in made])
    return smaller


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Lists a model's parameters, then its buffers, under all their names.

    Args:
        model: any module.
    """
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for table, found in ((module._parameters, parameters), (module._buffers, buffers)):
            for leaf, value in table.items():
                if value is not None:
                    found[f"{path}.{leaf}" if path else leaf] = value
    return parameters | buffers


def kept_of(cut: Cut) -> NDArray[np.bool_]:
    """For each index along a cut's axis whether it stays.

    Args:
        cut: any.
    """
    kept = np.zeros(cut.size, bool)
    kept[np.array(cut.kept, np.int64)] = True
    return kept


def _made(model: nn.Module, cuts: Cuts) -> tuple[dict[int, Tensor], dict[int, list[str]]]:
    """New parameters and buffers by the identity of the old ones; and the names of all old ones."""
    for skip in cuts.blocks:
        check_skip(model, skip)
    state = {name: tensor for name, tensor in state_of(model).items() if not inside(name, cuts.blocks)}
    smaller = cut_tensors(state, cuts.cuts)
    unknown = [name for name, value in cuts.values.items() if name not in state or smaller[name].shape != value.shape]
    if unknown:
        raise ModelError(f"new values for {unknown[0]!r} don't fit the model")
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    made: dict[int, Tensor] = {}
    for name in dict.fromkeys([*(cut.parameter for cut in cuts.cuts), *cuts.values]):
        old = state[name]
        value = cuts.values[name].to(old).clone() if name in cuts.values else smaller[name]
        is_parameter = isinstance(old, nn.Parameter)
        made[id(old)] = nn.Parameter(value, requires_grad=old.requires_grad) if is_parameter else value
    return made, names


def _follow(
    modules: Mapping[str, nn.Module],
    cuts: Cuts,
    changes: Iterable[tuple[nn.Module, Resize]],
    touched: Iterable[list[str]],
) -> None:
    """Sets the sizes that modules state, and attributes of the user's, to what their tensors have become."""
    rows = {cut.parameter: cut for cut in cuts.cuts if cut.axis == 0}
    resized: set[int] = set()
    for aliases in touched:
        cut = next((rows[name] for name in aliases if name in rows), None)
        for name in aliases:
            owner, _, leaf = name.rpartition(".")
            module = modules[owner]
            if id(module) not in resized and (leaf == "weight" or not hasattr(module, "weight")):
                resized.add(id(module))
                _resize(module, cut)
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
    counts = np.bincount(np.array(cut.kept, np.int64) // size, minlength=groups).tolist()
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
    cuts = {(cut.parameter, cut.axis): cut for cut in first.cuts if not inside(cut.parameter, second.blocks)}
    for cut in second.cuts:
        before = cuts.get((cut.parameter, cut.axis))
        if before is not None:
            cut = replace(before, kept=tuple(before.kept[index] for index in cut.kept))  # noqa: PLW2901
        cuts[cut.parameter, cut.axis] = cut
    sizes = {(size.module, size.attribute): size for size in first.sizes if not inside(size.module, second.blocks)}
    for size in second.sizes:
        old = sizes.get((size.module, size.attribute), size).old
        sizes[size.module, size.attribute] = replace(size, old=old)
    lines = (*first.lines, *second.lines)
    blocks = (*(skip for skip in first.blocks if not inside(skip.module, second.blocks)), *second.blocks)
    count = second.macs if first.macs is None else first.macs
    return Cuts(tuple(cuts.values()), dict(second.values), lines, tuple(sizes.values()), blocks, count)


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
    missing = next((key for key in done if key not in asked and not inside(key[0], whole.blocks)), None)
    if missing is not None:
        raise ModelError(f"{missing[0]!r} has lost channels that the file's has; load into a fresh model")
    held = {(size.module, size.attribute): size.new for size in made.sizes}
    sizes = [replace(size, old=held.get((size.module, size.attribute), size.old)) for size in whole.sizes]
    lost = next((skip.module for skip in made.blocks if not inside(skip.module, whole.blocks)), None)
    if lost is not None:
        raise ModelError(f"the model has lost the block {lost!r}, which the file has; load into a fresh model")
    blocks = tuple(skip for skip in whole.blocks if skip not in made.blocks)
    return Cuts(tuple(cuts), sizes=tuple(size for size in sizes if size.old != size.new), blocks=blocks)


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
