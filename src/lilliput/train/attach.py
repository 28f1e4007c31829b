"""`attach` a recipe to a model for training, `detach` it, and `pack` what was trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lilliput.core.activations import Quantized
from lilliput.core.allot import Steps, allotted
from lilliput.core.cut import Cut
from lilliput.core.data import with_example
from lilliput.core.errors import LilliputError, ModelError, NotWorthwhile, RecipeError
from lilliput.core.layers import Weight, join, weights
from lilliput.core.packed import Packed, take, unpack
from lilliput.core.recipe import Recipe
from lilliput.graph.cut import Cuts, noted_cuts
from lilliput.quantize.gnmt import ClippedLSTM
from lilliput.train.calibrate import calibrated
from lilliput.train.cut import again, cut_by, cut_in_place
from lilliput.train.node import Node
from lilliput.train.outputs import planned_outputs
from lilliput.train.passes import moved, run_after, run_before
from lilliput.train.quantizer import before_layers, planned, quantizers, remove, replace_all

# Where an attached model keeps its recipe: a plain attribute, so that deepcopy carries it and state_dict doesn't.
ATTRIBUTE = "_lilliput"


@dataclass(frozen=True)
class Attachment:
    """What `attach` leaves on a model besides the parametrizations.

    Attributes:
        recipe: the recipe that is attached.
        example: an input of the model, for its graph; None if none was given.
        notes: weights that were left as they are, and why.
        order: names of each owner's parameters in the order in which it made them, by module path.
        fixed: names of the attached weights that the user didn't train: their parts aren't trained either.
        original: bytes of all tensors before any attached recipe cut channels.
    """

    recipe: Recipe
    example: Any
    notes: dict[str, str]
    order: dict[str, tuple[str, ...]]
    fixed: frozenset[str] = frozenset()
    original: int = 0


def attach(model: nn.Module, recipe: Recipe, data: Any = None, *, example: Any = None, stats: Any = None) -> nn.Module:
    """Attaches a recipe to a model, in place: from now on each forward pass uses the compressed weights.

    The model keeps its class and its parameters; train it in your own loop, then call `pack`. Weights that are
    trained through parts in their place (a codebook, low-rank factors) get new parameters: make the optimizer after
    `attach`, or add `new_parameters(model)` to it. Attaching again goes on from the state that is there: a mask stays,
    so that pruning, then pruning and sharing, is two calls; so do the ranges of a quantizer that is the same again.

    A recipe's cuts and passes are made first, in place: parameters that are cut are new objects. The same ones
    attached again are there already; others need `detach` first.

    `state_dict` keys are those of `torch.nn.utils.parametrize`: `<module>.parametrizations.<name>.original` is the
    latent weight and `<module>.parametrizations.<name>.0.*` the state of its steps: `part_<part>` (such as
    `part_mask`), `next_<part>.*` for the steps that pack a part again, and as `_extra_state` a tensor of bytes with
    the JSON of their settings. A layer whose input is quantized holds a module `input_quantizer` (its result:
    `output_quantizer`) with its numbers, `<module>.input_quantizer.number_<name>`.

    Args:
        model: the user's model; changed in place, or not at all if this raises.
        recipe: what to do with which weight.
        data: any iterable of batches; the first serves as `example`, what methods need is collected from all.
        example: one input (a tensor, tuple or dict), from which `pack` later gets the graph.
        stats: what `observe.collect` collected, by weight name; isn't collected again.

    Returns:
        The same model.

    Raises:
        RecipeError: if a rule fits no weight.
        MethodError: if a method can't take a weight; names the layer.
        ModelError: if a weight is parametrized by somebody else.

    >>> from lilliput.core.recipe import Rule
    >>> from lilliput.prune.magnitude import Magnitude
    >>> net = attach(nn.Linear(4, 2), Recipe((Rule(steps=(Magnitude(sparsity=0.5),)),)))
    >>> int((net.weight == 0).sum())
    4
    """
    recipe.check(weights(model))
    data, example = with_example(again(data) if recipe.rereads else data, example)
    previous = attachment(model)
    original = tensor_bytes(model) if previous is None else previous.original
    # All that can fail is done on a smaller copy; only then the model itself is cut.
    notes: dict[str, str] = {}
    work, cuts, data, stats = _changed(_smaller(model, recipe, example, (data, stats)), model, recipe, example, notes)
    found, stats = weights(work), calibrated(work, recipe, data, stats)
    steps = allotted(recipe, found, lambda weight: _value(work, weight), stats)
    nodes = [_node_for(work, w, (recipe, steps.get(w.name, ())), stats.get(w.name), notes) for w in found]
    placed = before_layers(model, _quantizers(work, recipe, (data, example), stats, notes))
    found = weights(_filled(cut_in_place(model, cuts), work, recipe))
    made = [(weight, node) for weight, node in zip(found, nodes) if node is not None]
    fixed = {weight.name for weight in found if not weight.parameter.requires_grad}
    if previous is not None:
        example = previous.example if example is None else example
        fixed = _detach_but_latent(model, previous, {weight.name for weight, _ in made})
    replace_all(model, placed)
    state = Attachment(recipe, example, notes, _register_all(model, made, fixed), frozenset(fixed), original)
    object.__setattr__(model, ATTRIBUTE, state)
    return _corrected(model, work, recipe, (data, example), notes)


def _corrected(
    model: nn.Module, work: nn.Module, recipe: Recipe, given: tuple[Any, Any], notes: dict[str, str]
) -> nn.Module:
    """Carries out the passes that come after packing, but where they are done already."""
    if recipe.passes and work is not model:
        run_after(model, recipe, given, notes, work)
    return model


Seen = tuple[nn.Module, tuple[Cuts, ...], Any, Any]
"""The model that the rules see, the cuts that make it, and data and stats for it."""


def _changed(seen: Seen, model: nn.Module, recipe: Recipe, example: Any, notes: dict[str, str]) -> Seen:
    """What the rules see after the passes that come before packing: a copy if there are passes."""
    work, cuts, data, stats = seen
    previous = attachment(model)
    if previous is not None and previous.recipe.passes == recipe.passes:
        notes.update({name: text for name, text in previous.notes.items() if name.startswith("pass ")})
        return seen
    if not recipe.passes:
        return seen
    if previous is not None:
        raise RecipeError("a recipe is attached already, and this one has other passes: detach(model) first")
    work = copy.deepcopy(model) if work is model else work
    return work, cuts, data, None if run_before(work, recipe, (data, example), notes) else stats


def _filled(model: nn.Module, work: nn.Module, recipe: Recipe) -> nn.Module:
    """Gives the user's model the weights that passes made."""
    if recipe.passes and work is not model:
        moved(work, model)
    return model


