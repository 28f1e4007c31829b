"""Compares a compressed network with the original: its outputs, and each layer's weights and outputs, worst first."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.data import call, first, inputs_of
from lilliput.core.errors import DataError, ModelError
from lilliput.core.layers import Weight, weights
from lilliput.file.artifact import Artifact
from lilliput.graph.structure import join, tensors_in
from lilliput.run.load import fill, load


@dataclass(frozen=True)
class Outputs:
    """How far the outputs of two networks are from one another, over all batches.

    Attributes:
        largest: largest absolute difference.
        relative: |a - b| / |b| in the Frobenius norm, b the original's.
        cosine: mean cosine between the outputs of one sample; None where a sample has but one number.
        agreement: part of the samples for which both rank the same class first; None where there are no classes.
        samples: how many samples were compared.
    """

    largest: float
    relative: float
    cosine: float | None
    agreement: float | None
    samples: int


@dataclass(frozen=True)
class LayerError:
    """How far one weight, and what its layer puts out, is from the original.

    Attributes:
        name: of the weight.
        kind: of its layer, such as `conv2d`.
        weight: |w - original| / |original| in the Frobenius norm; None where the shapes differ.
        output: the same of the layer's output on the original's own inputs: what this layer alone does wrong.
        reached: the same with the inputs that the compressed network gives it: what has piled up so far.
    """

    name: str
    kind: str
    weight: float | None
    output: float | None = None
    reached: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        outputs: of the networks; None without data.
        layers: every weight of two or more axes or that differs, worst first.
        notes: what couldn't be compared, and why.
    """

    outputs: Outputs | None
    layers: tuple[LayerError, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Sums:
    """Running sums of |a - b|^2 and |b|^2."""

    apart: float = 0.0
    size: float = 0.0

    def add(self, one: Tensor, two: Tensor) -> None:
        reference = two.detach().double()
        self.apart += float((one.detach().double() - reference).square().sum())
        self.size += float(reference.square().sum())

    @property
    def relative(self) -> float:
        return (self.apart / self.size) ** 0.5 if self.size else (0.0 if not self.apart else float("inf"))


def compare(artifact: Artifact, model: nn.Module, data: Iterable[Any] | None = None) -> Comparison:
    """Compares a compressed network with the one that it was made of.

    The compressed network runs in the `dense` engine, without its class if the file holds a graph.

    Args:
        artifact: the compressed network.
        model: the original with its weights; it is not changed.
        data: batches (inputs, pairs or dicts) to run both on; None: only the weights are compared.

    Returns:
        Errors of outputs and layers.

    Raises:
        ModelError: if the file is of another model.
        DataError: if the data is empty, or doesn't fit the network.

    >>> from lilliput.core.recipe import Recipe
    >>> from lilliput.train.compress import compress
    >>> layer = nn.Linear(8, 4)
    >>> found = compare(compress(layer, Recipe.preset("int8")), layer, [torch.rand(2, 8)])
    >>> found.layers[0].name, found.layers[0].weight < 0.01, found.outputs.samples
    ('weight', True, 2)
    """
    notes: list[str] = []
    if isinstance(data, Tensor):
        data = [data]
    example = None if data is None else inputs_of(first(data))
    original = folded(artifact, model, example, notes)
    twin = fill(copy.deepcopy(original), artifact)
    errors = _weight_errors(original, twin, cut(artifact, original))
    outputs = None
    if data is not None:
        compressed = load(artifact, engine="dense") if artifact.graph is not None else twin
        outputs, own, total = _run(original, twin, compressed, data)
        errors = [_with_outputs(error, weight, own, total) for weight, error in zip(weights(original), errors)]
    shown = [error for error in errors if error.kind != "vector" or error.weight]
    shown.sort(key=lambda error: -(error.weight or 0.0) if error.output is None else -error.output)
    smaller = {one.parameter for one in artifact.cuts} & {error.name for error in shown}
    if smaller and data is not None:
        notes.append(f"{len(smaller)} layers lost channels: of them only the weights that stayed are compared")
    return Comparison(outputs, tuple(shown), tuple(notes))


def folded(artifact: Artifact, model: nn.Module, example: Any = None, notes: list[str] | None = None) -> nn.Module:
    """Returns a copy of a model in eval mode, its BatchNorms folded if the file's are.

    Args:
        artifact: the compressed network.
        model: the original; it is not changed.
        example: an input to find the BatchNorms with; by default one is made from the file's graph.
        notes: a line is added here if they couldn't be folded.
    """
    work = copy.deepcopy(model).eval()
    if notes is not None and any(getattr(one, "when", "") == "before" for one in artifact.recipe.passes):
        notes.append("the recipe's passes scaled the channels of the file's weights, not those of the original")
    if not artifact.facts.get("folded"):
        return work
    from lilliput.graph.fold import fold

    example = example_of(artifact) if example is None else example
    try:
        if example is None:
            raise ModelError("there is neither data nor a graph to find them with")
        fold(work, example)
    except ModelError as error:
        if notes is not None:
            notes.append(f"the file's BatchNorms are folded, the original's are not: {error}")
    return work


def cut(artifact: Artifact, model: nn.Module) -> dict[str, Tensor]:
    """Returns a model's tensors by name, of cut ones only what the file kept; the model is not changed."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for one in artifact.cuts:
        tensor = state.get(one.parameter)
        if tensor is not None and one.axis < tensor.ndim and tensor.shape[one.axis] == one.size:
            state[one.parameter] = tensor.index_select(one.axis, torch.tensor(one.kept, dtype=torch.int64))
    return state


def example_of(artifact: Artifact) -> tuple[Any, ...] | dict[str, Any] | None:
    """Makes an input of the shapes that the graph was traced with, each open size 2; None without a graph.

    Floats are random, integers and bools are ones, which suit an index as well as a mask.
    """
    if artifact.graph is None:
        return None
    sizes = {name: max(low, 2) for name, (low, _) in artifact.graph.symbols.items()}
    made = []
    for spec in artifact.graph.inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        made.append(
            torch.rand(shape).to(spec.dtype) if spec.dtype.is_floating_point else torch.ones(shape).to(spec.dtype)
        )
    if not artifact.graph.call:
        return tuple(made)
    arguments = {
        name: join(tree, lambda ref: made[ref.index])  # type: ignore[union-attr]
        for name, tree in artifact.graph.call
    }
    # `*args` have numbers for names.
    return tuple(arguments.values()) if any(name.isdigit() for name in arguments) else arguments


def _weight_errors(original: nn.Module, twin: nn.Module, references: dict[str, Tensor]) -> list[LayerError]:
    errors = []
    for before, after in zip(weights(original), weights(twin), strict=True):
        sums, reference = _Sums(), references[before.name]
        same = reference.shape == after.parameter.shape
        if same:
            sums.add(after.parameter, reference)
        errors.append(LayerError(before.name, before.kind, sums.relative if same else None))
    return errors


def _with_outputs(error: LayerError, weight: Weight, own: dict[str, _Sums], total: dict[str, _Sums]) -> LayerError:
    path = weight.owners[0][0]
    if path not in own or weight.kind == "vector":
        return error
    reached = total[path].relative if path in total else None
    return LayerError(error.name, error.kind, error.weight, own[path].relative, reached)


@dataclass
class _Tape:
    """First outputs of the layers in one forward pass, by module path."""

    results: dict[str, Tensor] = field(default_factory=dict)


def _run(
    original: nn.Module, twin: nn.Module, compressed: nn.Module, data: Iterable[Any]
) -> tuple[Outputs, dict[str, _Sums], dict[str, _Sums]]:
    # A layer that lost channels takes and gives other shapes than the original's.
    pairs = zip(weights(original), weights(twin))
    same = [one for one, two in pairs if one.kind != "vector" and one.parameter.shape == two.parameter.shape]
    paths = list(dict.fromkeys(weight.owners[0][0] for weight in same))
    own: dict[str, _Sums] = {}
    total: dict[str, _Sums] = {}
    meter = _Meter()
    with torch.no_grad():
        for batch in data:
            inputs = inputs_of(batch)
            with _taped(original, paths, twin, own) as before, _taped(twin, paths) as after:
                expected = call(original, inputs)
                call(twin, inputs)
            meter.add(call(compressed, inputs), expected)
            for path in before.results.keys() & after.results.keys():
                if before.results[path].shape == after.results[path].shape:
                    total.setdefault(path, _Sums()).add(after.results[path], before.results[path])
    return meter.outputs(), own, total


@contextmanager
def _taped(
    model: nn.Module, paths: Sequence[str], twin: nn.Module | None = None, own: dict[str, _Sums] | None = None
) -> Iterator[_Tape]:
    """Records what the modules of these paths put out; with a twin, also what its module makes of the same inputs."""
    tape = _Tape()
    hooks = []

    def hook_of(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found = tensors_in(output)
            if not found or not found[0].is_floating_point():
                return
            tape.results[path] = found[0]
            if twin is not None and own is not None:
                # Past the twin's hooks, which record its own pass.
                other = tensors_in(twin.get_submodule(path).forward(*args, **kwargs))
                if other and other[0].shape == found[0].shape:
                    own.setdefault(path, _Sums()).add(other[0], found[0])

        return hook

    for path in paths:
        hooks.append(model.get_submodule(path).register_forward_hook(hook_of(path), with_kwargs=True))
    try:
        yield tape
    finally:
        for hook in hooks:
            hook.remove()


class _Meter:
    """Adds up differences of outputs over batches."""

    def __init__(self) -> None:
        self.sums = _Sums()
        self.largest = 0.0
        self.cosines: list[Tensor] = []
        self.agreements: list[Tensor] = []
        self.samples = 0

    def add(self, got: Any, expected: Any) -> None:
        ours, theirs = _floats(got), _floats(expected)
        if not theirs or [t.shape for t in ours] != [t.shape for t in theirs]:
            raise DataError(
                "the outputs of the two networks can't be compared: no floating-point tensors, or other shapes"
            )
        for one, two in zip(ours, theirs):
            self.sums.add(one, two)
            if one.numel():
                self.largest = max(self.largest, float((one.double() - two.double()).abs().max()))
        one, two = ours[0], theirs[0]
        self.samples += len(one) if one.ndim else 1
        if one.ndim >= 2 and one[0].numel() > 1:
            flat = one.flatten(1).double(), two.flatten(1).double()
            self.cosines.append(torch.nn.functional.cosine_similarity(*flat, dim=1))
        if one.ndim == 2 and one.shape[1] > 1:
            self.agreements.append(one.argmax(1) == two.argmax(1))

    def outputs(self) -> Outputs:
        return Outputs(self.largest, self.sums.relative, _mean(self.cosines), _mean(self.agreements), self.samples)


def _floats(output: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def _mean(parts: list[Tensor]) -> float | None:
    return float(torch.cat(parts).double().mean()) if parts else None
