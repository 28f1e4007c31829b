"""Bias correction: what quantization adds to the mean of each channel is taken off its bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lilliput.core.checks import is_finite
from lilliput.core.data import call, inputs_of
from lilliput.core.errors import DataError
from lilliput.core.layers import QUANTIZER
from lilliput.core.method import ActivationQuantizer
from lilliput.graph.ir import Graph
from lilliput.graph.layers import layer_of, norm_of
from lilliput.graph.results import bounds_of
from lilliput.graph.shapes import users_of

STEPS = 4
"""Of Newton's, behind a function that clips."""
FEW = 0.1


@dataclass(frozen=True)
class BiasCorrection:
    """b += d such that E[f(y~ + d)] = E[f(y)] for each channel y of each layer; y~ is what the quantized network gives.

    Nagel et al. 2019 (arXiv 1906.04721), section 4.2, where f is the identity: d = E[y] - E[y~], of weights alone
    (W - W~) E[x]. Here f is the clipping behind the layer, if there is one (ReLU, ReLU6), so that the mean of what goes
    on is kept. Errors of what f cuts off don't matter, and by their mean all other places would be shifted: on
    EfficientNet-Lite0 in 8 bits that loses more than rounding does.

    Layers are corrected in their order: what reaches a layer comes from corrected ones. Both networks see each batch
    once; a correction is the mean of those of the batches so far, so that one batch gives it exactly. A layer's result
    is that of the BatchNorm behind it, if there is one, whose shift takes the correction; a layer without any bias
    stays as it is.

    >>> layer, fine = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> _ = layer.load_state_dict({"weight": torch.tensor([[2.5]]), "bias": torch.tensor([1.0])})
    >>> _ = fine.load_state_dict({"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])})
    >>> from lilliput.graph.trace import trace
    >>> graph, _ = trace(layer, torch.ones(2, 1))
    >>> BiasCorrection().rewrite(layer, graph, [torch.tensor([[1.0], [3.0]])], fine), float(layer.bias)
    (['1 bias corrected'], 0.0)
    """

    when: ClassVar[str] = "after"
    needs_data: ClassVar[bool] = True

    def rewrite(
        self, model: nn.Module, graph: Graph, data: Any = None, reference: nn.Module | None = None
    ) -> list[str]:
        """Changes biases in place.

        Args:
            model: the quantized network, in eval mode.
            graph: of the network.
            data: batches.
            reference: the network before.

        Returns:
            What was done, in a line.

        Raises:
            DataError: what comes out of a layer isn't finite.
        """
        assert reference is not None
        sums = {path: _Sums(*bounds) for path, bounds in results_with_bias(graph, model).items()}
        with ExitStack() as stack, torch.no_grad():
            for path, one in sums.items():
                first, second = reference.get_submodule(path), model.get_submodule(path)
                stack.callback(first.register_forward_hook(one.wanted(path)).remove)
                # First of all hooks: a quantizer of the result sees what is corrected.
                stack.callback(second.register_forward_hook(one.found(path), prepend=True).remove)
            for batch in [data] if isinstance(data, Tensor) else data:
                call(reference, inputs_of(batch))
                call(model, inputs_of(batch))
        with torch.no_grad():
            for path, one in sums.items():
                bias = model.get_submodule(path).bias
                if isinstance(bias, Tensor) and one.shift is not None:
                    bias.copy_(bias.double() + one.shift)
        return [f"{len(sums)} bias{'es' if len(sums) != 1 else ''} corrected"]


