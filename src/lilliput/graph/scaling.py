r"""Channels that may be scaled without changing what the network computes, and the scaling.

Where all that happens to a channel between the layers that make it and those that take it is homogeneous,
f(c x) = c f(x) for c > 0 (ReLU, sums, pools, margins of zeros), it can be divided by any c where it is made, if what
takes it multiplies by c: rows of the makers' weights and their biases, columns of the takers' weights (Nagel et al.
2019, arXiv 1906.04721, section 4.1). Channels that meet in a sum are scaled together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lilliput.graph.ir import Graph, InputRef, Node, NodeRef, TensorRef, refs_of
from lilliput.graph.layers import Layer, Norm, arguments_of, is_margin, layer_of, norm_of
from lilliput.graph.shapes import Shape, shapes_of, users_of

HOMOGENEOUS = frozenset(
    f"aten.{name}"
    for name in (
        *("relu.default", "relu_.default", "leaky_relu.default", "dropout.default", "contiguous.default"),
        *(f"max_pool{d}d.default" for d in (1, 2, 3)),
        *("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default"),
        *(f"adaptive_avg_pool{d}d.default" for d in (1, 2, 3)),
    )
)
"""What is done to each channel by itself, and commutes with a positive factor."""

SUMS = frozenset({"aten.add.Tensor", "aten.add_.Tensor", "aten.sub.Tensor"})


@dataclass(frozen=True)
class Maker:
    """What gives channels: rows of a weight, or scale and shift of a norm.

    Attributes:
        layer: the layer, None for a LayerNorm.
        scale: a norm's weight, which is divided instead of the layer's; None without.
        shifts: further tensors with one number a channel, which are divided too.
        norm: the BatchNorm behind the layer that isn't folded.
    """

    layer: Layer | None
    scale: str | None = None
    shifts: tuple[str, ...] = ()
    norm: Norm | None = None

    def reach(self, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the largest |weight| of each channel, one number a channel.

        Args:
            state: the network's tensors by name.
        """
        if self.layer is None:
            return state[self.scale or ""].detach().abs()
        found = state[self.layer.weight].detach().flatten(1).abs().amax(1)
        if self.norm is None or self.scale is None:
            return found
        spread = (state[self.norm.var].detach() + self.norm.eps).sqrt()
        return found * state[self.scale].detach().abs() / spread