def _smaller(model: nn.Module, recipe: Recipe, example: Any, given: tuple[Any, Any]) -> Seen:
    """What the rules see after the cuts; the model itself without cuts."""
    data, stats = given
    previous = attachment(model)
    if not recipe.cuts or (previous is not None and previous.recipe.cuts == recipe.cuts):
        return model, (), data, stats
    if previous is not None:
        raise RecipeError("a recipe is attached already, and this one cuts channels: detach(model) first")
    data = again(data)
    work, cuts = cut_by(model, recipe, example, data, stats)
    return work, cuts, data, None


def _quantizers(
    work: nn.Module, recipe: Recipe, given: tuple[Any, Any], stats: Any, notes: dict[str, str]
) -> dict[str, Quantized]:
    found = planned(work, recipe, weights(work), stats, notes)
    if any(rule.outputs is not None for rule in recipe.rules):
        found |= planned_outputs(work, plain_copy(work), recipe, given, notes)
    return found


def _value(model: nn.Module, weight: Weight) -> Tensor:
    """The weight as it is used now, with what is attached to it."""
    current = node_of(model, weight)
    return weight.parameter if current is None else current(weight.parameter)


def _node_for(
    model: nn.Module, weight: Weight, planned: tuple[Recipe, Steps], stats: Any, notes: dict[str, str]
) -> Node | None:
    recipe, steps = planned
    rule = recipe.rule_for(weight)
    if rule is None:
        return None
    try:
        if rule.penalty is not None:
            rule.penalty.penalty(weight.parameter.detach())  # one that doesn't suit the weight says so at once
        if not steps:
            return None
        current = node_of(model, weight)
        # A part trained in the weight's place holds what the weight is now.
        latent = weight.parameter if current is None or not current.trained else current(weight.parameter)
        return Node(latent, steps, stats=stats, previous=current, schedule=rule.schedule)
    except NotWorthwhile as reason:
        notes[weight.name] = str(reason)
        return None
    except LilliputError as error:
        raise type(error)(f"{weight.name} ({weight.kind}, {tuple(weight.parameter.shape)}): {error}") from None


def _register_all(model: nn.Module, planned: list[tuple[Weight, Node]], fixed: set[str]) -> dict[str, tuple[str, ...]]:
    """Puts nodes behind the weights; returns the names of each owner's parameters in the order before that."""
    paths = dict.fromkeys(path for weight, _ in planned for path, _ in weight.owners)
    order = {path: tuple(model.get_submodule(path)._parameters) for path in paths}
    for weight, node in planned:
        if weight.name in fixed:
            node.requires_grad_(False)
        _register(model, weight, node)
    for module in _recurrent(model, [weight for weight, _ in planned]):
        module.register_forward_hook(_drop_graph)
    return order


