"""The graph of a traced network as plain data: nodes that name allow-listed operators, and trees of arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class NodeRef:
    """The result of an earlier node.

    Args:
        index: position in `Graph.nodes`.
    """

    index: int


@dataclass(frozen=True, slots=True)
class InputRef:
    """A tensor that the caller gives.

    Args:
        index: position in `Graph.inputs`.
    """

    index: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A parameter, buffer or constant.

    Args:
        name: its name in the `state_dict`.
    """

    name: str


Ref = NodeRef | InputRef | TensorRef
Scalar = None | bool | int | float | str
# mypy can't follow a recursive alias through isinstance, so that the tree's branch is spelled loosely.
Argument = Ref | Scalar | torch.dtype | tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One call of an operator.

    Args:
        operator: its full name, as `"aten.linear.default"`; a key of `operators.OPERATORS`.
        args: positional arguments; lists are tuples.
        kwargs: keyword arguments.
    """

    operator: str
    args: tuple[Argument, ...]
    kwargs: Mapping[str, Argument] = field(default_factory=dict)

    def refs(self) -> Iterator[Ref]:
        """Yields every reference among the arguments, in order."""
        yield from refs_of(self.args)
        for argument in self.kwargs.values():
            yield from refs_of(argument)


@dataclass(frozen=True, slots=True)
class Branch:
    """An inner knot of the structure of inputs or outputs.

    Args:
        kind: `"tuple"`, `"list"`, `"dict"` or `"record"` (a dataclass or model output, given back as `Record`).
        keys: the keys of a dict or record, else empty.
        children: branches, references or scalars.
    """

    kind: str
    keys: tuple[str, ...]
    children: tuple[Branch | Ref | Scalar, ...]


Tree = Branch | Ref | Scalar


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a tensor given by the caller must look like.

    Args:
        name: for messages.
        dtype: as traced; any dtype of the same kind (float, integer, bool, complex) is taken.
        shape: an int where the size is fixed, the name of a symbol where it is open.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """A network as data: it can be written to JSON, read back from a stranger, and run by `run.GraphModule`.

    Args:
        inputs: the tensors that go in.
        symbols: open sizes by name, each with its smallest and largest value (None: no bound).
        nodes: the calls, each referring only to earlier ones.
        output: the structure that `forward` returned, with references for leaves.
        call: `forward`'s arguments by name, as structures over `InputRef`s and fixed scalars.
        buffers: those of the tensors' names that aren't parameters.
        aliases: further names of tied tensors, each with the name that the nodes use.
        dtype: the floating dtype of the traced parameters, which follows the module's; None without any.

    Example:
        >>> node = Node("aten.relu.default", (InputRef(0),))
        >>> graph = Graph((InputSpec("x", torch.float32, ("n", 4)),), {"n": (1, None)}, (node,), NodeRef(0))
        >>> graph.open
        'batch'
        >>> Graph.from_json(graph.to_json()) == graph
        True
    """

    inputs: tuple[InputSpec, ...]
    symbols: Mapping[str, tuple[int, int | None]]
    nodes: tuple[Node, ...]
    output: Tree
    call: tuple[tuple[str, Tree], ...] = ()
    buffers: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    dtype: torch.dtype | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that the nodes and the output use, in order of first use, without aliases."""
        refs = [ref for node in self.nodes for ref in node.refs()] + list(refs_of(self.output))
        return tuple(dict.fromkeys(ref.name for ref in refs if isinstance(ref, TensorRef)))

    @property
    def open(self) -> str:
        """Which sizes a caller may change: `"batch"`, `"batch and others"`, `"others"` or `"none"`."""
        first = any(spec.shape and isinstance(spec.shape[0], str) for spec in self.inputs)
        batch = {spec.shape[0] for spec in self.inputs if spec.shape}
        others = any(isinstance(d, str) and d not in batch for spec in self.inputs for d in spec.shape[1:])
        if first:
            return "batch and others" if others else "batch"
        return "others" if others else "none"

    def to_json(self) -> dict[str, Any]:
        """Returns the graph as what `json.dumps` takes; see `serial` for the form."""
        from lilliput.graph.serial import encode

        return encode(self)

    @classmethod
    def from_json(cls, data: object) -> Graph:
        """Reads what `to_json` gave, trusting nothing in it.

        Args:
            data: what `json.loads` returned, perhaps of a stranger's file.

        Returns:
            The graph.

        Raises:
            FileError: whatever is wrong: an unknown operator, an argument that doesn't fit its schema, a
                reference to a later node, a number out of range, too many nodes.
        """
        from lilliput.graph.serial import decode

        return decode(data)


def refs_of(tree: object) -> Iterator[Ref]:
    """Yields every reference in a tree of arguments or a structure.

    Args:
        tree: an argument, a tuple of them, or a `Branch`.

    Yields:
        References, depth first.
    """
    if isinstance(tree, NodeRef | InputRef | TensorRef):
        yield tree
    elif isinstance(tree, Branch):
        for child in tree.children:
            yield from refs_of(child)
    elif isinstance(tree, tuple):
        for item in tree:
            yield from refs_of(item)


def map_refs(tree: Any, change: Any) -> Any:
    """Rebuilds a tree of arguments or a structure with every reference replaced.

    Args:
        tree: an argument, a tuple of them, or a `Branch`.
        change: called with each reference; returns what stands in its place.

    Returns:
        The new tree.
    """
    if isinstance(tree, NodeRef | InputRef | TensorRef):
        return change(tree)
    if isinstance(tree, Branch):
        return Branch(tree.kind, tree.keys, tuple(map_refs(child, change) for child in tree.children))
    if isinstance(tree, tuple):
        return tuple(map_refs(item, change) for item in tree)
    return tree


def map_node(node: Node, change: Any) -> Node:
    """Rebuilds a node with every reference replaced.

    Args:
        node: any node.
        change: called with each reference; returns what stands in its place.

    Returns:
        The new node.
    """
    kwargs = {name: map_refs(value, change) for name, value in node.kwargs.items()}
    return Node(node.operator, map_refs(node.args, change), kwargs)
