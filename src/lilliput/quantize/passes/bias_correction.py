"""Bias correction: what quantization adds to the mean of each channel is taken off its bias."""

from __future__ import annotations

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
from lilliput.graph.shapes import users_of


@dataclass(frozen=True)
class BiasCorrection:
    """b -= E[y~] - E[y] for each channel y of each layer, y~ being what the quantized network gives there.

    Nagel et al. 2019 (arXiv 1906.04721), section 4.2; for weights alone it is (W~ - W) E[x]. Layers are corrected in
    their order: what reaches a layer comes from corrected ones. Both networks see each batch once; a correction is
    that of the batches so far, so that one batch gives it exactly. A layer's result is that of the BatchNorm behind
    it, if there is one, whose shift takes the correction; a layer without any bias stays as it is.

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
        places = results_with_bias(graph, model)
        sums = {path: _Sums() for path in places}
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
    """Sums of one layer's results, by the channel, in both networks."""

    def __init__(self) -> None:
        self.sums: list[Tensor | float] = [0.0, 0.0]
        self.counts = [0, 0]
        self.shift: Tensor | None = None

    def add(self, which: int, value: Tensor, path: str) -> None:
        """Adds a result, its channels along axis 1."""
        if not is_finite(value):
            raise DataError(f"what comes out of layer '{path}' is NaN or infinite; check the data")
        flat = value.double().transpose(0, 1).flatten(1)
        self.sums[which] = self.sums[which] + flat.sum(1)
        self.counts[which] += flat.shape[1]

    def wanted(self, path: str) -> Callable[..., None]:
        """Returns the hook of the network before."""

        def see(module: nn.Module, args: Any, output: Tensor) -> None:
            if isinstance(module, nn.Linear):
                output = output.reshape(-1, output.shape[-1])
            self.add(0, output, path)

        return see

    def found(self, path: str) -> Callable[..., Tensor]:
        """Returns the hook of the quantized network, which corrects at once what comes out."""

        def see(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            linear = isinstance(module, nn.Linear)
            self.add(1, output.reshape(-1, output.shape[-1]) if linear else output, path)
            means = [torch.as_tensor(total) / max(count, 1) for total, count in zip(self.sums, self.counts)]
            self.shift = means[0] - means[1]
            shape = (-1,) if linear else (-1, *[1] * (output.ndim - 2))
            return output + self.shift.to(output.dtype).reshape(shape)

        return see


def results_with_bias(graph: Graph, model: nn.Module) -> list[str]:
    """Returns the paths of layers, or of the BatchNorms behind them, that have a bias of their own to correct.

    Args:
        graph: of the network.
        model: whose layers they are. One whose result a quantizer multiplies is left out.
    """
    of_nodes, of_tensors = users_of(graph)
    found = []
    for index, node in enumerate(graph.nodes):
        layer = layer_of(node)
        if layer is None or len(of_tensors[layer.weight]) > 1 or _multiplied(model, layer.weight):
            continue
        path, bias = layer.weight.rpartition(".")[0], layer.bias
        following = graph.nodes[of_nodes[index][0]] if of_nodes[index][0] < len(graph.nodes) else None
        norm = norm_of(following) if following is not None and len(of_nodes[index]) == 1 else None
        if norm is not None:
            path, bias = norm.mean.rpartition(".")[0], norm.bias
        if bias is None or len(of_tensors[bias]) > 1 or bias.rpartition(".")[0] != path:
            continue
        if isinstance(model.get_submodule(path)._parameters.get("bias"), nn.Parameter):
            found.append(path)
    return found


def _multiplied(model: nn.Module, weight: str) -> bool:
    quantizer = model.get_submodule(weight.rpartition(".")[0])._modules.get(QUANTIZER)
    method = getattr(quantizer, "method", None)
    return method is not None and type(method).factor is not ActivationQuantizer.factor
