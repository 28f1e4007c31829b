"""Which layer's outputs are another layer's inputs, channel by channel."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lilliput.core.data import call, inputs_of
from lilliput.core.layers import weights
from lilliput.observe.call import Layer
from lilliput.observe.cost import Loss
from lilliput.observe.follow import ACTIVATIONS, PASSED

CHANNELWISE = (
    PASSED
    | ACTIVATIONS
    | {"instance_norm", "group_norm", "layer_norm", "feature_dropout", "contiguous", "clone", "detach", "to", "float"}
    | {f"{kind}_pool{n}d" for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)}
)
"""Functions that leave a channel a channel, at its place."""

FLATTENING = frozenset({"flatten", "view", "reshape", "squeeze", "mean", "amax", "sum"})
"""Functions that do so if the examples stay examples and nothing is left but channels, each so many times in a row."""


@dataclass(frozen=True)
class Source:
    """Where a layer's inputs come from.

    Attributes:
        weight: name of the weight whose outputs they are; None where they are anything else, as a sum of several.
        each: inputs that come of one output, side by side; more than one after flattening maps.
    """

    weight: str | None = None
    each: int = 1


@dataclass(frozen=True)
class _Followed:
    """A tensor that holds a layer's outputs: whose, along which dimension, and how many there were."""

    name: str
    axis: int
    count: int


class SourcesOf:
    """Collects `Source` of linear and convolution layers from one forward pass, the first batch's."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.found: dict[str, set[Source]] | None = None

    def see(self, model: nn.Module, batch: Any, loss: Loss | None) -> None:
        """Takes one batch."""
        if self.found is not None:
            return
        self.found = {name: set() for name in self.parameters}
        trail = _Trail()
        with ExitStack() as stack:
            for weight in weights(model):
                for path in dict.fromkeys(path for path, leaf in weight.owners if leaf == "weight"):
                    module = model.get_submodule(path)
                    if isinstance(module, Layer):
                        handle = module.register_forward_hook(self._hook(weight.name, trail), with_kwargs=True)
                        stack.callback(handle.remove)
            stack.enter_context(torch.no_grad())
            stack.enter_context(trail)
            call(model, inputs_of(batch))

    def _hook(self, name: str, trail: _Trail) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(value, Tensor) or not isinstance(output, Tensor):
                return
            linear = isinstance(module, nn.Linear)
            seen = trail.followed.get(value)
            if self.found is not None and name in self.found:
                axis = value.ndim - 1 if linear else 1
                fits = seen is not None and seen.axis == axis and value.shape[axis] % seen.count == 0
                source = Source(seen.name, value.shape[axis] // seen.count) if fits and seen is not None else Source()
                self.found[name].add(source)
            axis = output.ndim - 1 if linear else 1
            if output.ndim > axis:
                trail.followed[output] = _Followed(name, axis, output.shape[axis])

        return hook

    def result(self, name: str) -> Source | None:
        """Returns what was seen: no source for a layer that was called with several; None if nothing was."""
        if self.found is None:
            return None
        seen = self.found[name]
        return seen.copy().pop() if len(seen) == 1 else Source()


class _Trail(TorchFunctionMode):
    """Follows outputs of layers through functions that leave channels channels."""

    def __init__(self) -> None:
        super().__init__()
        self.followed: Any = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs the function; its result is followed if it is what was followed, channel by channel."""
        value = args[0] if args else next(iter((kwargs or {}).values()), None)
        seen = self.followed.get(value) if isinstance(value, Tensor) else None
        result = func(*args, **(kwargs or {}))
        if seen is None or not isinstance(result, Tensor) or result is value:
            return result
        name = getattr(func, "__name__", "").lstrip("_").removesuffix("_with_indices")
        before, after = tuple(value.shape) if isinstance(value, Tensor) else (), tuple(result.shape)
        same = len(after) > seen.axis and after[: seen.axis + 1] == before[: seen.axis + 1]
        flat = len(after) == 2 and after[0] == before[0] and after[1] % seen.count == 0
        if (name in CHANNELWISE and same) or (name in FLATTENING and seen.axis == 1 and (same or flat)):
            self.followed[result] = seen
        return result