def _register(model: nn.Module, weight: Weight, node: Node) -> None:
    node.train(model.training)
    if node.moved is not None:
        weight.parameter.data.copy_(node.moved)
        node.moved = None
    for module, attribute in _places(model, weight):
        # unsafe: the check would run every method once more, and shape and dtype are ours by law.
        parametrize.register_parametrization(module, attribute, node, unsafe=True)
    if node.trained:
        # The latent weight has no say any more; DDP must not wait for its gradient.
        weight.parameter.requires_grad_(False)


def _detach_but_latent(model: nn.Module, previous: Attachment, planned: set[str]) -> set[str]:
    """Detaches, but leaves latent weights that go on being trained as they are; returns whose parts were fixed."""
    latent = {
        weight.name: weight.parameter.detach().clone()
        for weight, node in attached(model)
        if weight.name in planned and not node.trained
    }
    detach(model)
    with torch.no_grad():
        for weight in weights(model):
            if weight.name in latent:
                weight.parameter.copy_(latent[weight.name])
    return {weight.name for weight in weights(model) if not weight.parameter.requires_grad}


def _places(model: nn.Module, weight: Weight) -> list[tuple[nn.Module, str]]:
    """Every module that holds a weight, once, though it may bear several paths."""
    found = [(model.get_submodule(path), attribute) for path, attribute in weight.owners]
    return list({(id(module), attribute): (module, attribute) for module, attribute in found}.values())


def _recurrent(model: nn.Module, found: list[Weight]) -> list[nn.RNNBase]:
    modules = {id(module): module for weight in found for module, _ in _places(model, weight)}
    return [module for module in modules.values() if isinstance(module, nn.RNNBase)]


def _drop_graph(module: nn.RNNBase, inputs: Any, output: Any) -> None:
    """Keeps a recurrent layer's list of weights free of autograd history, which would forbid deepcopy.

    In the next forward pass the layer must notice that these are not its weights any more, even if `cached()` gives
    it the same ones again.
    """
    flat = [weight for weight in module._flat_weights if weight is not None]
    module._flat_weights = [weight.detach() if weight.grad_fn else weight for weight in flat]
    module._flat_weight_refs = [_nothing] * len(module._flat_weights)  # type: ignore[list-item]


def _nothing() -> None:
    """Stands for a weak reference whose weight is gone."""


def detach(model: nn.Module) -> nn.Module:
    """Removes what `attach` added, in place; the weights keep their compressed values.

    Tied weights stay tied, and each parameter object is the one that it was before `attach`, in the same order.

    >>> net = detach(nn.Linear(2, 2))
    """
    state = attachment(model)
    if state is None:
        return model
    remove(model)
    found = list(attached(model))
    recurrent = _recurrent(model, [weight for weight, _ in found])
    for weight, node in found:
        with torch.no_grad():
            value = node(weight.parameter)
            weight.parameter.copy_(value)
        weight.parameter.requires_grad_(weight.name not in state.fixed)
        for module, attribute in _places(model, weight):
            _own_class(module)
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    for path, names in state.order.items():
        parameters = model.get_submodule(path)._parameters
        for name in names:
            parameters[name] = parameters.pop(name)
    for module in recurrent:
        for key in [key for key, hook in module._forward_hooks.items() if hook is _drop_graph]:
            del module._forward_hooks[key]
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, parameter)
    delattr(model, ATTRIBUTE)
    return model


def _own_class(module: nn.Module) -> None:
    """Gives a parametrized module a class that no copy of it shares.

    A deepcopy shares the class that holds the parametrized property; removing the property from one would break all.
    """
    cls = type(module)
    body = {name: value for name, value in vars(cls).items() if name not in {"__dict__", "__weakref__"}}
    module.__class__ = type(cls.__name__, cls.__bases__, body)


def attachment(model: nn.Module) -> Attachment | None:
    """Returns what is attached to a model, or None."""
    found = getattr(model, ATTRIBUTE, None)
    return found if isinstance(found, Attachment) else None


def node_of(model: nn.Module, weight: Weight) -> Node | None:
    """Returns the node behind a weight, or None; ModelError if the weight is parametrized by somebody else."""
    path, attribute = weight.owners[0]
    module = model.get_submodule(path)
    if not parametrize.is_parametrized(module, attribute):
        return None
    chain = module.parametrizations[attribute]  # type: ignore[index]
    if len(chain) != 1 or not isinstance(chain[0], Node):
        raise ModelError(f"{weight.name} has a parametrization of its own ({chain[0]}); remove it first")
    return chain[0]


