"""SmoothQuant: what is hard to quantize moves from activations, where channels differ, into the weights behind them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range, is_finite
from lilliput.core.data import call, inputs_of
from lilliput.core.errors import DataError
from lilliput.core.layers import tensors_of
from lilliput.graph.ir import Graph
from lilliput.graph.layers import Layer
from lilliput.graph.scaling import spaces_of

LEAST = 1e-5
"""Of a factor, and of a weight's reach."""


@dataclass(frozen=True)
class Smooth:
    """Divides each channel of the activations by s = max|X|^alpha / max|W|^(1 - alpha), multiplies the weights by it.

    Xiao et al. 2023 (arXiv 2211.10438), equation 4; X is what goes into the layers that take the channel, W their
    columns; s is at least 1e-5. What the network computes stays the same. LayerNorm, BatchNorm and layers can make the
    channel, as long as all that happens to it is homogeneous (ReLU, sums, pools).

    Attributes:
        alpha: 0: only the weights' columns become even, 1: only the activations do.
    """

    alpha: float = 0.5

    when: ClassVar[str] = "before"
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("quantize/passes/smooth", "alpha", self.alpha, 0, 1)

    def rewrite(
        self, model: nn.Module, graph: Graph, data: Any = None, reference: nn.Module | None = None
    ) -> list[str]:
        """Scales weights, biases and norms in place.

        Args:
            model: plain, in eval mode.
            graph: of the model.
            data: batches.
            reference: isn't used.

        Returns:
            What was done, in a line.

        Raises:
            DataError: what goes into a layer isn't finite.
        """
        state = tensors_of(model)
        spaces = spaces_of(graph, state)
        seen = largest_inputs(model, [taker for space in spaces for taker in space.takers], data)
        count = 0
        for space in spaces:
            found = [seen[taker.weight] for taker in space.takers if taker.weight in seen]
            if len(found) < len(space.takers):
                continue
            inputs, weights = torch.stack(found).amax(0).double(), space.taken(state).double()
            factors = inputs**self.alpha / weights.clamp_min(LEAST) ** (1 - self.alpha)
            live = (inputs > 0) & (weights > 0)
            space.divide(torch.where(live, factors.clamp_min(LEAST), torch.ones_like(factors)), state)
            count += space.channels
        return [f"{count} channels in {len(spaces)} place{'s' if len(spaces) != 1 else ''} smoothed"]


@torch.no_grad()
def largest_inputs(model: nn.Module, layers: list[Layer], data: Any) -> dict[str, Tensor]:
    """Returns the largest |x| of each channel that goes into layers, by the name of their weight.

    Args:
        model: in eval mode.
        layers: which.
        data: batches.

    Raises:
        DataError: it isn't finite.
    """
    seen: dict[str, Tensor] = {}

    def hook(layer: Layer) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else next(iter(kwargs.values()))
            if not is_finite(value):
                raise DataError(f"what goes into layer '{layer.name}' is NaN or infinite; check the data")
            axis = value.ndim - 1 if layer.kind == "linear" else 1
            found = value.abs().transpose(0, axis).flatten(1).amax(1)
            seen[layer.weight] = torch.maximum(seen[layer.weight], found) if layer.weight in seen else found

        return see

    with ExitStack() as stack:
        for layer in layers:
            module = model.get_submodule(layer.weight.rpartition(".")[0])
            handle = module.register_forward_pre_hook(hook(layer), with_kwargs=True)
            stack.callback(handle.remove)
        for batch in [data] if isinstance(data, Tensor) else data:
            call(model, inputs_of(batch))
    return seen
