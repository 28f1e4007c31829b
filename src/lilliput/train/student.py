"""A ternary student of a teacher: layer by layer, neuron by neuron, with thresholds in BatchNorm's place (TNN)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lilliput.core.activations import Quantized
from lilliput.core.data import call, inputs_of
from lilliput.core.errors import DataError, ModelError
from lilliput.observe.inputs import pieces
from lilliput.quantize.activations.ternary import Ternary
from lilliput.quantize.ternary_network import Search, neuron
from lilliput.train.attach import plain_copy
from lilliput.train.quantizer import place, quantizers

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Converted:
    """How one layer was converted.

    Attributes:
        layer: its path.
        agreement: mean probability, under the teacher, of what its neurons give.
        limit: the most that it could be: the mean of the teacher's largest probability.
        zeros: part of its weights that are 0.
    """

    layer: str
    agreement: float
    limit: float
    zeros: float


def student(
    teacher: nn.Module,
    data: Iterable[Any],
    *,
    samples: int = 2000,
    search: Search = "grid",
    squash: Literal["hardtanh", "tanh"] = "hardtanh",
    seed: int = 0,
) -> tuple[nn.Module, list[Converted]]:
    """Makes a student with ternary weights of a teacher with real weights and ternary activations.

    Alemdar et al. 2017 (arXiv 1609.00222): greedily, each neuron of each layer gets those weights -1, 0, +1 and those
    two thresholds that agree best with what the teacher's neuron gives, on inputs that the student's earlier layers
    give. A layer is converted if a ternary quantizer stands in front of it and a BatchNorm takes its output; the
    BatchNorm then holds the thresholds. Others (the first, whose inputs are pixels, and the last) stay as they are.

    Args:
        teacher: a model with `quantize/activations/ternary` attached, trained; it is not changed.
        data: any iterable of inputs, (inputs, targets) or dicts, all of one pass in memory as activations of one layer.
        samples: rows that each layer is judged on, drawn at random.
        search: see `quantize.ternary_network.neuron`.
        squash: what makes the teacher's normalised output a mean between -1 and 1.
        seed: of the drawing.

    Returns:
        A plain model with quantizers in front of the same layers, to be compressed by `quantize/ternary_network`, and
        how each layer was converted.

    Raises:
        ModelError: nothing can be converted.
        DataError: the data is empty.
    """
    copied = plain_copy(teacher).eval()
    made = plain_copy(teacher).eval()
    held = {path: own.target for path, _, own in quantizers(teacher) if isinstance(own.target, Ternary)}
    for model in (copied, made):
        place(model, {path: Quantized(Ternary(threshold=method.threshold)) for path, method in held.items()})
    batches = [inputs_of(batch) for batch in data]
    if not batches:
        raise DataError("the data is empty: give an iterable with at least one batch")
    pairs = [(path, norm) for path, norm in _pairs(copied, batches[0]) if path in held]
    if not pairs:
        raise ModelError("no layer has a ternary quantizer in front of it and a BatchNorm behind it")
    lines = []
    for path, norm in pairs:
        generator = torch.Generator().manual_seed(seed)
        inputs, rho = _seen(made, path, None, batches), _seen(copied, None, norm, batches)
        chosen = torch.randperm(len(rho), generator=generator)[:samples]
        mean = torch.tanh(rho[chosen]) if squash == "tanh" else rho[chosen].clamp(-1, 1)
        lines.append(_convert(made, path, norm, (inputs[:, chosen], mean, search), held[path].threshold))
    return made, lines


def _convert(model: nn.Module, path: str, norm: str, found: tuple[Tensor, Tensor, Any], threshold: float) -> Converted:
    """Gives one layer of the student its weights, and the BatchNorm behind it the thresholds."""
    inputs, mean, search = found
    layer, behind = model.get_submodule(path), model.get_submodule(norm)
    assert isinstance(layer, LAYERS)
    assert isinstance(behind, NORMS)
    rows, agreements = layer.weight.detach().flatten(1), []
    votes = torch.stack([(-mean).clamp(min=0), 1 - mean.abs(), mean.clamp(min=0)], 2)
    low, high = torch.empty(len(rows)), torch.empty(len(rows))
    for index, row in enumerate(rows):
        group = index * len(inputs) // len(rows)
        one = neuron(row, inputs[group], votes[:, index], search)
        rows[index], low[index], high[index] = one.weights, one.low, one.high
        agreements.append(one.agreement)
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
        # (y - middle) factor is above the threshold from high + 1 on, and below its negative up to low - 1.
        assert behind.running_mean is not None
        assert behind.running_var is not None
        behind.running_mean.copy_((low + high) / 2)
        behind.running_var.fill_(1.0)
        behind.weight.copy_(2 * threshold / (high - low + 1) * (1 + behind.eps) ** 0.5)
        behind.bias.zero_()
    zeros = float((rows == 0).float().mean())
    return Converted(path, sum(agreements) / len(agreements), float(votes.amax(2).mean()), zeros)


def _pairs(model: nn.Module, inputs: Any) -> list[tuple[str, str]]:
    """Layers and the BatchNorms that take their outputs, in the order of their calls."""
    found: list[tuple[str, str]] = []
    outputs: dict[int, tuple[str, Tensor]] = {}
    hooks = []

    def after(path: str) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            outputs[id(output)] = path, output

        return hook

    def before(path: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            if id(args[0]) in outputs:
                found.append((outputs[id(args[0])][0], path))

        return hook

    for path, module in model.named_modules():
        if isinstance(module, LAYERS):
            hooks.append(module.register_forward_hook(after(path)))
        elif isinstance(module, NORMS) and module.affine and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(before(path)))
    try:
        with torch.no_grad():
            call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _seen(model: nn.Module, layer: str | None, norm: str | None, batches: list[Any]) -> Tensor:
    """Rows that a layer's weight meets, (groups, samples, columns), or what a BatchNorm gives, (samples, channels)."""
    rows: list[Tensor] = []

    def hook(module: Any, args: Any, output: Tensor) -> None:
        if layer is not None:
            rows.extend(pieces(module, args[0]))
        else:
            rows.append(output.movedim(1, -1).reshape(-1, output.shape[1]))

    handle = model.get_submodule(str(layer if layer is not None else norm)).register_forward_hook(hook)
    try:
        with torch.no_grad():
            for batch in batches:
                call(model, batch)
    finally:
        handle.remove()
    return torch.cat(rows, 1 if layer is not None else 0)
