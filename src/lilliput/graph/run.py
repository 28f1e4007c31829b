"""A graph as a module that runs, trains and saves like any other, without the model's Python class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import DataError, FileError
from lilliput.graph.execute import MOST_ELEMENTS, run, run_checked, setting_of
from lilliput.graph.ir import Branch, Graph, InputRef, InputSpec, Tree
from lilliput.graph.program import Program
from lilliput.graph.serial import check_name
from lilliput.graph.structure import join

# How many combinations of input shapes are remembered as checked.
_REMEMBERED = 256


class GraphModule(nn.Module):
    """Runs a graph.

    Parameters and buffers stand under the names that they had in the original model, in nested modules, so that
    `state_dict()` has the same keys. Devices and the floating dtype follow the module's. Normalisation and dropout
    stay in eval mode, also while the parameters are trained.

    Args:
        graph: what to run.
        tensors: every tensor the graph uses, by name, taken without a copy; others are kept as well. Floating
            ones that the graph doesn't call buffers become parameters.
        limit: largest number of elements that the results alive at one time may have; more is refused before
            memory is taken. None: don't check.

    Raises:
        FileError: a tensor is missing, or two names clash.

    Example:
        >>> from lilliput.graph.trace import trace
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> graph, constants = trace(model, torch.rand(1, 3))
        >>> net = GraphModule(graph, model.state_dict() | constants)
        >>> sorted(net.state_dict()), tuple(net(torch.rand(5, 3)).shape)
        (['0.bias', '0.weight'], (5, 4))
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], limit: int | None = MOST_ELEMENTS) -> None:
        super().__init__()
        # Past nn.Module's own bookkeeping: the model may have a submodule of any name.
        self.__dict__["_graph"] = graph
        self.__dict__["_limit"] = limit
        self.__dict__["_slots"] = _register(self, graph, tensors)
        self.__dict__["_program"] = Program(graph)
        self.__dict__["_checked"] = set()
        self.train(False)

    @property
    def graph(self) -> Graph:
        """The graph that is run."""
        return self.__dict__["_graph"]  # type: ignore[no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the original model did in eval mode.

        Args:
            args: the arguments that the model was traced with; each open size may differ.
            kwargs: or by name.

        Returns:
            The model's output, in its structure; a dataclass comes back as a `Record`.

        Raises:
            DataError: an argument is missing, or a tensor is of another kind, rank or fixed size.
            FileError: the graph asks for more elements than the limit, or can't be run.
        """
        graph, program = self.__dict__["_graph"], self.__dict__["_program"]
        inputs = bind_inputs(graph, args, kwargs)
        check_inputs(graph.inputs, graph.symbols, inputs)
        tensors = [_fetch(holder, leaf) for holder, leaf in self.__dict__["_slots"]]
        limit, checked = self.__dict__["_limit"], self.__dict__["_checked"]
        key = (*setting_of(inputs, tensors), *[(tensor.shape, tensor.dtype) for tensor in inputs])
        if limit is None or key in checked:
            values = run(program, inputs, tensors)
        else:
            values = run_checked(program, inputs, tensors, limit)
            if len(checked) >= _REMEMBERED:
                checked.clear()
            checked.add(key)
        return join(graph.output, lambda ref: values[program.place(ref)])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_program", "_checked")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Closures aren't copied but compiled again.
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__["_program"] = Program(state["_graph"])
        self.__dict__["_checked"] = set()


def _register(root: nn.Module, graph: Graph, tensors: Mapping[str, Tensor]) -> list[tuple[nn.Module, str]]:
    """Puts tensors into nested modules; returns where each of `graph.tensors` went."""
    used = graph.tensors
    missing = [name for name in used if name not in tensors]
    if missing:
        raise FileError(f"graph: tensor {missing[0][:80]!r} is used but not in the file")
    buffers = set(graph.buffers)
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in graph.aliases:
            _place(root, check_name(name), _owned(tensor, name in buffers), made)
    for name, target in graph.aliases.items():
        if target in made and name not in made:
            _place(root, check_name(name), made[target], made)
    return [(_holder(root, name), name.rpartition(".")[2]) for name in used]


def _owned(tensor: Tensor, is_buffer: bool) -> Tensor:
    if is_buffer or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.detach()
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach())


def _place(root: nn.Module, name: str, tensor: Tensor, made: dict[str, Tensor]) -> None:
    *path, leaf = name.split(".")
    holder = root
    for part in path:
        if part in holder._parameters or part in holder._buffers:
            raise FileError(f"graph: {name[:80]!r} lies inside of another tensor")
        # Straight into the table: a submodule may be called like one of nn.Module's methods.
        holder = holder._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
    if leaf in holder._modules or leaf in holder._parameters or leaf in holder._buffers:
        raise FileError(f"graph: tensor {name[:80]!r} is doubled, or other tensors lie inside of it")
    table: dict[str, Any] = holder._parameters if isinstance(tensor, nn.Parameter) else holder._buffers
    table[leaf] = made[name] = tensor


def _holder(root: nn.Module, name: str) -> nn.Module:
    for part in name.split(".")[:-1]:
        root = root._modules[part]  # type: ignore[assignment]
    return root


def _fetch(holder: nn.Module, leaf: str) -> Tensor:
    tensor: Tensor | None = holder._parameters.get(leaf)
    if tensor is None:
        tensor = holder._buffers.get(leaf)
    if tensor is None:
        # The user has put a parametrization on it.
        lists = holder._modules["parametrizations"]
        return lists._modules[leaf]()  # type: ignore[union-attr, misc, no-any-return]
    return tensor


def bind_inputs(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Finds the graph's inputs in the arguments of a call.

    Args:
        graph: whose `call` says how its inputs were given when it was traced.
        args: positional arguments.
        kwargs: keyword arguments; one that is None and unknown is passed over.

    Returns:
        One tensor for each input.

    Raises:
        DataError: a missing, unknown or doubled argument, or one of another structure or fixed value.
    """
    call = graph.call or tuple((spec.name, InputRef(index)) for index, spec in enumerate(graph.inputs))
    names = [name for name, _ in call]
    if len(args) > len(call):
        raise DataError(f"{len(args)} arguments given, the network takes {len(call)}: {', '.join(names)}")
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in given or (name not in names and value is not None):
            raise DataError(f"argument {name!r} is given twice, or not among the network's: {', '.join(names)}")
        given[name] = value
    inputs: list[Any] = [None] * len(graph.inputs)
    for name, tree in call:
        if name not in given and isinstance(tree, Branch | InputRef):
            raise DataError(f"argument {name!r} is missing; the network takes {', '.join(names)}")
        _match(tree, given.get(name, tree), inputs, name)
    return inputs


