"""The layers that a model runs on an example, as the models of hardware want to have them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lilliput.core.errors import ModelError
from lilliput.core.packed import Packed
from lilliput.graph.factors import chain_of, multiplications
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


def factors_of(layer: Layer, weight: Packed | Tensor | None, bits: int = 16) -> list[Layer]:
    """Returns the layers that run in the place of one: the chain of a factorized weight, where that multiplies less.

    Args:
        layer: from `layers_of`.
        weight: what an artifact holds for it.
        bits: of factors that hold no codes, and of what goes from one to the next.

    Returns:
        All of the layer's name; the layer alone if it isn't factorized.

    >>> from lilliput.factorize.svd import Svd
    >>> packed = Svd(rank=2).pack(torch.randn(10, 20))
    >>> [(each.channels, each.filters) for each in factors_of(Layer(20, 10), packed)]
    [(20, 2), (2, 10)]
    """
    like = _module(layer, weight.shape) if isinstance(weight, Packed) else None
    if not isinstance(weight, Packed) or like is None:
        return [layer]
    chain = chain_of(weight, like)
    if not chain or multiplications(chain, like) >= like.weight.numel():
        return [layer]
    coded = [code_bits({"": part}).get("", bits) for part in weight.parts.values() if _is_factor(part)]
    word = min(bits, max(coded, default=bits))
    found: list[Layer] = []
    for factor in chain:
        found.append(_factor(factor, found[-1] if found else None, layer, word))
    return [*found[:-1], replace(found[-1], output_density=layer.output_density)]


def _factor(factor: Any, before: Layer | None, layer: Layer, bits: int) -> Layer:
    """One layer of the chain in another's place, behind the factor `before`."""
    weight = factor.weight.detach()
    plain = isinstance(factor, nn.Linear)
    filters, channels = (weight.shape[0], weight.shape[1] * (1 if plain else factor.groups))
    return Layer(
        channels,
        filters,
        layer.size if before is None else before.output_size,
        (1, 1) if plain else _pair(tuple(weight.shape[2:]), 1),
        (1, 1) if plain else _pair(tuple(factor.stride), 1),
        (0, 0) if plain else _pair(tuple(factor.padding), 0),
        (1, 1) if plain else _pair(tuple(factor.dilation), 1),
        1 if plain else factor.groups,
        layer.batch,
        weight_bits=bits,
        input_bits=layer.input_bits,
        output_bits=layer.output_bits,
        weight_density=int(torch.count_nonzero(weight)) / max(weight.numel(), 1),
        input_density=layer.input_density if before is None else 1.0,
        name=layer.name,
    )


def as_run(layers: Sequence[Layer], weights: Mapping[str, Packed | Tensor], bits: int = 16) -> list[Layer]:
    """Returns the layers of a compressed network, factorized ones as their chains; see `factors_of`.

    Args:
        layers: from `layers_of`, of the network with the unpacked weights.
        weights: of its artifact.
        bits: as in `factors_of`.
    """
    held = [weights.get(f"{layer.name}.weight", weights.get(layer.name)) for layer in layers]
    return [each for layer, weight in zip(layers, held) for each in factors_of(layer, weight, bits)]


def _is_factor(part: Packed | Tensor) -> bool:
    """Whether a part of a packed weight is a factor, and no scale or number."""
    return len(part.shape) > 1


def _module(layer: Layer, shape: Sequence[int]) -> Any:
    """A layer of torch without memory; None where there is none of a weight's shape."""
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=False, device="meta")
    if len(shape) not in (3, 4):
        return None
    kind: Any = nn.Conv1d if len(shape) == 3 else nn.Conv2d
    axes = slice(1, 2) if len(shape) == 3 else slice(0, 2)
    sizes = (tuple(shape[2:]), layer.stride[axes], layer.padding[axes], layer.dilation[axes], layer.groups)
    return kind(layer.channels, layer.filters, *sizes, bias=False, device="meta")


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
