"""A stretch of a graph as a program: a rule for each operator, and for layers the kernel that takes the least time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.errors import LilliputError
from lilliput.core.packed import Packed
from lilliput.graph.ir import Graph, InputRef, Node, NodeRef, Ref, TensorRef, refs_of
from lilliput.graph.layers import arguments_of, layer_of
from lilliput.graph.program import Program as Torch
from lilliput.run import layer_steps
from lilliput.run.layer_steps import Act, Way
from lilliput.run.steps import Map, Program, Steps, Unfit

Rule = Callable[["Lowering", int, Mapping[str, Any]], Any]
RULES: dict[str, Rule] = {}
"""By operator: adds steps for a node and returns its value, a `Map` or what stands for one."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule of some operators of `aten`."""

    def put(function: Rule) -> Rule:
        RULES.update(dict.fromkeys([f"aten.{name}" for name in names], function))
        return function

    return put


@dataclass(frozen=True)
class Signs:
    """+1 where x is 0 or more, else -1; only binary layers take it."""

    x: Map
    ref: Ref


@dataclass(frozen=True)
class Asked:
    """Whether x is 0 or more, on the way to its signs."""

    x: Map
    ref: Ref


@dataclass(frozen=True)
class Magnitude:
    """|x|, and then its mean over the channels, on the way to XNOR-Net's K."""

    x: Map
    mean: bool = False


