"""A model traced into a `Graph` by `torch.export`, before decomposition, with batch and sequence left open."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import ModelError
from lilliput.core.layers import tensors_of
from lilliput.graph.bounds import first_line
from lilliput.graph.convert import Converted, Unsupported, convert
from lilliput.graph.ir import Graph, InputRef, InputSpec, NodeRef, Ref, Tree, map_refs
from lilliput.graph.reopen import reopen
from lilliput.graph.simplify import drop_dead
from lilliput.graph.structure import join, split, tensors_in

_ROUNDS = 12


def trace(
    model: nn.Module, example: Any, *, open_sizes: Mapping[str, Sequence[int]] | None = None, compare: bool = True
) -> tuple[Graph, dict[str, Tensor]]:
    """Traces a model in eval mode.

    Linear layers, convolutions, LSTMs and attention stay one node each. The batch (dimension 0 of each tensor) and
    what may be a sequence are left open where the model allows it, then the batch alone, then nothing; `Graph.open`
    says which. The model is left as it was.

    Args:
        model: any module; its parameters keep their `state_dict` names.
        example: a tensor, a tuple of arguments, or a dict of keyword arguments. Tensors of batch 1 are repeated.
        open_sizes: dimensions to leave open by input name (as `"x"`), instead of those that are guessed.
        compare: False if the graph is only looked at, so that no model has to be run to see that both agree.

    Returns:
        The graph, and the tensors it uses that aren't in the `state_dict`.

    Raises:
        ModelError: export fails, an operator is not on the allow-list and can't be decomposed, or the graph doesn't
            compute what the model does.

    Example:
        >>> graph, constants = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.rand(1, 3))
        >>> [node.operator for node in graph.nodes], graph.open
        (['aten.linear.default', 'aten.relu.default'], 'batch')
    """
    with eval_mode(model), torch.no_grad():
        names, trees, leaves = take_apart(model, example)
        labels = _labels(names, trees, len(leaves))
        failure: Exception | None = None
        for tensors, sizes in _attempts(leaves, labels, open_sizes):
            flat = _Flat(model, names, trees)
            try:
                graph, constants = _trace_once(flat, tensors, sizes, labels)
                if not compare:
                    return graph, constants
                # A graph that doesn't compute what the model computes is worse than none.
                if not _agree(model, graph, constants, (names, trees, leaves)):
                    raise ModelError("the traced graph gives other outputs than the model, which may depend on chance")

                def agree(wider: Graph, given: list[Tensor], held: dict[str, Tensor] = constants) -> bool:
                    try:
                        return _agree(model, wider, held, (names, trees, given))
                    # The model or the graph can't take this size.
                    except Exception:
                        return False

                return reopen(graph, tensors, sizes, agree), constants
            except ModelError as error:
                failure = error
            # Export raises whatever the model's own code makes it raise.
            except Exception as error:
                failure = ModelError(f"the model can't be exported: {type(error).__name__}: {first_line(error)}")
        assert failure is not None
        raise failure from None


_Call = tuple[Sequence[str], Sequence[Tree], Sequence[Tensor]]


class _Flat(nn.Module):
    """The model with tensors in and a flat tuple out; the output's structure is kept aside."""

    def __init__(self, model: nn.Module, names: Sequence[str], trees: Sequence[Tree]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.trees = trees
        # A bare list attribute would be put back by export to what it was before.
        self.found = SimpleNamespace(output=None)

    def forward(self, *leaves: Tensor) -> tuple[Any, ...]:
        args, kwargs = put_together(self.names, self.trees, leaves)
        flat: list[Any] = []

        def leaf(value: Any) -> Ref | None:
            if not isinstance(value, Tensor | torch.SymInt | torch.SymFloat):
                return None
            flat.append(value)
            return NodeRef(len(flat) - 1)

        self.found.output = split(self.model(*args, **kwargs), leaf)
        return tuple(flat)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode, without the fused path of torch's transformer layers, and back again.

    Args:
        model: any module.
    """
    training = [module for module in model.modules() if module.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    # The fused path of transformer layers is one opaque operator.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in training:
            module.training = True


def take_apart(model: nn.Module, example: Any) -> tuple[list[str], list[Tree], list[Tensor]]:
    """Takes an example apart.

    Args:
        model: whose `forward` names positional arguments.
        example: as for `trace`.

    Returns:
        Names of the call's arguments, their structures over `InputRef`s, and the tensors.

    Raises:
        ModelError: it holds no tensor, more arguments than the model takes, or something of an unknown kind.
    """
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Ref | None:
        if not isinstance(value, Tensor):
            return None
        leaves.append(value.detach())
        return InputRef(len(leaves) - 1)

    if isinstance(example, Mapping):
        arguments = dict(example)
    else:
        args = (example,) if isinstance(example, Tensor) else tuple(example)
        arguments = _named(model, args)
    trees = [split(value, leaf, f"input {name!r}") for name, value in arguments.items()]
    if not leaves:
        raise ModelError("the example holds no tensor, so that the model can't be traced")
    return list(arguments), trees, leaves


def _named(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    try:
        names = []
        for parameter in inspect.signature(model.forward).parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                names.append(parameter.name)
            elif parameter.kind is parameter.VAR_POSITIONAL:
                names += [f"{index}" for index in range(len(names), len(args))]
    except (TypeError, ValueError):
        names = []
    if len(args) > len(names):
        raise ModelError(f"the example has {len(args)} arguments, the model's forward takes {len(names)}")
    return dict(zip(names, args, strict=False))


def put_together(
    names: Sequence[str], trees: Sequence[Tree], leaves: Sequence[Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Puts an example together again.

    Args:
        names: of the arguments.
        trees: their structures.
        leaves: the tensors.

    Returns:
        Positional and keyword arguments.
    """
    values = [join(tree, lambda ref: leaves[ref.index]) for tree in trees]  # type: ignore[union-attr]
    # Arguments that were given by position stay so: a leading run is the same either way, and `*args` have no names.
    if any(name.isdigit() for name in names):
        return values, {}
    return [], dict(zip(names, values))


def _labels(names: Sequence[str], trees: Sequence[Tree], count: int) -> list[str]:
    """A name for each input tensor: its argument's, with a number behind where an argument holds several."""
    labels = [""] * count
    for name, tree in zip(names, trees):
        held: list[int] = []
        map_refs(tree, lambda ref, held=held: held.append(ref.index))
        for position, index in enumerate(held):
            labels[index] = name if len(held) == 1 else f"{name}.{position}"
    return labels


def _attempts(
    leaves: list[Tensor], labels: list[str], open_sizes: Mapping[str, Sequence[int]] | None
) -> Iterator[tuple[list[Tensor], list[set[int]]]]:
    """Tensors to trace with and the dimensions to leave open, the most open first."""
    if open_sizes is not None:
        unknown = set(open_sizes) - set(labels)
        if unknown:
            raise ModelError(f"no input is called {sorted(unknown)[0]!r}; there are {', '.join(labels)}")
        sizes = [{d % max(leaf.dim(), 1) for d in open_sizes.get(name, ())} for name, leaf in zip(labels, leaves)]
        yield [_widen(leaf, dims) for leaf, dims in zip(leaves, sizes)], sizes
        return
    batch = [{0} if leaf.dim() else set() for leaf in leaves]
    lengths = {leaf.shape[1] for leaf in leaves if leaf.dim() >= 2 and not leaf.is_floating_point()}
    more = []
    for leaf, dims in zip(leaves, batch):
        matches = leaf.dim() >= 2 and leaf.shape[1] in lengths
        more.append(dims | ({1} if matches else set()) | ({1, 2} if leaf.dim() == 3 else set()))
    if more != batch:
        yield [_widen(leaf, {d for d in dims if d < 2}) for leaf, dims in zip(leaves, more)], more
        yield [_widen(leaf, dims) for leaf, dims in zip(leaves, batch)], more
    yield [_widen(leaf, dims) for leaf, dims in zip(leaves, batch)], batch
    yield leaves, [set() for _ in leaves]


def _widen(tensor: Tensor, dims: set[int]) -> Tensor:
    """Export takes a size of 1 for a constant: repeat it."""
    repeats = [2 if dim in dims and size == 1 else 1 for dim, size in enumerate(tensor.shape)]
    return tensor.repeat(repeats) if any(count > 1 for count in repeats) else tensor


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from writing a traceback to stderr of each way to trace that fails: the error itself says enough."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _trace_once(
    flat: _Flat, leaves: list[Tensor], sizes: list[set[int]], labels: list[str]
) -> tuple[Graph, dict[str, Tensor]]:
    auto = torch.export.Dim.AUTO
    shapes = (tuple(dict.fromkeys(dims, auto) for dims in sizes),)
    with _quiet():
        program = torch.export.export(flat, tuple(leaves), dynamic_shapes=shapes, strict=False)
    structure: Tree = flat.found.output
    state = flat.model.state_dict(keep_vars=True)
    taken = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    canonical: dict[int, str] = {}
    for name, value in taken.items():
        canonical.setdefault(id(value), name)
    every = tensors_of(flat.model)

    def rename(target: str) -> str:
        name = target.removeprefix("model.")
        return canonical.get(id(every.get(name)), name)

    converted = _convert(program, rename, taken)
    specs, symbols = _inputs(converted, program, labels)
    floats = [value.dtype for value in flat.model.parameters() if value.is_floating_point()]
    graph = Graph(
        inputs=specs,
        symbols=symbols,
        nodes=tuple(converted.nodes),
        output=map_refs(structure, lambda ref: converted.outputs[ref.index]),
        call=tuple(zip(flat.names, flat.trees)),
        aliases={name: canonical[id(value)] for name, value in taken.items() if canonical[id(value)] != name},
        dtype=max(set(floats), key=floats.count) if floats else None,
    )
    graph = drop_dead(graph, buffers=converted.buffers)
    used = set(graph.tensors)
    return graph, {name: value for name, value in converted.constants.items() if name in used}


