"""A model's code run once with every operator written down: enough to follow its channels.

Large results aren't even computed (see `hollow`), unless the code looks at values. An export would cost far more, and
fails on code that looks at its data; it is what `analyse` falls back on where a recording could be wrong.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lilliput.graph.hollow import LookedAtError, hollow
from lilliput.graph.ir import Branch, Graph, InputRef, Node, NodeRef, Ref, TensorRef
from lilliput.graph.operators import operators
from lilliput.graph.structure import tensors_in
from lilliput.graph.trace import eval_mode, put_together, take_apart

# They give what they take, as far as channels go.
_SAME = frozenset({"alias", "clone", "detach", "lift_fresh", "lift_fresh_copy", "_to_copy", "contiguous"})
# What torch makes of an operator on its way down, by the operator that a rule knows.
_RENAMED = {
    "view": "aten.reshape.default",
    "_unsafe_view": "aten.reshape.default",
    "_reshape_alias": "aten.reshape.default",
    "unsafe_split": "aten.split.Tensor",
    "unsafe_split_with_sizes": "aten.split_with_sizes.default",
    "unsafe_chunk": "aten.chunk.default",
    "native_channel_shuffle": "aten.channel_shuffle.default",
    "zero": "aten.zeros_like.default",
    "empty_like": "aten.zeros_like.default",
    # The source, spread over what is overwritten.
    "copy": "aten.expand_as.default",
}
_FIRST = {
    "native_batch_norm": ("aten.batch_norm.default", (0, 1, 2, 3, 4, 5, 6, 7)),
    "native_layer_norm": ("aten.layer_norm.default", (0, 1, 2, 3)),
    "native_group_norm": ("aten.group_norm.default", (0, 6, 1, 2)),
    "_fused_rms_norm": ("aten.rms_norm.default", (0, 1, 2)),
    "_scaled_dot_product_flash_attention_for_cpu": ("aten.scaled_dot_product_attention.default", (0, 1, 2)),
    "max_pool2d_with_indices": ("aten.max_pool2d.default", (0, 1, 2, 3, 4)),
    "max_pool3d_with_indices": ("aten.max_pool3d.default", (0, 1, 2, 3, 4)),
}
"""Operators of several results whose first is the one that counts: what stands for them, of which arguments."""

_MARK = "_lilliput_place"


class UnrecordedError(Exception):
    """The model does something that only an export gets right."""


@dataclass(frozen=True)
class Recording:
    """What was written down.

    Attributes:
        graph: at the operators that torch came down to, which may be others than those of a file.
        results: for each node a shape, a list of shapes, or a number.
        inputs: the tensors that went in.
        tensors: those used, by name: the model's, and constants of its code.
    """

    graph: Graph
    results: list[Any]
    inputs: list[Tensor]
    tensors: dict[str, Tensor]


def record(model: nn.Module, example: Any, copied: nn.Module) -> Recording | None:
    """Runs a copy of a model in eval mode and writes its operators down.

    Args:
        model: the user's, for messages about the example.
        example: as for `trace`.
        copied: what is run; its parameters may be the model's own, its buffers may not.

    Returns:
        The recording; None where it wouldn't be right, and where the model can't be run: `trace` will say why.

    Raises:
        ModelError: the example is none.
    """
    names, trees, leaves = take_apart(model, example)
    if any(isinstance(part, nn.RNNBase | nn.RNNCellBase) for part in copied.modules()):
        return None
    for computed in (False, True):
        args, kwargs = put_together(names, trees, [leaf.clone() for leaf in leaves])
        recorder = _Recorder(copied, tensors_in([args, kwargs]), computed)
        try:
            with eval_mode(copied), torch.no_grad(), recorder:
                output = copied(*args, **kwargs)
            refs = tuple(recorder.ref(tensor) for tensor in tensors_in(output))
        # Whatever the model's own code raises, be it at values that aren't there.
        except Exception:
            continue
        if not recorder.failure:
            graph = Graph((), {}, tuple(recorder.nodes), Branch("tuple", (), refs))
            return Recording(graph, recorder.results, recorder.inputs, recorder.tensors)
    return None


@dataclass(eq=False)
class _Place:
    """Which node's result a tensor is; and the write that its memory saw since, through another tensor."""

    owner: _Recorder
    ref: Ref
    written: Ref | None = None


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: nn.Module, inputs: list[Tensor], computed: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computed = computed
        self.nodes: list[Node] = []
        self.results: list[Any] = []
        self.inputs = inputs
        self.tensors: dict[str, Tensor] = {}
        self.failure = ""
        # Living tensors that share memory.
        self.families: dict[int, list[weakref.ref[Tensor]]] = {}
        self.held: dict[int, Ref] = {}
        named = [*model.state_dict(keep_vars=True).items(), *model.named_parameters(), *model.named_buffers()]
        for name, value in named:
            if isinstance(value, Tensor) and id(value) not in self.held:
                self.held[id(value)] = TensorRef(name)
                self.tensors[name] = value
        self.memory = {tensor.untyped_storage()._cdata for tensor in self.tensors.values()}
        for index, tensor in enumerate(inputs):
            self.put(tensor, InputRef(index))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if func._schema.is_mutable:
            return self.write(func, name, args, kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and not (name in _FIRST and args[3:4] in ((), (0.0,))):
            raise self.unrecorded(f"{name} draws random numbers")
        out = self.compute(func, name, args, kwargs)
        if name in _SAME and isinstance(out, Tensor):
            self.put(out, self.ref(args[0]))
        elif name in _FIRST:
            full, places = _FIRST[name]
            named = {key: self.argument(value) for key, value in kwargs.items() if key == "attn_mask"}
            given = tuple(self.argument(args[place]) for place in places if place < len(args))
            given += (True,) if name == "native_batch_norm" else ()
            self.put(out[0], self.emit(full, given, named, out[0]))
        elif isinstance(out, Tensor):
            self.put(out, self.call(func, name, args, kwargs, out))
        elif isinstance(out, tuple | list):
            whole = self.call(func, name, args, kwargs, out)
            for index, part in enumerate(out):
                if isinstance(part, Tensor):
                    self.put(part, self.emit("item", (whole, index), {}, part))
        return out

    def compute(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        try:
            out = None if self.computed else hollow(func, name, args, kwargs)
        except LookedAtError as error:
            self.failure = str(error)
            raise
        return func(*args, **kwargs) if out is None else out

    def call(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> NodeRef:
        full = _RENAMED.get(name) or f"{func.namespace}.{name}.{func._overloadname}"
        named = {key: self.argument(value) for key, value in kwargs.items()}
        return self.emit(full, tuple(self.argument(value) for value in args), named, out)

    def emit(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> NodeRef:
        self.nodes.append(Node(name, args, kwargs))
        self.results.append(shape_of(out))
        return NodeRef(len(self.nodes) - 1)

    def argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.ref(value)
        if isinstance(value, list | tuple):
            return tuple(self.argument(item) for item in value)
        return None if isinstance(value, torch.memory_format | torch.layout | torch.device) else value

    def ref(self, tensor: Tensor) -> Ref:
        """Where a tensor comes from; one that comes from nowhere is a constant of the model's code."""
        place = tensor.__dict__.get(_MARK)
        if place is not None and place.owner is self:
            if place.written is not None:
                # No more is known than what it is made of: the rule for an unknown operator keeps all of that.
                place.ref = self.emit("a write in place", (place.ref, place.written), {}, tensor)
                place.written = None
            return place.ref  # type: ignore[no-any-return]
        known = self.held.get(id(tensor))
        if known is None:
            name = f"constant {len(self.tensors)}"
            self.tensors[name] = tensor
            known = self.held[id(tensor)] = TensorRef(name)
        return known

    def put(self, tensor: Tensor, ref: Ref) -> None:
        tensor.__dict__[_MARK] = _Place(self, ref)
        family = self.families.setdefault(tensor.untyped_storage()._cdata, [])
        if family:
            family[:] = [member for member in family if member() is not None]
        family.append(weakref.ref(tensor))

    def write(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """In place: what the functional twin gives, for all that see the same memory."""
        target = args[0] if args else None
        if name == "set_" and len(args) == 1:
            # It lets go of its memory, which nothing else notices.
            func(*args)
            self.put(args[0], self.emit("emptied", (), {}, args[0]))
            return target
        twin = name.removesuffix("_")
        full = _RENAMED.get(twin) or f"aten.{twin}.{func._overloadname}"
        if twin == name or full not in operators() or not isinstance(target, Tensor):
            raise self.unrecorded(f"{name} writes in place")
        if target.untyped_storage()._cdata in self.memory:
            raise self.unrecorded(f"{name} writes to what the model holds")
        given = args if twin != "copy" else (args[1], args[0])
        given = tuple(self.argument(value) for value in (given if twin != "zero" else args[:1]))
        kwargs = {key: self.argument(value) for key, value in kwargs.items()} if twin != "copy" else {}
        seen = [member() for member in self.families.get(target.untyped_storage()._cdata, [])]
        self.compute(func, name, args, kwargs)
        new = self.emit(full, given, kwargs, target)
        for other in seen:
            if other is not None and other is not target and not _same_view(other, target):
                self.ref(other)
                other.__dict__[_MARK].written = new
            elif other is not None:
                other.__dict__[_MARK].ref = new
                other.__dict__[_MARK].written = None
        if not any(other is target for other in seen):
            self.put(target, new)
        return target

    def unrecorded(self, why: str) -> UnrecordedError:
        """Noted as well as raised: the model's own code may catch it."""
        self.failure = why
        return UnrecordedError(why)


def _same_view(one: Tensor, two: Tensor) -> bool:
    return (one.shape, one.stride(), one.storage_offset()) == (two.shape, two.stride(), two.storage_offset())


def shape_of(value: Any) -> Any:
    """Returns the shape of a tensor, the shapes of several, or a number as it is.

    Args:
        value: what a node gave.
    """
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return [shape_of(item) for item in value] if isinstance(value, list | tuple) else value