@dataclass(frozen=True)
class Window:
    """A kernel of (1, 1, height, width) with the same number everywhere, the part of one place."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Scales:
    """K: the means of |x| over the windows of a convolution."""

    x: Map
    geometry: tuple[Any, ...]


@dataclass(frozen=True)
class Lowered:
    """A stretch as a program.

    Attributes:
        program: takes and gives what the stretch does.
        kinds: what each layer runs on, in words, by its weight.
        signs: there are binary layers in it.
    """

    program: Program
    kinds: Mapping[str, str]
    signs: bool


class Stuck(Unfit):
    """A node that a program can't do.

    Attributes:
        index: of the node, in the stretch.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class Lowering:
    """The steps of one stretch, at given sizes.

    Args:
        graph: the stretch.
        given: what goes in, tensors of the sizes that the program is for.
        tensors: by name, unpacked.
        weights: as the file holds them.
        timed: measure which way of running a layer is fastest.
        earlier: ways that were chosen before, by weight, which are kept.
    """

    def __init__(
        self,
        graph: Graph,
        given: Sequence[Tensor],
        tensors: Mapping[str, Tensor],
        weights: Mapping[str, Packed | Tensor],
        timed: bool,
        earlier: dict[str, str] | None = None,
    ) -> None:
        self.graph, self.tensors, self.weights, self.timed = graph, tensors, weights, timed
        self.kinds: dict[str, str] = {} if earlier is None else earlier
        self.given, self.seen = list(given), values_of(graph, given, tensors)
        self.steps = Steps([x.shape for x in given])
        self.values: dict[Ref, Any] = {InputRef(i): x for i, x in enumerate(self.steps.inputs)}
        for place, x in enumerate(given):
            if x.dtype != torch.float32 or not x.numel():
                raise Unfit(f"input {place} is {x.dtype} of {tuple(x.shape)}")
        self.turned: dict[Any, Map] = {}
        self.outputs = [ref for ref in refs_of(graph.output) if isinstance(ref, NodeRef)]
        uses = [ref for node in graph.nodes for ref in node.refs() if isinstance(ref, NodeRef)]
        self.uses = Counter([*uses, *self.outputs])
        self.signs = False

    def lower(self) -> Lowered:
        """Returns the program.

        Raises:
            Unfit: something has no rule, or none for its sizes; `Stuck` where it is a node.
        """
        for index, node in enumerate(self.graph.nodes):
            if NodeRef(index) in self.values or not isinstance(self.seen[index], Tensor):
                continue
            found = RULES.get(node.operator)
            try:
                if found is None:
                    raise Unfit(f"{node.operator} has no step")
                self.values[NodeRef(index)] = found(self, index, arguments_of(node))
            except (LilliputError, KeyError, TypeError) as error:
                raise Stuck(index, str(error)) from error
        results = []
        for ref in self.outputs:
            results.append(self.first(self.take(ref)))
        return Lowered(self.steps.finish(results), dict(self.kinds), self.signs)

    def take(self, ref: Any) -> Map:
        """The map of a reference.

        Raises:
            Unfit: it is none.
        """
        found = self.values.get(ref) if isinstance(ref, NodeRef | InputRef) else None
        if not isinstance(found, Map):
            raise Unfit(f"{type(found).__name__} isn't a tensor in memory")
        return found

    def first(self, x: Map) -> Map:
        """The same with channels first."""
        return self._turned(x, False)

    def last(self, x: Map) -> Map:
        """The same, of four axes, with channels last."""
        return self._turned(x, True)

    def _turned(self, x: Map, last: bool) -> Map:
        if x.last == last:
            return x
        batch, channels, places = x.shape[0], x.shape[1], x.places
        if channels == 1 or places == 1:
            return Map(x.piece, x.shape, last)
        key = (x.piece, x.shape, last)
        if key not in self.turned:
            self.turned[key] = self.steps.map(x.shape, last)
            rows, columns = (channels, places) if last else (places, channels)
            self.steps.add("turn_maps", x, self.turned[key], batch, rows, columns)
        return self.turned[key]

    def act(self, index: int) -> Act:
        """The range to which the only user of a node confines it; its own place is filled by `done`."""
        user = self.only_user(index)
        return Act() if user is None else act_of(self.graph.nodes[user]) or Act()

    def done(self, index: int, value: Map) -> Map:
        """Notes that a value is also that of the function behind it."""
        user = self.only_user(index)
        if user is not None and act_of(self.graph.nodes[user]) is not None:
            self.values[NodeRef(user)] = value
        return value

    def only_user(self, index: int) -> int | None:
        """The node that alone uses another one."""
        if self.uses[NodeRef(index)] != 1 or NodeRef(index) in self.outputs:
            return None
        return next(i for i, node in enumerate(self.graph.nodes) if NodeRef(index) in list(node.refs()))

    def tensor(self, ref: Any) -> Tensor | None:
        """A parameter as contiguous float32."""
        if ref is None:
            return None
        if not isinstance(ref, TensorRef):
            raise Unfit("a parameter is computed")
        return self.tensors[ref.name].detach().float().contiguous()

    def combine(self, x: Map, act: Act, other: Map | None = None, **of_channels: Tensor | None) -> Map:
        """Adds a step of `combine_maps`: scale, shift and slope, then another map, then a range."""
        y = self.steps.map(x.shape, x.last)
        numbers = [of_channels.get(name) for name in ("scale", "shift", "slope")]
        if any(one is not None for one in numbers):
            channels = x.shape[1]
            rows, places = (x.numel // channels, 1) if x.last else (x.shape[0], x.places)
        else:
            rows, channels, places = 1, 1, x.numel
        self.steps.add("combine_maps", x, other, *numbers, y, rows, channels, places, act.low, act.high)
        return y

    def layer(self, index: int, x: Map, ways: Sequence[Way]) -> Map:
        """Adds the steps of a layer in the way that takes the least time."""
        node = self.graph.nodes[index]
        layer = layer_of(node)
        assert layer is not None
        act, kept = self.act(index), self.kinds.get(layer.weight)
        usable = [way for way in ways if way.kind == kept]
        if not usable:
            inputs = self.seen_of(layer.source)
            usable = layer_steps.ordered(ways, inputs, self.seen[index], act, self.timed)
        if not usable:
            raise Unfit("no kernel gives what the dense layer does")
        self.kinds[layer.weight] = usable[0].kind
        return self.done(index, usable[0].add(self.steps, self.first(x), act))

    def seen_of(self, ref: Any) -> Tensor:
        """What a reference is on the example."""
        found = self.seen[ref.index] if isinstance(ref, NodeRef) else self.given[ref.index]
        assert isinstance(found, Tensor)
        return found


def values_of(graph: Graph, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> list[Any]:
    """Returns what each node of a graph gives, by plain torch."""
    program = Torch(graph)
    values = program.values(list(given), [tensors[name] for name in program.tensors])
    found = []
    with torch.no_grad():
        for step in program.steps(graph.dtype, torch.device("cpu")):
            values[step.place] = step.run(values)
            found.append(values[step.place])
    return found


def act_of(node: Node) -> Act | None:
    """The range to which a node confines its input; None for any other."""
    if node.operator not in {f"aten.{name}.default" for name in ("relu", "relu6", "hardtanh", "clamp")}:
        return None
    word, bound = node.operator.split(".")[1], arguments_of(node)
    if word in ("relu", "relu6"):
        return Act(0.0, math.inf if word == "relu" else 6.0)
    low, high = (bound["min_val"], bound["max_val"]) if word == "hardtanh" else (bound["min"], bound["max"])
    numbers = -math.inf if low is None else low, math.inf if high is None else high
    return Act(float(numbers[0]), float(numbers[1])) if all(type(n) in (int, float) for n in numbers) else None


@rule("relu.default", "relu6.default", "hardtanh.default", "clamp.default")
def _act(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    act = act_of(own.graph.nodes[index])
    if act is None:
        raise Unfit("its bounds aren't numbers")
    return own.combine(own.take(bound.get("input", bound.get("self"))), act)


@rule("prelu.default")
def _prelu(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    x, slope = own.take(bound.get("input", bound.get("self"))), own.tensor(bound["weight"])
    assert slope is not None
    slope = slope.expand(x.shape[1]).contiguous() if slope.numel() == 1 else slope
    return own.combine(x, Act(), slope=slope)


@rule("batch_norm.default")
def _norm(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    if bound["training"]:
        raise Unfit("a norm by its own input")
    x = own.take(bound["input"])
    mean, var = own.tensor(bound["running_mean"]), own.tensor(bound["running_var"])
    assert mean is not None
    assert var is not None
    weight, bias = own.tensor(bound["weight"]), own.tensor(bound["bias"])
    # As torch rounds it: the inverse first, then the product.
    scale = 1 / torch.sqrt(var + bound["eps"])
    scale = scale if weight is None else scale * weight
    shift = (0 if bias is None else bias) - mean * scale
    return own.done(index, own.combine(x, own.act(index), scale=scale, shift=shift))


@rule("add.Tensor")
def _add(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    x, other = own.take(bound.get("input", bound.get("self"))), own.take(bound["other"])
    if bound["alpha"] != 1 or x.shape != other.shape:
        raise Unfit("a sum of other shapes")
    other = own.last(other) if x.last else own.first(other)
    return own.done(index, own.combine(x, own.act(index), other))


@rule("reshape.default", "view.default", "flatten.using_ints", "dropout.default")
def _same(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    if bound.get("train"):
        raise Unfit("dropout while training")
    x, shape = own.take(bound.get("input", bound.get("self"))), tuple(own.seen[index].shape)
    return x if shape == x.shape else Map(own.first(x).piece, shape)


@rule("max_pool2d.default", "avg_pool2d.default")
def _pool(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    x = own.take(bound.get("input", bound.get("self")))
    kernel = _pair(bound["kernel_size"])
    stride = _pair(bound["stride"]) if bound["stride"] else kernel
    padding, average = _pair(bound["padding"]), "count_include_pad" in bound
    if bound["ceil_mode"] or _pair(bound.get("dilation", 1)) != (1, 1) or bound.get("divisor_override"):
        raise Unfit("a pool with gaps, a divisor, or sizes rounded up")
    return _pooled(own, index, x, (kernel, stride, padding), (1 if bound["count_include_pad"] else 2) if average else 0)


@rule("adaptive_avg_pool2d.default", "mean.dim")
def _mean(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    value = own.values.get(bound.get("input", bound.get("self")))
    if isinstance(value, Magnitude) and bound.get("dim") == (2,) and not bound["keepdim"]:
        return Magnitude(value.x, True)
    x = own.take(bound.get("input", bound.get("self")))
    if len(x.shape) != 4:
        raise Unfit("a mean of other than maps")
    if "dim" in bound:
        if sorted(axis % 4 for axis in bound["dim"] or ()) != [2, 3]:
            raise Unfit("a mean over other axes than places")
        out = (1, 1)
    else:
        out = _pair(bound["output_size"])
    if x.shape[2] % out[0] or x.shape[3] % out[1]:
        raise Unfit("an adaptive pool of unequal windows")
    kernel = (x.shape[2] // out[0], x.shape[3] // out[1])
    y = _pooled(own, index, x, (kernel, kernel, (0, 0)), 1)
    return Map(y.piece, tuple(own.seen[index].shape), y.last and own.seen[index].dim() == 4)


def _pooled(own: Lowering, index: int, x: Map, geometry: tuple[Any, ...], average: int) -> Map:
    kernel, stride, padding = geometry
    if len(x.shape) != 4:
        raise Unfit("a pool of other than maps")
    out = [(x.shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1)]
    if min(*kernel, *stride, *out) < 1 or any(2 * p > k for p, k in zip(padding, kernel)):
        raise Unfit("no pool has such sizes")
    y = own.steps.map((*x.shape[:2], *out), x.last)
    sizes = torch.tensor([*x.shape, *out, *kernel, *stride, *padding])
    own.steps.add("pool_maps", sizes, x, y, average, int(x.last))
    return y


@rule("conv2d.default", "conv2d.padding")
def _conv(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    node, source = own.graph.nodes[index], own.values.get(bound["input"])
    weight = own.values.get(bound["weight"]) if isinstance(bound["weight"], NodeRef) else None
    if isinstance(source, Magnitude) and isinstance(weight, Window) and source.mean:
        if bound["groups"] != 1 or bound["bias"] is not None or weight.shape[:2] != (1, 1):
            raise Unfit("a mean over windows of groups")
        geometry = (weight.shape[2:], *(_pair(bound[name]) for name in ("stride", "padding", "dilation")))
        return Scales(source.x, geometry)
    layer = layer_of(node)
    if layer is None:
        raise Unfit("its weight is computed")
    weight, bias = own.tensors[layer.weight].detach(), own.tensor(bound["bias"])
    if isinstance(source, Signs):
        return _binary(own, index, source, weight, bias)
    x = own.take(bound["input"])
    if len(x.shape) != 4 or weight.dtype != torch.float32:
        raise Unfit("a convolution of other than maps of float32")
    return own.layer(index, x, layer_steps.conv_ways(own.weights.get(layer.weight), weight, bias, node, x.shape))


def _binary(own: Lowering, index: int, source: Signs, weight: Tensor, bias: Tensor | None) -> Map:
    node = own.graph.nodes[index]
    layer, user = layer_of(node), own.only_user(index)
    assert layer is not None
    factor, geometry = None, layer_steps.geometry_of(node, weight)
    if user is not None and own.graph.nodes[user].operator == "aten.mul.Tensor" and bias is None:
        found = [own.values.get(ref) for ref in own.graph.nodes[user].refs()]
        scales = [one for one in found if isinstance(one, Scales) and one.x is source.x and one.geometry == geometry]
        factor = scales[0] if scales else None

    def add(steps: Steps, x: Map, act: Act) -> Map:
        return layer_steps.add_binary(steps, x, weight, bias, geometry, factor is not None)

    wanted = own.seen[index if factor is None or user is None else user]
    if not layer_steps.ordered([Way("", add)], own.seen_of(source.ref), wanted, Act(), False):
        raise Unfit("bits give another result than floats")
    y = add(own.steps, source.x, Act())
    own.kinds[layer.weight], own.signs = "XNOR and bit count", True
    if factor is not None and user is not None:
        own.values[NodeRef(user)] = y
    return y


@rule("linear.default")
def _linear(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    node, x = own.graph.nodes[index], own.take(bound["input"])
    layer = layer_of(node)
    if layer is None or len(x.shape) != 2:
        raise Unfit("a linear layer of other than rows")
    weight, bias = own.tensors[layer.weight].detach(), own.tensor(bound["bias"])
    if weight.dtype != torch.float32:
        raise Unfit(f"a weight of {weight.dtype}")
    return own.layer(index, x, layer_steps.linear_ways(own.weights.get(layer.weight), weight, bias, node))


@rule("ge.Scalar")
def _asked(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    if bound["other"] != 0:
        raise Unfit("a comparison with another number than 0")
    return Asked(own.take(bound["self"]), bound["self"])


@rule("where.Scalar")
def _where(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    asked = own.values.get(bound["condition"])
    if not isinstance(asked, Asked) or (bound["self"], bound["other"]) != (1, -1):
        raise Unfit("a choice of other numbers than signs")
    return asked


@rule("to.dtype")
def _signs(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    asked = own.values.get(bound["self"])
    if not isinstance(asked, Asked) or own.seen[index].dtype != torch.float32:
        raise Unfit("another type")
    return Signs(asked.x, asked.ref)


@rule("abs.default")
def _magnitude(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    return Magnitude(own.take(bound.get("input", bound.get("self"))))


@rule("unflatten.int")
def _groups(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    value = own.values.get(bound["self"])
    if not isinstance(value, Magnitude) or value.mean or bound["dim"] != 1 or bound["sizes"][0] != 1:
        raise Unfit("axes that are parted")
    return value


@rule("new_full.default")
def _window(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    shape, part = tuple(bound["size"]), bound["fill_value"]
    if len(shape) != 4 or part != 1 / (shape[2] * shape[3]):
        raise Unfit("a constant that is no mean over a window")
    return Window(shape)


@rule("mul.Tensor")
def _scaled(own: Lowering, index: int, bound: Mapping[str, Any]) -> Any:
    # That by XNOR-Net's K has its value from the convolution before it; the rule keeps it in the stretch.
    raise Unfit("a product of tensors")


def _pair(value: Any) -> tuple[int, int]:
    items = value if isinstance(value, tuple | list) else (value,)
    if not all(type(item) is int for item in items) or len(items) not in (1, 2):
        raise Unfit(f"sizes {value}")
    return int(items[0]), int(items[-1])