def _convert(program: Any, rename: Any, taken: Mapping[str, Tensor]) -> Converted:
    for _ in range(_ROUNDS):
        try:
            return convert(program, rename, taken)
        except Unsupported as missing:
            table = {}
            if missing.target is not None:
                known = torch.export.default_decompositions()
                if missing.target not in known:
                    raise ModelError(f"operator {missing.target} is not on the allow-list of graphs") from None
                table = {missing.target: known[missing.target]}
            program = program.run_decompositions(table)
    raise ModelError("the model's operators don't decompose into those that a graph may hold")


def _inputs(
    converted: Converted, program: Any, labels: Sequence[str]
) -> tuple[tuple[InputSpec, ...], dict[str, tuple[int, int | None]]]:
    """Input specs, with open sizes called `n` (the first batch) and `s1`, `s2` ..."""
    names: dict[str, str] = {}
    symbols: dict[str, tuple[int, int | None]] = {}
    specs = []
    for label, node in zip(labels, converted.inputs):
        shape: list[int | str] = []
        for position, size in enumerate(node.meta["val"].shape):
            # The model's code may have fixed a size that was offered as open.
            if isinstance(size, int) or size.node.expr.is_number:
                shape.append(int(size))
                continue
            expression = str(size.node.expr)
            if expression not in names:
                names[expression] = "n" if position == 0 and "n" not in symbols else f"s{len(names)}"
                symbols[names[expression]] = _range(program, size.node.expr)
            shape.append(names[expression])
        specs.append(InputSpec(label, node.meta["val"].dtype, tuple(shape)))
    return tuple(specs), symbols


def _range(program: Any, expression: Any) -> tuple[int, int | None]:
    bounds = program.range_constraints.get(expression)
    if bounds is None:
        return 1, None
    low = int(bounds.lower)
    high = int(bounds.upper) if bounds.upper.is_finite and bounds.upper < 2**62 else None
    # Export never lets an open size be 0 or 1, whether or not the model minds.
    return (1 if low <= 2 else low), high


def _agree(model: nn.Module, graph: Graph, constants: dict[str, Tensor], call: _Call) -> bool:
    """Whether model and graph give the same outputs."""
    from lilliput.graph.run import GraphModule

    args, kwargs = put_together(*call)
    expected = tensors_in(model(*args, **kwargs))
    got = tensors_in(GraphModule(graph, _tensors_of(model) | constants)(*args, **kwargs))
    for one, two in zip(expected, got, strict=True):
        rough = 1e-4 if one.dtype in (torch.float32, torch.float64) else 5e-2
        if one.shape != two.shape or not torch.allclose(one, two, rtol=rough, atol=rough, equal_nan=True):
            return False
    return True


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
