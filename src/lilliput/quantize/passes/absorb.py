"""Absorption of high biases: what a ReLU always lets through is taken off before it and added behind the next layer."""

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
from lilliput.graph.ir import Graph, NodeRef
from lilliput.graph.layers import Layer, layer_of, norm_of
from lilliput.graph.shapes import users_of

RELU = frozenset({"aten.relu.default", "aten.relu_.default"})


@dataclass(frozen=True)
class Absorb:
    """c = max(0, mean - times std) of each channel before a ReLU: b_1 -= c, b_2 += W_2 c in the layers that take it.

    Nagel et al. 2019 (arXiv 1906.04721), section 4.1.3, comes after equalization, which makes some biases large and so
    the range of their activations. relu(x - c) = relu(x) - c wherever x >= c: all but one value in 700 if x is normal.
    Mean and deviation are those of data, which for a BatchNorm are its shift and scale. Left alone are channels behind
    which stands something else than a ReLU (ReLU6 is no ReLU: it clips what is left elsewhere), a sum, a layer that
    pads zeros (there its border would change), or one without a bias to add to.

    Attributes:
        times: deviations that stay below the mean.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    >>> values = {"0.weight": [[1.0]], "0.bias": [9.0], "2.weight": [[2.0]], "2.bias": [0.0]}
    >>> _ = model.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    >>> from lilliput.graph.trace import trace
    >>> x = torch.tensor([[1.0], [-1.0]])
    >>> Absorb().rewrite(model, trace(model, x)[0], [x]), float(model[0].bias), float(model[2].bias)
    (['1 channel in 1 place absorbed'], 3.0, 12.0)
    """

    times: float = 3.0

    when: ClassVar[str] = "before"
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("quantize/passes/absorb", "times", self.times, 0, 100)

    @torch.no_grad()
    def rewrite(
        self, model: nn.Module, graph: Graph, data: Any = None, reference: nn.Module | None = None
    ) -> list[str]:
        """Changes biases in place.

        Args:
            model: plain, in eval mode.
            graph: of the model.
            data: batches.
            reference: isn't used.

        Returns:
            What was done, in a line.

        Raises:
            DataError: what comes out of a layer isn't finite.
        """
        state = tensors_of(model)
        pairs = _pairs(graph, state)
        seen = _spreads(model, [bias.rpartition(".")[0] for bias, _ in pairs], data)
        count = places = 0
        for bias, takers in pairs:
            spread = seen.get(bias.rpartition(".")[0])
            if spread is None:
                continue
            shift = (spread.mean - self.times * spread.deviation).clamp_min(0)
            state[bias].sub_(shift)
            for layer, own in takers:
                weight = state[layer.weight].double()
                grouped = weight.reshape(layer.groups, -1, weight.shape[1], weight[0, 0].numel()).sum(3)
                state[own].add_((grouped @ shift.reshape(layer.groups, -1, 1)).flatten())
            count, places = count + int((shift > 0).sum()), places + int(bool((shift > 0).any()))
        ends = "" if count == 1 else "s", "" if places == 1 else "s"
        return [f"{count} channel{ends[0]} in {places} place{ends[1]} absorbed"]


class _Spread:
    """Mean and standard deviation of each channel of what comes out of a module."""

    def __init__(self, path: str) -> None:
        self.path, self.count = path, 0
        self.sums: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if not is_finite(output):
            raise DataError(f"what comes out of layer '{self.path}' is NaN or infinite; check the data")
        axis = output.ndim - 1 if isinstance(module, nn.Linear) else 1
        flat = output.double().transpose(0, axis).flatten(1)
        self.sums, self.squares = self.sums + flat.sum(1), self.squares + flat.square().sum(1)
        self.count += flat.shape[1]

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.sums) / self.count

    @property
    def deviation(self) -> Tensor:
        return (torch.as_tensor(self.squares) / self.count - self.mean.square()).clamp_min(0).sqrt()


def _spreads(model: nn.Module, paths: list[str], data: Any) -> dict[str, _Spread]:
    found = {path: _Spread(path) for path in paths}
    with ExitStack() as stack:
        for path, one in found.items():
            see: Callable[..., None] = one
            stack.callback(model.get_submodule(path).register_forward_hook(see).remove)
        for batch in [data] if isinstance(data, Tensor) else data if found else ():
            call(model, inputs_of(batch))
    return {path: one for path, one in found.items() if one.count}


def _pairs(graph: Graph, state: dict[str, Tensor]) -> list[tuple[str, list[tuple[Layer, str]]]]:
    """The biases before a ReLU, each with the layers that take its channels and their biases."""
    of_nodes, of_tensors = users_of(graph)
    single = {name for name, places in of_tensors.items() if len(places) == 1} - set(graph.aliases)
    single -= set(graph.aliases.values())

    def bias_of(index: int) -> tuple[str, int] | None:
        """A layer's bias, or the shift of the folded BatchNorm behind it; and which node gives the result."""
        layer, users = layer_of(graph.nodes[index]), of_nodes[index]
        if layer is None:
            return None
        follower = graph.nodes[users[0]] if len(users) == 1 and users[0] < len(graph.nodes) else None
        norm = norm_of(follower) if follower is not None else None
        name, place = (layer.bias, index) if norm is None else (norm.bias, users[0])
        folded = norm is None or norm.weight is None or bool((state[norm.weight] == 1).all())
        if norm is not None:
            folded &= bool(((state[norm.var] + norm.eps - 1).abs() < 1e-5).all()) and not state[norm.mean].any()
        return (name, place) if name is not None and name in single and folded else None

    found = []
    for index, node in enumerate(graph.nodes):
        maker = layer_of(node)
        given = bias_of(index) if maker is not None else None
        if maker is None or given is None or maker.kind == "transposed":
            continue
        users = of_nodes[given[1]]
        if len(users) != 1 or users[0] >= len(graph.nodes) or graph.nodes[users[0]].operator not in RELU:
            continue
        takers = []
        for place in of_nodes[users[0]]:
            layer = layer_of(graph.nodes[place]) if place < len(graph.nodes) else None
            own = bias_of(place) if layer is not None else None
            fits = layer is not None and layer.kind == maker.kind and not layer.padded and layer.weight in single
            if layer is None or own is None or not fits or layer.source != NodeRef(users[0]):
                break
            takers.append((layer, own[0]))
        else:
            found.append((given[0], takers))
    return [pair for pair in found if pair[1]]
