"""How the weight of a linear or convolution node is laid out: which axis holds its outputs, which its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lilliput.graph.check import bind
from lilliput.graph.ir import Node, NodeRef, TensorRef
from lilliput.graph.operators import operators

LINEAR = "aten.linear.default"
CONVOLUTIONS = frozenset(f"aten.conv{dims}d.{overload}" for dims in (1, 2, 3) for overload in ("default", "padding"))
TRANSPOSED = frozenset({"aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input"})
BATCH_NORM = "aten.batch_norm.default"


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear or convolution node with a weight of its own.

    Args:
        weight: name of the weight.
        bias: name of the bias, None without.
        source: what goes in.
        kind: `"linear"`, `"convolution"` or `"transposed"`.
        groups: of a convolution.
        padded: whether zeros are padded around the input (or the output is cropped, for transposed ones).
    """

    weight: str
    bias: str | None
    source: Any
    kind: str
    groups: int
    padded: bool

    @property
    def name(self) -> str:
        """The module's name, as far as the weight's name tells."""
        return self.weight.rpartition(".")[0] or self.weight


def layer_of(node: Node) -> Layer | None:
    """Reads a node as a layer.

    Args:
        node: any node.

    Returns:
        The layer; None for other operators, and where weight or bias are computed.
    """
    kinds = {LINEAR: "linear"} | dict.fromkeys(CONVOLUTIONS, "convolution") | dict.fromkeys(TRANSPOSED, "transposed")
    kind = kinds.get(node.operator)
    if kind is None:
        return None
    bound = arguments_of(node)
    weight, bias, groups = bound["weight"], bound.get("bias"), bound.get("groups", 1)
    if not isinstance(weight, TensorRef) or not isinstance(bias, TensorRef | None) or not isinstance(groups, int):
        return None
    padding = bound.get("padding", 0)
    padded = kind != "linear" and padding != "valid" and any(item != 0 for item in _items(padding))
    return Layer(weight.name, bias.name if bias else None, bound["input"], kind, groups, padded)


def _items(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def arguments_of(node: Node) -> Mapping[str, Any]:
    """Returns a node's arguments by name, with defaults filled in.

    Args:
        node: one that has been checked.
    """
    operator = operators()[node.operator]
    defaults = {parameter.name: parameter.default for parameter in operator.parameters if not parameter.required}
    return defaults | bind(operator, node.args, node.kwargs)


def is_margin(node: Node) -> bool:
    """Whether a node pads with zeros, which an engine makes a part of the convolution behind it."""
    if node.operator not in {"aten.pad.default", "aten.constant_pad_nd.default"}:
        return False
    bound = arguments_of(node)
    plain = bound.get("mode", "constant") == "constant" and not bound["value"]
    return plain and all(type(size) is int and size >= 0 for size in bound["pad"])


@dataclass(frozen=True, slots=True)
class Norm:
    """A BatchNorm node in eval mode with running statistics.

    Args:
        source: index of the node that it normalises; None for an input of the graph.
        weight: name of the scale, None without.
        bias: name of the shift, None without.
        mean: name of the running mean.
        var: name of the running variance.
        eps: added to the variance.
    """

    source: int | None
    weight: str | None
    bias: str | None
    mean: str
    var: str
    eps: float

    @property
    def name(self) -> str:
        """The module's name."""
        return self.mean.rpartition(".")[0] or self.mean

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all its tensors."""
        return tuple(name for name in (self.weight, self.bias, self.mean, self.var) if name is not None)


def norm_of(node: Node) -> Norm | None:
    """Reads a node as a BatchNorm.

    Args:
        node: any node.

    Returns:
        The BatchNorm; None for other operators, and for one without running statistics.
    """
    if node.operator != BATCH_NORM:
        return None
    bound = arguments_of(node)
    parts = [bound[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if not all(isinstance(part, TensorRef | None) for part in parts) or None in parts[2:] or bound["training"]:
        return None
    weight, bias, mean, var = (part.name if part is not None else None for part in parts)
    source = bound["input"]
    assert mean is not None
    assert var is not None
    return Norm(source.index if isinstance(source, NodeRef) else None, weight, bias, mean, var, bound["eps"])