@dataclass
class Space:
    """Channels that are scaled together.

    Attributes:
        channels: how many.
        makers: who gives them.
        takers: who multiplies them.
    """

    channels: int
    makers: list[Maker] = field(default_factory=list)
    takers: list[Layer] = field(default_factory=list)

    @torch.no_grad()
    def divide(self, factors: Tensor, state: Mapping[str, Tensor]) -> None:
        """Divides each channel by its factor where it is made, and multiplies by it where it is taken, in place.

        Args:
            factors: positive, one a channel.
            state: the network's tensors by name.
        """
        wide = factors.double()
        for maker in self.makers:
            names = [maker.scale or "", *maker.shifts]
            if maker.layer is not None and maker.scale is None:
                weight = state[maker.layer.weight]
                weight.copy_(weight.double() / wide.reshape(-1, *[1] * (weight.ndim - 1)))
                names = [maker.layer.bias or "", *maker.shifts]
            for name in filter(None, names):
                state[name].copy_(state[name].double() / wide)
        for taker in self.takers:
            weight = state[taker.weight]
            grouped = weight.double().reshape(taker.groups, weight.shape[0] // taker.groups, weight.shape[1], -1)
            scaled = grouped * wide.reshape(taker.groups, 1, -1, 1)
            weight.copy_(scaled.reshape(weight.shape))

    def taken(self, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the largest |weight| that multiplies each channel.

        Args:
            state: the network's tensors by name.
        """
        return torch.stack([_columns(taker, state[taker.weight].detach()) for taker in self.takers]).amax(0)

    def made(self, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the largest |weight| that makes each channel.

        Args:
            state: the network's tensors by name.
        """
        return torch.stack([maker.reach(state) for maker in self.makers]).amax(0)


def _columns(taker: Layer, weight: Tensor) -> Tensor:
    grouped = weight.reshape(taker.groups, weight.shape[0] // taker.groups, weight.shape[1], -1)
    return grouped.abs().amax((1, 3)).reshape(-1)


def spaces_of(graph: Graph, state: Mapping[str, Tensor]) -> list[Space]:
    """Finds the channels that can be scaled: those with makers and takers, and nothing else on their way.

    Args:
        graph: of the network.
        state: all tensors that it uses, by name.

    Example:
        >>> from torch import nn
        >>> from lilliput.graph.trace import trace
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 2))
        >>> graph, constants = trace(model, torch.rand(1, 2))
        >>> [(space.channels, space.takers[0].weight) for space in spaces_of(graph, model.state_dict() | constants)]
        [(3, '2.weight')]
    """
    shapes = shapes_of(graph, state)
    return _Walk(graph, state, shapes).found() if shapes is not None else []


class _Walk:
    """One walk along the graph; `parent` joins the results whose channels go together.

    Place -1 stands for all that can't be scaled.
    """

    def __init__(self, graph: Graph, state: Mapping[str, Tensor], shapes: list[Shape | None]) -> None:
        self.graph, self.state, self.shapes = graph, state, shapes
        self.parent = list(range(len(graph.nodes)))
        self.fixed: set[int] = set()
        self.axis: list[int | None] = [None] * len(graph.nodes)
        self.makers: dict[int, Maker] = {}
        self.takers: dict[int, list[Layer]] = {}
        _, uses = users_of(graph)
        tied = set(graph.aliases) | set(graph.aliases.values())
        self.own = {name for name, places in uses.items() if len(places) == 1 and name not in tied}

    def root(self, place: int) -> int:
        while self.parent[place] != place:
            place = self.parent[place]
        return place

    def found(self) -> list[Space]:
        """Returns the spaces, in the order of their first maker."""
        for index, node in enumerate(self.graph.nodes):
            if self.shapes[index] is not None:
                self.step(index, node)
            else:
                self.fix(
                    ref for ref in node.refs() if node.operator.startswith("aten.") and "sym_size" not in node.operator
                )
        self.fix(refs_of(self.graph.output))
        fixed = {self.root(place) for place in self.fixed}
        spaces: dict[int, Space] = {}
        for place, maker in self.makers.items():
            if (root := self.root(place)) not in fixed:
                space = spaces.setdefault(root, Space(self.channels(place)))
                space.makers.append(maker)
        for place, layers in self.takers.items():
            if (root := self.root(place)) in spaces:
                spaces[root].takers += layers
        return [space for space in spaces.values() if space.takers]

    def channels(self, place: int) -> int:
        shape, axis = self.shapes[place], self.axis[place]
        return shape[axis] if shape is not None and axis is not None else 0

    def fix(self, refs: object) -> None:
        self.fixed |= {ref.index for ref in refs if isinstance(ref, NodeRef)}  # type: ignore[attr-defined]

    def step(self, index: int, node: Node) -> None:
        """Takes one node that gives a tensor."""
        layer, norm, shape = layer_of(node), norm_of(node), self.shapes[index] or ()
        if layer is not None and layer.kind != "transposed":
            self.layer(index, layer, len(shape))
        elif norm is not None:
            self.norm(index, norm)
        elif node.operator == "aten.layer_norm.default":
            self.layer_norm(index, node, len(shape))
        elif node.operator in HOMOGENEOUS or is_margin(node) or self.keeps(node, index):
            source = next((ref for ref in node.refs() if not isinstance(ref, TensorRef)), None)
            self.join(index, [source], node)
        elif node.operator in SUMS and all(isinstance(item, NodeRef | InputRef) for item in node.args[:2]):
            sources: list[object] = list(node.args[:2])
            same = all(isinstance(s, NodeRef) and self.shapes[s.index] == shape for s in sources)
            self.join(index, sources if same else [None], node)
        else:
            self.fix(node.refs())
            self.fixed.add(index)

    def keeps(self, node: Node, index: int) -> bool:
        """Whether a mean, or a flattening of one place a channel, leaves channels at axis 1."""
        source = next((ref for ref in node.refs()), None)
        before = self.shapes[source.index] if isinstance(source, NodeRef) else None
        after = self.shapes[index] or ()
        if before is None or len(before) < 3 or len(after) < 2 or after[:2] != before[:2]:
            return False
        if node.operator == "aten.mean.dim":
            axes = arguments_of(node)["dim"]
            return {axis % len(before) for axis in axes or (0,)}.isdisjoint({0, 1})
        flat = node.operator in {"aten.flatten.using_ints", "aten.view.default", "aten.reshape.default"}
        return flat and len(after) == 2

    def join(self, index: int, sources: list[object], node: Node) -> None:
        axes = {self.axis[ref.index] if isinstance(ref, NodeRef) else None for ref in sources}
        if len(axes) != 1 or None in axes:
            self.fix(node.refs())
            self.fixed.add(index)
            return
        self.axis[index] = axes.pop()
        for ref in sources:
            if isinstance(ref, NodeRef):
                self.parent[self.root(index)] = self.root(ref.index)

    def layer(self, index: int, layer: Layer, rank: int) -> None:
        source = layer.source
        wanted = rank - 1 if layer.kind == "linear" else 1
        own = layer.weight in self.own and (layer.bias is None or layer.bias in self.own)
        dims = self.state[layer.weight].ndim
        if isinstance(source, NodeRef):
            if own and self.axis[source.index] == wanted and (layer.kind == "linear" or rank == dims):
                self.takers.setdefault(source.index, []).append(layer)
            else:
                self.fixed.add(source.index)
        self.axis[index] = wanted
        if own and (layer.kind == "linear" or rank == dims):
            self.makers[index] = Maker(layer)
        else:
            self.fixed.add(index)

    def norm(self, index: int, norm: Norm) -> None:
        """A folded one passes channels on, its shift is scaled with them; another makes them, the layer before not."""
        before = self.makers.get(-1 if norm.source is None else norm.source)
        self.axis[index] = 1
        own = all(name in self.own for name in norm.tensors)
        if norm.source is not None:
            self.fixed.add(norm.source)
        if before is None or norm.weight is None or norm.bias is None or not own:
            self.fixed.add(index)
            return
        spread = self.state[norm.var].detach() + norm.eps
        folded = bool((self.state[norm.weight] == 1).all()) and bool(((spread - 1).abs() < 1e-5).all())
        if folded and not bool(self.state[norm.mean].any()):
            self.makers[index] = Maker(before.layer, None, (norm.bias,))
        else:
            self.makers[index] = Maker(before.layer, norm.weight, (norm.bias,), norm)

    def layer_norm(self, index: int, node: Node, rank: int) -> None:
        bound = arguments_of(node)
        self.fix(node.refs())
        names = [ref.name for ref in (bound["weight"], bound["bias"]) if isinstance(ref, TensorRef)]
        self.axis[index] = rank - 1
        if len(bound["normalized_shape"]) == 1 and names and bound["weight"] is not None and set(names) <= self.own:
            self.makers[index] = Maker(None, names[0], tuple(names[1:]))
        else:
            self.fixed.add(index)
