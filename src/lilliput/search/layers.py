"""The layers that a model runs on an example, as the models of hardware want to have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lilliput.core.errors import ModelError
from lilliput.hardware.layer import Layer
from lilliput.observe.call import Layer as Known

CONVOLUTIONS = (functional.conv1d, functional.conv2d)
UNKNOWN = (functional.conv3d, functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


def layers_of(
    model: nn.Module, run: Callable[[], Any], bits: int = 16, coded: bool = False
) -> tuple[list[Layer], list[str]]:
    """Runs a model once and notes every linear layer and convolution, in order, also those that are plain functions.

    Args:
        model: in eval mode; it isn't changed.
        run: calls the model on an example.
        bits: of weights, inputs and outputs.
        coded: a weight takes no more bits than tell its non-zero values apart, as codes on the chip would.

    Returns:
        The layers, named after their weights, with the part of weights and inputs that isn't zero; and notes on calls
        that no model of hardware knows.

    Raises:
        ModelError: the model runs no such layer.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    >>> found, notes = layers_of(net, lambda: net(torch.ones(1, 3, 8, 8)))
    >>> [(layer.name, layer.macs) for layer in found]
    [('0', 7776), ('3', 2880)]
    """
    recorder = _Recorder(model, bits, coded)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), recorder:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    recurrent = [name for name, module in model.named_modules() if isinstance(module, nn.RNNBase)]
    notes = recorder.notes + [f"{name}: a recurrent layer, left out" for name in recurrent]
    if not recorder.layers:
        raise ModelError("the model runs no linear layer and no convolution that hardware could be assessed for")
    return recorder.layers, notes


class _Recorder(TorchFunctionMode):
    """Sees every call of a function of torch."""

    def __init__(self, model: nn.Module, bits: int, coded: bool) -> None:
        super().__init__()
        self.bits, self.coded = bits, coded
        self.names = {_storage(value): name for name, value in model.named_parameters(remove_duplicate=False)}
        self.modules = {
            _storage(module.weight): name for name, module in model.named_modules() if isinstance(module, Known)
        }
        self.layers: list[Layer] = []
        self.notes: list[str] = []
        self.inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes the call, then makes it."""
        kwargs = kwargs or {}
        if not self.inside and (func in CONVOLUTIONS or func is functional.linear or func in UNKNOWN):
            self.inside = True
            try:
                self._see(func, list(args), dict(kwargs))
            finally:
                self.inside = False
        return func(*args, **kwargs)

    def _see(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
        image, weight = (args.pop(0) if args else kwargs.pop(name) for name in ("input", "weight"))
        name = self.modules.get(_storage(weight)) or self.names.get(_storage(weight), "").removesuffix(".weight")
        name = name or f"{func.__name__} {len(self.layers)}"
        if func in UNKNOWN:
            self.notes.append(f"{name}: {func.__name__}, left out")
            return
        facts = {"name": name, **self._facts(image, weight)}
        if func is functional.linear:
            batch = max(1, math.prod(image.shape[:-1]))
            self.layers.append(Layer(weight.shape[1], weight.shape[0], batch=batch, **facts))
        else:
            self.layers.append(_convolution(image, weight, args, kwargs, facts))

    def _facts(self, image: Tensor, weight: Tensor) -> dict[str, Any]:
        present = weight[weight != 0]
        bits = self.bits
        if self.coded:
            distinct = int(present.unique().numel())
            bits = min(bits, max(1, math.ceil(math.log2(max(distinct, 1)))))
        dense = present.numel() / max(weight.numel(), 1)
        busy = int(torch.count_nonzero(image)) / max(image.numel(), 1)
        return {
            "weight_bits": bits,
            "input_bits": self.bits,
            "output_bits": self.bits,
            "weight_density": dense,
            "input_density": busy,
        }


def _convolution(image: Tensor, weight: Tensor, args: list[Any], kwargs: dict[str, Any], facts: dict[str, Any]) -> Layer:
    given = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given |= dict(zip(given, args)) | kwargs
    spatial = weight.ndim - 2
    batch = image.shape[0] if image.ndim == weight.ndim else 1
    kernel, dilation = tuple(weight.shape[2:]), _many(given["dilation"], spatial)
    padding = given["padding"]
    if isinstance(padding, str):
        same = tuple(-(-d * (k - 1) // 2) for d, k in zip(dilation, kernel))
        padding = same if padding == "same" else 0
    return Layer(
        weight.shape[1] * given["groups"],
        weight.shape[0],
        size=_pair(tuple(image.shape[-spatial:]), 1),
        kernel=_pair(kernel, 1),
        stride=_pair(_many(given["stride"], spatial), 1),
        padding=_pair(_many(padding, spatial), 0),
        dilation=_pair(dilation, 1),
        groups=given["groups"],
        batch=batch,
        **facts,
    )


def _many(value: Any, count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _pair(values: tuple[int, ...], other: int) -> tuple[int, int]:
    """Height and width; a line has one row."""
    return (other, values[0]) if len(values) == 1 else (values[0], values[1])


def _storage(value: Tensor) -> int:
    """What a weight and its views have in common."""
    return value.untyped_storage().data_ptr() if value.numel() else id(value)