def _check_own(model: nn.Module) -> None:
    """Raises ModelError if a weight is parametrized by somebody else: its value is hidden from us."""
    for path, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList) and not (
            len(module) == 1 and isinstance(module[0], Node)
        ):
            name = path.replace("parametrizations.", "")
            raise ModelError(f"{name} has a parametrization of its own ({module[0]}); remove it first")


def attached(model: nn.Module) -> Iterator[tuple[Weight, Node]]:
    """Yields every weight with something attached, and its node."""
    for weight in weights(model):
        path, attribute = weight.owners[0]
        module = model.get_submodule(path)
        if parametrize.is_parametrized(module, attribute):
            node = module.parametrizations[attribute][0]  # type: ignore[index]
            if isinstance(node, Node):
                yield weight, node


def new_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that `attach` added, for an optimizer that existed before: codebooks, factors, scales.

    >>> new_parameters(nn.Linear(2, 2))
    []
    """
    added = [*(node for _, node in attached(model)), *(own for _, _, own in quantizers(model))]
    return [parameter for module in added for parameter in module.parameters() if parameter.requires_grad]


def advance(model: nn.Module, progress: float) -> bool:
    """Moves schedules to this point of the training; call it between optimizer steps.

    Args:
        model: a model with a recipe attached.
        progress: part of the training that is over, 0 to 1.

    Returns:
        Whether anything changed.
    """
    if not 0 <= progress <= 1:
        raise RecipeError(f"progress = {progress} must lie between 0 and 1")
    with torch.no_grad():
        changed = [node.advance(weight.parameter, progress) for weight, node in attached(model)]
    for _, _, own in quantizers(model):
        now = own.target.at(progress)
        changed.append(now != own.method)
        own.method = now
    for module in model.modules():
        if isinstance(module, ClippedLSTM):
            module.anneal(progress)
    return any(changed)


def packed_weights(model: nn.Module) -> dict[str, Packed | Tensor]:
    """Returns every parameter and buffer of a model by its plain name, attached weights packed."""
    buffers = packed_buffers(model)
    result: dict[str, Packed | Tensor] = {}
    nodes = {weight.name: (weight, node) for weight, node in attached(model)}
    for weight in weights(model):
        _, node = nodes.get(weight.name, (weight, None))
        result[weight.name] = node.packed(weight.parameter) if node else weight.parameter.detach().clone()
    return result | buffers


def plain_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns copies of a model's persistent buffers by name, but for those that `attach` added.

    Raises:
        ModelError: if a weight is parametrized by somebody else.
    """
    _check_own(model)
    inside = {id(buffer) for _, node in attached(model) for buffer in node.buffers()}
    inside |= {id(buffer) for _, _, own in quantizers(model) for buffer in own.buffers()}
    persistent = model.state_dict(keep_vars=True)
    return {
        name: buffer.detach().clone()
        for name, buffer in model.named_buffers()
        if id(buffer) not in inside and name in persistent
    }


def packed_buffers(model: nn.Module) -> dict[str, Packed | Tensor]:
    """Returns a model's buffers as `plain_buffers` does, but packed where their module can make them again.

    A module says so by `packed_buffers()`, which returns the `Packed` by the buffer's name. It counts only as long as
    it gives the very buffer that is there, after the cuts that were made; one that was replaced is kept as it is.
    """
    cuts: dict[str, list[Cut]] = {}
    for cut in noted_cuts(model).cuts:
        cuts.setdefault(cut.parameter, []).append(cut)
    result: dict[str, Packed | Tensor] = dict(plain_buffers(model))
    for path, module in model.named_modules():
        made = getattr(module, "packed_buffers", None)
        for attribute, packed in made().items() if callable(made) else ():
            name = join(path, attribute)
            own, held = result.get(name), packed
            for cut in cuts.get(name, ()):
                held = take(held, cut.axis, torch.tensor(cut.kept))
            if isinstance(own, Tensor) and own.shape == held.shape and torch.equal(own.cpu(), unpack(held)):
                result[name] = held
    return result


def plain_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of the model with the compressed weights as ordinary parameters."""
    return detach(copy.deepcopy(model))


def tensor_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters and persistent buffers, tied ones once, without what `attach` added."""
    inside = {id(tensor) for _, node in attached(model) for tensor in (*node.parameters(), *node.buffers())}
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for key, tensor in tensors.items() if key not in inside)
