"""A quantizer in front of a layer, or behind it: put there, taken away, and asked for as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.activations import OUT, Quantized, side_of
from lilliput.core.checks import is_finite
from lilliput.core.errors import DataError, LilliputError, ModelError, NotInstalled, RecipeError
from lilliput.core.layers import OUTPUT, QUANTIZER, Weight, join
from lilliput.core.recipe import Absent, Recipe

TAKES = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.RNNBase,
    nn.RNNCellBase,
)
"""Layers with one input that a weight multiplies."""

GIVES = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
)
"""Layers whose result may be quantized."""

NUMBER = "number_"
"""Prefix of the buffers and parameters that hold a quantizer's numbers."""


class Through(torch.autograd.Function):
    """Returns the quantized value itself; the quantizer says what gradient reaches x and its trained numbers."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Tensor, method: Any, numbers: Mapping[str, float], *trained: Tensor
    ) -> Tensor:
        """Returns `value`.

        Args:
            ctx: of autograd.
            x: what goes into the layer.
            value: what it is quantized to.
            method: whose `gradient` is asked.
            numbers: of the method.
            trained: the parameters among the numbers, in the order of `method.trained`.
        """
        ctx.method, ctx.numbers = method, numbers
        ctx.save_for_backward(x, *trained)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Asks the quantizer."""
        x, *trained = ctx.saved_tensors
        own, numbers = ctx.method.gradient(x, ctx.numbers, grads[0])
        found = [
            torch.as_tensor(numbers[name], dtype=p.dtype, device=p.device).reshape(p.shape)
            for name, p in zip(ctx.method.trained, trained)
        ]
        return (own.to(x.dtype), None, None, None, *found)


class Quantizer(nn.Module):
    """What stands in front of a layer, under the name `input_quantizer`, or behind it, under `output_quantizer`.

    The layer's own hooks call it.

    Attributes:
        method: the quantizer's setting at this point of the training.
        target: its setting in the end.
        path: of the layer, for messages.
        behind: whether it stands behind the layer.
    """

    def __init__(self, quantized: Quantized, path: str, state: bool = False, device: Any = None) -> None:
        """Makes one.

        Args:
            quantized: method and numbers.
            path: of the layer, with `:out` if it stands behind it.
            state: for training: numbers are buffers, or parameters if they are trained; otherwise plain numbers.
            device: of the buffers and parameters.
        """
        super().__init__()
        self.target = quantized.method
        self.method = quantized.method.at(0.0) if state else quantized.method
        self.path, self.behind = side_of(path)
        self.state = state
        self.fixed = {} if state else dict(quantized.numbers)
        self.outer: Tensor | None = None
        for name, value in quantized.numbers.items() if state else ():
            if name in self.target.trained:
                held = nn.Parameter(torch.tensor(value, dtype=torch.float32, device=device))
                self.register_parameter(NUMBER + name, held)
            else:
                self.register_buffer(NUMBER + name, torch.tensor(value, dtype=torch.float64, device=device))

    @property
    def numbers(self) -> dict[str, float]:
        """What the method works with now."""
        held = {**self._buffers, **self._parameters}
        found = {name.removeprefix(NUMBER): float(value.detach()) for name, value in held.items() if value is not None}
        return {
            name: int(value) if float(value).is_integer() else value for name, value in (self.fixed | found).items()
        }

    @property
    def quantized(self) -> Quantized:
        """Method and numbers as plain data."""
        return Quantized(self.method, self.numbers)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x on its levels: in eval mode exactly what the file's graph computes.

        Args:
            x: what goes into the layer, or comes out of it, floating-point.

        Raises:
            DataError: while training, if x isn't finite: a sign would hide it from the loss.
        """
        numbers = self.numbers
        if self.training and not is_finite(x.detach()):
            bad, way = int((~torch.isfinite(x)).sum()), "come out of" if self.behind else "go into"
            raise DataError(
                f"{self.path}: {bad} of {x.numel()} activations that {way} it are NaN or infinite; "
                "lower the learning rate, or look for NaN in the data"
            )
        found: Callable[[Tensor, dict[str, float]], Tensor] = self.method.draw if self.training else self.method.forward
        if not torch.is_grad_enabled():
            # Without a context of its own, at each of which export would take the whole graph apart.
            return found(x, numbers)
        with torch.no_grad():
            value: Tensor = found(x.detach(), numbers)
        trained = [self.get_parameter(NUMBER + name) for name in self.method.trained if self.state]
        through: Tensor = Through.apply(x, value, self.method, numbers, *trained)  # type: ignore[no-untyped-call]
        return through


def _before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Quantizes a layer's first argument."""
    quantizer = layer._modules.get(QUANTIZER)
    if not isinstance(quantizer, Quantizer):
        return None
    name = None if args else next(iter(kwargs), None)
    x = args[0] if args else kwargs.get(str(name))
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        raise DataError(f"{quantizer.path}: its input is a {type(x).__name__}, only float tensors can be quantized")
    factor = quantizer.method.factor(x, layer)
    # Past nn.Module, which would keep a tensor as an attribute that deepcopy can't copy while it has a gradient.
    quantizer.__dict__["outer"] = factor
    value = quantizer(x)
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, str(name): value})