def bind_example(graph: Graph, example: Any) -> list[Tensor]:
    """Finds the graph's inputs in an example.

    Args:
        graph: traced from it.
        example: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Returns:
        One tensor for each input.

    Raises:
        DataError: as for `bind_inputs`.
    """
    if isinstance(example, Mapping):
        return bind_inputs(graph, (), example)
    return bind_inputs(graph, (example,) if isinstance(example, Tensor) else tuple(example), {})


def _match(tree: Tree, value: Any, inputs: list[Any], name: str) -> None:
    if isinstance(tree, InputRef):
        if not isinstance(value, Tensor):
            raise DataError(f"argument {name!r} must be a tensor, not {type(value).__name__}")
        inputs[tree.index] = value
    elif isinstance(tree, Branch):
        if tree.keys:
            children = [value.get(key) for key in tree.keys] if isinstance(value, Mapping) else None
        else:
            children = list(value) if isinstance(value, tuple | list) else None
        if children is None or len(children) != len(tree.children):
            raise DataError(f"argument {name!r} must be a {tree.kind} of {len(tree.children)}")
        for child, item in zip(tree.children, children):
            _match(child, item, inputs, name)
    elif type(value) is not type(tree) or value != tree:
        raise DataError(f"argument {name!r} was fixed to {tree!r} when the network was traced")


def check_inputs(
    specs: Sequence[InputSpec], symbols: Mapping[str, tuple[int, int | None]], inputs: list[Tensor]
) -> None:
    """Checks dtype kinds, ranks, fixed sizes, and that an open size is the same wherever it occurs.

    Args:
        specs: what each input must be.
        symbols: ranges of open sizes.
        inputs: the tensors.

    Raises:
        DataError: with the first that doesn't fit.
    """
    sizes: dict[str, int] = {}
    for spec, tensor in zip(specs, inputs, strict=True):
        if tensor is None or _kind(tensor.dtype) != _kind(spec.dtype):
            given = "missing" if tensor is None else str(tensor.dtype)
            raise DataError(f"input {spec.name!r} must be {spec.dtype}, it is {given}")
        shape = tuple(tensor.shape)
        if len(shape) != len(spec.shape):
            raise DataError(f"input {spec.name!r} must have shape {_show(spec.shape)}, it has {_show(shape)}")
        for size, wanted in zip(shape, spec.shape):
            expected = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
            if size != expected:
                raise DataError(f"input {spec.name!r} must have shape {_show(spec.shape)}, it has {_show(shape)}")
    for name, size in sizes.items():
        low, high = symbols[name]
        if size < low or (high is not None and size > high):
            raise DataError(
                f"size {name!r} is {size}, it must be at least {low}{f' and at most {high}' if high else ''}"
            )


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "complex" if dtype.is_complex else "bool" if dtype is torch.bool else "int"


def _show(shape: Sequence[int | str]) -> str:
    return "x".join(str(size) for size in shape) or "scalar"