class _Sums:
    """Means of one layer's results in both networks, by the channel.

    Args:
        low: what follows confines the results to low .. high.
        high: see low.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.mean: Tensor | None = None
        self.total: Tensor | None = None
        self.count = 0

    @property
    def shift(self) -> Tensor | None:
        """What is to be added, (channels,); None before the first batch."""
        return None if self.total is None else self.total / max(self.count, 1)

    def flat(self, module: nn.Module, value: Tensor, path: str) -> Tensor:
        """Returns a result as (channels, places), float64."""
        if not is_finite(value):
            raise DataError(f"what comes out of layer '{path}' is NaN or infinite; check the data")
        moved = value.movedim(-1, 0) if isinstance(module, nn.Linear) else value.transpose(0, 1)
        return moved.double().flatten(1)

    def wanted(self, path: str) -> Callable[..., None]:
        """Returns the hook of the network before."""

        def see(module: nn.Module, args: Any, output: Tensor) -> None:
            flat = self.flat(module, output, path)
            self.mean = flat.clamp(self.low, self.high).mean(1) if flat.shape[1] else None

        return see

    def found(self, path: str) -> Callable[..., Tensor]:
        """Returns the hook of the quantized network, which corrects at once what comes out."""

        def see(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            flat = self.flat(module, output, path)
            if self.mean is not None:
                own = _shift(flat, self.mean, self.low, self.high) * flat.shape[1]
                self.total = own if self.total is None else self.total + own
                self.count += flat.shape[1]
            if self.shift is None:
                return output
            shape = (-1,) if isinstance(module, nn.Linear) else (-1, *[1] * (output.ndim - 2))
            return output + self.shift.to(output.dtype).reshape(shape)

        return see


def _shift(flat: Tensor, wanted: Tensor, low: float, high: float) -> Tensor:
    """Returns d such that the mean of clip(x + d, low, high) is the wanted one, by Newton's steps.

    The slope is the part of the places that aren't clipped. Where these are few a step is as if they were a tenth, so
    that it falls short rather than beyond; a channel that is clipped nearly everywhere stays nearly as it is.

    >>> _shift(torch.tensor([[1.0, 2.0]]), torch.tensor([2.0]), -torch.inf, torch.inf)
    tensor([0.5000])
    """
    found = torch.zeros_like(wanted)
    for _ in range(1 if low == -math.inf and high == math.inf else STEPS):
        moved = flat + found[:, None]
        inside = ((moved > low) & (moved < high)).to(flat.dtype).mean(1)
        found = found + (wanted - moved.clamp(low, high).mean(1)) / inside.clamp(min=FEW)
    return found


def results_with_bias(graph: Graph, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Returns the paths of layers, or of the BatchNorms behind them, that have a bias of their own to correct.

    With each, what the function behind it confines its result to.

    Args:
        graph: of the network.
        model: whose layers they are. One whose result a quantizer multiplies is left out.
    """
    of_nodes, of_tensors = users_of(graph)
    found = {}
    for index, node in enumerate(graph.nodes):
        layer = layer_of(node)
        if layer is None or len(of_tensors[layer.weight]) > 1 or _multiplied(model, layer.weight):
            continue
        path, bias, place = layer.weight.rpartition(".")[0], layer.bias, index
        following = graph.nodes[of_nodes[index][0]] if of_nodes[index][0] < len(graph.nodes) else None
        norm = norm_of(following) if following is not None and len(of_nodes[index]) == 1 else None
        if norm is not None:
            path, bias, place = norm.mean.rpartition(".")[0], norm.bias, of_nodes[index][0]
        if bias is None or len(of_tensors[bias]) > 1 or bias.rpartition(".")[0] != path:
            continue
        if isinstance(model.get_submodule(path)._parameters.get("bias"), nn.Parameter):
            after = [graph.nodes[user] for user in of_nodes[place] if user < len(graph.nodes)]
            bounds = bounds_of(after[0]) if len(of_nodes[place]) == len(after) == 1 else None
            found[path] = bounds or (-math.inf, math.inf)
    return found


def _multiplied(model: nn.Module, weight: str) -> bool:
    quantizer = model.get_submodule(weight.rpartition(".")[0])._modules.get(QUANTIZER)
    method = getattr(quantizer, "method", None)
    return method is not None and type(method).factor is not ActivationQuantizer.factor