def _after(layer: nn.Module, args: Any, output: Any) -> Any:
    """Multiplies a layer's output, less its bias, by the quantizer's factor, if there is one."""
    quantizer = layer._modules.get(QUANTIZER)
    factor = quantizer.__dict__.pop("outer", None) if isinstance(quantizer, Quantizer) else None
    if factor is None or not isinstance(output, Tensor):
        return None
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, Tensor):
        return output * factor
    if not isinstance(layer, nn.Linear):
        bias = bias.reshape(-1, *[1] * (layer.weight.ndim - 2))  # type: ignore[operator]
    return (output - bias) * factor + bias


def _behind(layer: nn.Module, args: Any, output: Any) -> Any:
    """Quantizes a layer's result."""
    quantizer = layer._modules.get(OUTPUT)
    if not isinstance(quantizer, Quantizer):
        return None
    if not isinstance(output, Tensor) or not output.dtype.is_floating_point:
        raise DataError(f"{quantizer.path}: it gives a {type(output).__name__}, only float tensors can be quantized")
    return quantizer(output)


def place(model: nn.Module, found: Mapping[str, Quantized], state: bool = False) -> None:
    """Puts quantizers in front of layers and behind them, in place; one that is there already is replaced.

    Args:
        model: whose layers they are.
        found: by the layer's path, with `:out` for those behind it.
        state: see `Quantizer`.

    Raises:
        ModelError: no such layer, or none that takes one; then nothing is changed.
        NotInstalled: a file's quantizer isn't installed.
    """
    layers = {path: layer_at(model, path) for path in found}
    for path, quantized in found.items():
        if isinstance(quantized.method, Absent):
            raise NotInstalled(f"{path}: {quantized.method.method} can't be carried out: {quantized.method.missing}")
    for path, layer in layers.items():
        device = next((p.device for p in layer.parameters()), None)
        put(layer, Quantizer(found[path], path, state, device))


def before_layers(model: nn.Module, found: Mapping[str, Quantized]) -> list[tuple[nn.Module, Quantizer]]:
    """Returns a quantizer to be trained for each layer; one that stands there already if it is the same."""
    present = {path: own for path, _, own in quantizers(model)}
    result = []
    for path, quantized in found.items():
        layer, before = layer_at(model, path), present.get(path)
        if before is None or not before.state or before.target != quantized.method:
            device = next((p.device for p in layer.parameters()), None)
            before = Quantizer(quantized, path, state=True, device=device)
        result.append((layer, before))
    return result


def layer_at(model: nn.Module, key: str) -> nn.Module:
    """Returns the layer of a path, with or without `:out`; ModelError if there is none that takes a quantizer."""
    path, behind = side_of(key)
    layer = dict(model.named_modules(remove_duplicate=False)).get(path)
    if not isinstance(layer, GIVES if behind else TAKES):
        what = "result" if behind else "input"
        raise ModelError(f"{path or 'the model'}: no layer whose {what} can be quantized in {type(model).__name__}")
    name = OUTPUT if behind else QUANTIZER
    if not isinstance(layer._modules.get(name), Quantizer | None):
        raise ModelError(f"{path}: it has a module '{name}' of its own; rename that first")
    return layer


def put(layer: nn.Module, quantizer: Quantizer) -> None:
    """Puts one quantizer in front of a layer or behind it, and the hooks that call it."""
    take_away(layer, quantizer.behind)
    quantizer.train(layer.training)
    layer._modules[OUTPUT if quantizer.behind else QUANTIZER] = quantizer
    if quantizer.behind:
        layer.register_forward_hook(_behind)
        return
    layer.register_forward_pre_hook(_before, with_kwargs=True)
    # Before a quantizer of the result: that one sees what the factor made of it.
    layer.register_forward_hook(_after, prepend=True)


