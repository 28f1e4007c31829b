"""The layers that a model runs on an example, as the models of hardware want to have them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lilliput.core.errors import ModelError
from lilliput.core.packed import Packed
from lilliput.hardware.assess import assess
from lilliput.hardware.device import Device
from lilliput.hardware.layer import Layer
from lilliput.observe.call import Layer as Known

CONVOLUTIONS = (functional.conv1d, functional.conv2d)
UNKNOWN = (functional.conv3d, functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


def layers_of(
    model: nn.Module, run: Callable[[], Any], bits: int = 16, codes: Mapping[str, int] | None = None
) -> tuple[list[Layer], list[str]]:
    """Runs a model once and notes every linear layer and convolution, in order, also those that are plain functions.

    Args:
        model: in eval mode; it isn't changed.
        run: calls the model on an example.
        bits: of weights, inputs and outputs.
        codes: fewer bits of some weights, by their names in the state dict; see `code_bits`.

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
    recorder = _Recorder(model, bits, codes or {})
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


def by_energy(layers: Sequence[Layer], device: Device, flow: str = "") -> list[str]:
    """Returns the names of layers by falling energy: the order in which energy-aware pruning goes through them.

    Args:
        layers: from `layers_of`; those of the same name are added up.
        device: on which.
        flow: by default the device's own.

    >>> small, large = Layer(8, 8, name="small"), Layer(80, 80, name="large")
    >>> by_energy([small, large], Device.load("eyeriss"))
    ['large', 'small']
    """
    energies: dict[str, float] = {}
    for layer in layers:
        energies[layer.name] = energies.get(layer.name, 0.0) + assess(layer, device, flow).energy.total
    return sorted(energies, key=lambda name: -energies[name])


class _Recorder(TorchFunctionMode):
    """Sees every call of a function of torch."""

    def __init__(self, model: nn.Module, bits: int, codes: Mapping[str, int]) -> None:
        super().__init__()
        self.bits, self.codes = bits, codes
        self.names = {_storage(value): name for name, value in model.named_parameters(remove_duplicate=False)}
        self.modules = {
            _storage(module.weight): name for name, module in model.named_modules() if isinstance(module, Known)
        }
        self.layers: list[Layer] = []
        self.notes: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes the call, then makes it."""
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            self._attention(dict(inspect.signature(func).bind(*args, **kwargs).arguments))
        elif func in CONVOLUTIONS or func is functional.linear or func in UNKNOWN:
            self._see(func, list(args), dict(kwargs))
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

    def _attention(self, given: dict[str, Any]) -> None:
        """Its projections are linear layers; inside they are seen by nobody."""
        inputs = [given[name] for name in ("query", "key", "value")]
        packed = given.get("in_proj_weight")
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        parts = [given[name] for name in names] if packed is None else packed.chunk(3)
        for image, weight in zip(inputs, parts):
            self._see(functional.linear, [image, weight], {})
        self._see(functional.linear, [inputs[0], given["out_proj_weight"]], {})

    def _facts(self, image: Tensor, weight: Tensor) -> dict[str, Any]:
        name = self.names.get(_storage(weight), "")
        return {
            "weight_bits": min(self.bits, self.codes.get(name, self.bits)),
            "input_bits": self.bits,
            "output_bits": self.bits,
            "weight_density": int(torch.count_nonzero(weight)) / max(weight.numel(), 1),
            "input_density": int(torch.count_nonzero(image)) / max(image.numel(), 1),
        }


def code_bits(weights: Mapping[str, Packed | Tensor]) -> dict[str, int]:
    """Returns how many bits tell the codes of each packed weight apart, zeros left out, as hardware could keep them.

    Args:
        weights: of an artifact; those that hold no codes aren't in the result.

    >>> from lilliput.quantize.uniform import Uniform
    >>> code_bits({"w": Uniform(bits=4).pack(torch.linspace(-1, 1, 100)[None])})
    {'w': 4}
    """
    found = {}
    for name, weight in weights.items():
        codes: Any = weight
        while isinstance(codes, Packed):
            codes = codes.parts.get("codes", codes.parts.get("values"))
        if isinstance(codes, Tensor) and not codes.dtype.is_floating_point and isinstance(weight, Packed):
            # Several planes of codes are several terms of each weight.
            planes = codes.shape[0] if tuple(codes.shape[1:]) == weight.shape and codes.ndim > len(weight.shape) else 1
            distinct = len(set(codes[codes != 0].tolist()))
            found[name] = planes * max(1, math.ceil(math.log2(max(distinct, 1))))
    return found


def _convolution(
    image: Tensor, weight: Tensor, args: list[Any], kwargs: dict[str, Any], facts: dict[str, Any]
) -> Layer:
    given: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
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
