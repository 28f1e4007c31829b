"""An exported program to a `Graph`: names, allow-listed operators and functional form; no-ops and copies go."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from lilliput.core.errors import FileError, ModelError
from lilliput.graph.check import Kind, check_node
from lilliput.graph.ir import Argument, InputRef, Node, NodeRef, Ref, TensorRef
from lilliput.graph.operators import operators, trim

# In eval mode, and where nothing is written in place, these give what they take.
_SAME = {
    "aten.alias.default",
    "aten.alpha_dropout.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_alpha_dropout.default",
    "aten.feature_dropout.default",
    "aten.lift_fresh.default",
    "aten.lift_fresh_copy.default",
}
_RENAMED = {"aten.view.default": "aten.reshape.default", "aten._unsafe_view.default": "aten.reshape.default"}
_CASTS = {"aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.to.other", "aten._to_copy.default"}
_NATIVE_BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"
# Unannotated operators that may return their very input.
_MAY_ALIAS = _SAME | {"aten.type_as.default", "aten.einsum.default", "aten.pad.default"}
_DROPPED = ("aten._assert", "aten.sym_constrain", "_set_grad_enabled")
_SYMBOLIC: dict[Any, str] = {
    operator.add: "sym.add",
    operator.sub: "sym.sub",
    operator.mul: "sym.mul",
    operator.floordiv: "sym.floordiv",
    operator.mod: "sym.mod",
    operator.neg: "sym.neg",
    operator.truediv: "sym.truediv",
    operator.getitem: "item",
    math.floor: "sym.floor",
    math.ceil: "sym.ceil",
    math.trunc: "sym.int",
    torch.sym_max: "sym.max",
    torch.sym_min: "sym.min",
    torch.sym_int: "sym.int",
    torch.sym_float: "sym.float",
}


class Unsupported(Exception):
    """An operator that must be decomposed first, or a write in place that export must make functional.

    Args:
        target: the operator's overload; None to ask for functional form.
    """

    def __init__(self, target: Any) -> None:
        super().__init__(str(target))
        self.target = target


@dataclass
class Converted:
    """What became of an exported program.

    Args:
        nodes: in order.
        outputs: for each user output, what holds it.
        inputs: the placeholders of the user's tensors, in order.
        constants: tensors that aren't in the `state_dict`, by name.
        buffers: names that aren't parameters.
    """

    nodes: list[Node] = field(default_factory=list)
    outputs: list[Argument] = field(default_factory=list)
    inputs: list[torch.fx.Node] = field(default_factory=list)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    buffers: list[str] = field(default_factory=list)


def convert(program: ExportedProgram, rename: Callable[[str], str], taken: Mapping[str, Any]) -> Converted:
    """Turns an exported program into nodes.

    Args:
        program: exported in eval mode.
        rename: from the program's name of a tensor to the model's.
        taken: the model's `state_dict`, whose names constants must not take.

    Returns:
        Nodes, outputs and constants.

    Raises:
        Unsupported: the program must be decomposed or made functional first.
        ModelError: it writes to a buffer, or can't be expressed.
    """
    return _Converter(program, rename, taken).run()


class _Converter:
    def __init__(self, program: ExportedProgram, rename: Callable[[str], str], taken: Mapping[str, Any]) -> None:
        self.program = program
        self.rename = rename
        self.taken = taken
        self.result = Converted()
        self.kinds: list[Kind] = []
        self.env: dict[torch.fx.Node, Argument] = {}
        self.memo: dict[str, NodeRef] = {}
        # Nodes that share memory because one was written in place, by the first of them.
        self.root: dict[torch.fx.Node, torch.fx.Node] = {}
        self.seen: set[torch.fx.Node] = set()
        self.held: set[torch.fx.Node] = set()

    def run(self) -> Converted:
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.placeholder(node, specs[node.name])
            elif node.op == "call_function":
                self.call(node)
            elif node.op == "output":
                self.output(node)
            elif node.users:
                raise ModelError(f"the model can't be written as a graph: it holds {node.op} {str(node.target)[:80]!r}")
            self.seen.add(node)
        return self.result

    def placeholder(self, node: torch.fx.Node, spec: Any) -> None:
        if spec.kind is InputKind.USER_INPUT:
            self.env[node] = InputRef(len(self.result.inputs))
            self.result.inputs.append(node)
            return
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            raise ModelError(f"the model can't be written as a graph: it takes a {spec.kind.name.lower()}")
        name = self.rename(spec.target)
        if name not in self.taken:
            name = self.constant(name, spec.target)
        if spec.kind is not InputKind.PARAMETER:
            self.result.buffers.append(name)
        self.env[node] = TensorRef(name)
        self.held.add(node)

    def constant(self, name: str, target: str) -> str:
        tensor = self.program.constants.get(target)
        if tensor is None:
            tensor = self.program.state_dict[target]
        # A constant under a module's name would clash with that module.
        while any(key == name or key.startswith(f"{name}.") for key in self.taken):
            name = f"{name}_"
        self.result.constants[name] = tensor.detach()
        return name

    def output(self, node: torch.fx.Node) -> None:
        specs = self.program.graph_signature.output_specs
        values = node.args[0]
        assert isinstance(values, tuple)
        for spec, value in zip(specs, values, strict=True):
            if spec.kind is OutputKind.USER_OUTPUT:
                self.result.outputs.append(self.argument(value))
            elif spec.kind is not OutputKind.USER_INPUT_MUTATION:
                raise ModelError(f"the model writes to its buffer {str(spec.target).removeprefix('model.')!r}")

    def call(self, node: torch.fx.Node) -> None:
        name = _name_of(node)
        if name.startswith(_DROPPED):
            return
        if name in _SAME:
            if any(flag is True for flag in node.args[2:3]) and "dropout" in name:
                raise ModelError(f"the model draws random numbers in eval mode ({name})")
            self.alias(node)
        elif name in _CASTS:
            self.cast(node)
        elif name == _NATIVE_BATCH_NORM:
            args = node.args
            self.env[node] = self.emit("aten.batch_norm.default", (*args[:5], False, *args[5:], False), {}, node)
        elif name == "item" and _name_of(node.args[0]) == _NATIVE_BATCH_NORM:  # type: ignore[arg-type]
            self.env[node] = self.env[node.args[0]]  # type: ignore[index]
        elif _writes(node):
            self.in_place(node, name)
        else:
            self.env[node] = self.emit(_RENAMED.get(name, name), node.args, node.kwargs, node)

    def alias(self, node: torch.fx.Node) -> None:
        self.env[node] = self.argument(node.args[0])

    def cast(self, node: torch.fx.Node) -> None:
        dtype = node.meta["val"].dtype
        if dtype == node.args[0].meta["val"].dtype:  # type: ignore[union-attr]
            self.alias(node)
        else:
            self.env[node] = self.emit("aten.to.dtype", (node.args[0], dtype), {}, node)

    def in_place(self, node: torch.fx.Node, name: str) -> None:
        """Takes the functional twin, where nothing else can see the memory that is written."""
        packet, _, overload = name.removeprefix("aten.").partition(".")
        twin = f"aten.{packet.removesuffix('_')}.{overload}"
        target = node.args[0]
        assert isinstance(target, torch.fx.Node)
        root = self.root.get(target, target)
        family = [member for member in self.seen if self.root.get(member, member) is root]
        others = [user for member in family for user in member.users if user in self.seen and user not in family]
        if root in self.held or not packet.endswith("_") or twin not in operators():
            raise Unsupported(None)
        if any(_may_view(user) for user in others) or (root.op != "placeholder" and _may_view(root)):
            raise Unsupported(None)
        value = self.emit(twin, node.args, node.kwargs, node)
        self.root[node] = root
        for member in (*family, node):
            self.env[member] = value

    def emit(self, name: str, args: Any, kwargs: Mapping[str, Any], node: torch.fx.Node) -> NodeRef:
        known = operators().get(name)
        if known is None:
            raise Unsupported(node.target)
        keep = {parameter.name for parameter in known.parameters if parameter.kind != "absent"}
        named = {key: self.argument(value) for key, value in kwargs.items() if key in keep}
        plain = tuple(self.argument(value) for value in args)
        if known.creates and node.meta["val"].dtype.is_floating_point:
            # Otherwise the default dtype of whoever loads the file would decide.
            named["dtype"] = node.meta["val"].dtype
        plain, named = trim(known, plain, named)
        key = repr((name, plain, sorted(named.items())))
        if key not in self.memo:
            made = Node(name, plain, named)
            try:
                self.kinds.append(check_node(made, self.kinds))
            except FileError as error:
                raise ModelError(f"the model can't be written as a graph: {error}") from None
            self.memo[key] = NodeRef(len(self.result.nodes))
            self.result.nodes.append(made)
        return self.memo[key]

    def argument(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return self.env[value]
        if isinstance(value, list | tuple):
            return tuple(self.argument(item) for item in value)
        if isinstance(value, torch.memory_format | torch.layout | torch.device):
            return None
        return value


def _name_of(node: torch.fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    name = _SYMBOLIC.get(target)
    if name is None:
        return str(getattr(target, "__name__", target))
    floats = any(isinstance(value, float | torch.SymFloat) for value in map(_value, node.args))
    return f"{name}f" if floats and name in ("sym.add", "sym.sub", "sym.mul") else name


def _value(argument: Any) -> Any:
    return argument.meta.get("val") if isinstance(argument, torch.fx.Node) else argument


def _writes(node: torch.fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _may_view(node: torch.fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    return str(target) in _MAY_ALIAS or any(result.alias_info is not None for result in target._schema.returns)


def find_refs(value: Argument) -> Ref | None:
    """Narrows an argument to a reference.

    Args:
        value: an argument.

    Returns:
        The reference, or None for a plain value.
    """
    return value if isinstance(value, NodeRef | InputRef | TensorRef) else None