def take_away(layer: nn.Module, behind: bool) -> None:
    """Removes a layer's quantizer on one side, and its hooks."""
    name = OUTPUT if behind else QUANTIZER
    if isinstance(layer._modules.get(name), Quantizer):
        del layer._modules[name]
    front: Any = ((layer._forward_pre_hooks, _before), (layer._forward_hooks, _after))
    for hooks, own in ((layer._forward_hooks, _behind),) if behind else front:
        for key in [key for key, hook in hooks.items() if hook is own]:
            del hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)


def remove(model: nn.Module) -> None:
    """Removes every quantizer of a model, in place."""
    for _, layer, quantizer in quantizers(model):
        take_away(layer, quantizer.behind)


def replace_all(model: nn.Module, found: list[tuple[nn.Module, Quantizer]]) -> None:
    """Puts quantizers at layers, and takes away all others of the model."""
    remove(model)
    for layer, quantizer in found:
        put(layer, quantizer)


def quantizers(model: nn.Module) -> list[tuple[str, nn.Module, Quantizer]]:
    """Returns (path, layer, quantizer) for all; the path ends with `:out` where it stands behind the layer."""
    return [
        (path + end, layer, own)
        for path, layer in model.named_modules()
        for name, end in ((QUANTIZER, ""), (OUTPUT, OUT))
        if isinstance(own := layer._modules.get(name), Quantizer)
    ]


def quantized(model: nn.Module) -> dict[str, Quantized]:
    """Returns the quantizers of a model as plain data, by the layer's path."""
    return {path: own.quantized for path, _, own in quantizers(model)}


def planned(
    model: nn.Module, recipe: Recipe, found: list[Weight], stats: Mapping[str, Any], notes: dict[str, str]
) -> dict[str, Quantized]:
    """Returns the quantizers that a recipe asks for, by the layer's path.

    Args:
        model: whose layers they are; one that has the same quantizer already goes on with its numbers.
        recipe: what to do.
        found: the model's weights.
        stats: what calibration collected, by weight name.
        notes: takes a line for each layer that the recipe asks for and that can't have one.

    Raises:
        MethodError: calibration saw nothing of a layer, or only zeros; names the layer.
        RecipeError: a rule's quantizer fits no layer.
    """
    present = {path: own for path, _, own in quantizers(model)}
    result: dict[str, Quantized] = {}
    wanted: dict[int, bool] = {}
    reasons: dict[int, str] = {}
    for weight, path, method in asked(recipe, found):
        rule = next(number for number, rule in enumerate(recipe.rules) if rule.fits(weight))
        reason = unsuited(model, path) or method.unsuited(model.get_submodule(path))
        wanted[rule] = wanted.get(rule, False) or reason is None
        if reason is not None:
            reasons[rule] = reason
            notes[weight.name] = f"what goes into it isn't quantized: {reason}"
        elif path not in result:
            before = present.get(path)
            same = before is not None and before.target == method
            result[path] = Quantized(method, before.numbers if same and before else _observed(weight, method, stats))
    for number, fits in wanted.items():
        if not fits:
            raise RecipeError(f"rule[{number}]: its activations fit no layer: {reasons[number]}")
    return result


def _observed(weight: Weight, method: Any, stats: Mapping[str, Any]) -> dict[str, float]:
    try:
        return dict(method.observe(stats.get(weight.name)))
    except LilliputError as error:
        raise type(error)(f"{weight.name} ({weight.kind}, {tuple(weight.parameter.shape)}): {error}") from None


def asked(recipe: Recipe, found: list[Weight]) -> Iterator[tuple[Weight, str, Any]]:
    """Yields (weight, path of its layer, quantizer) for every layer whose input a recipe wants quantized."""
    for weight in found:
        rule = recipe.rule_for(weight)
        if rule is not None and rule.activations is not None and weight.kind != "vector":
            for path, _ in weight.owners:
                yield weight, path, rule.activations


def unsuited(model: nn.Module, path: str) -> str | None:
    """Says why what goes into a layer can't be quantized; None if it can."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(modules.get(path.rpartition(".")[0]), nn.MultiheadAttention):
        return "attention uses this layer's weight without calling the layer"
    if not isinstance(modules[path], TAKES):
        return f"{join(path, type(modules[path]).__name__)} is no linear, convolution or recurrent layer"
    return None
