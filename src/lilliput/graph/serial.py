"""A graph to JSON and back; reading trusts nothing.

A node is `[operator, arguments]` or `[operator, arguments, {keyword: argument}]`; `aten.` and `.default` are left away
from the operator's name. In arguments and structures a string is a reference: `%k` the result of the k-th node
counted back (so that no cycle can be written), `<k` input k, `$name` a tensor. An object is `{"s": string}`,
`{"t": dtype}` or `{"f": "nan" | "inf" | "-inf"}`; arrays are lists; the rest is itself.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from lilliput.core.errors import FileError
from lilliput.graph.check import LONGEST_LIST, LONGEST_STRING, Kind, check_node, is_int
from lilliput.graph.ir import Branch, Graph, InputRef, InputSpec, Node, NodeRef, TensorRef, Tree

MOST_NODES = 200_000
MOST_NAMES = 100_000
LONGEST_NAME = 512
DEEPEST_NAME = 64
DEEPEST_ARGUMENT = 4
DEEPEST_STRUCTURE = 16
MOST_DIMENSIONS = 64

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_COUNT = re.compile(r"(0|[1-9][0-9]{0,8})\Z")
_KEYS = {"in", "sym", "nodes", "out", "call", "buf", "alias", "dtype"}


def encode(graph: Graph) -> dict[str, Any]:
    """Writes a graph as what `json.dumps` takes.

    Args:
        graph: any graph.

    Returns:
        A dict of the keys `in`, `sym`, `nodes`, `out` and, where not empty, `call`, `buf`, `alias`, `dtype`.
    """
    data: dict[str, Any] = {
        "in": [[spec.name, _NAMES[spec.dtype], list(spec.shape)] for spec in graph.inputs],
        "sym": {name: list(bounds) for name, bounds in graph.symbols.items()},
        "nodes": [_encode_node(node, index) for index, node in enumerate(graph.nodes)],
        "out": _encode_tree(graph.output, len(graph.nodes)),
    }
    if graph.call:
        data["call"] = [[name, _encode_tree(tree, 0)] for name, tree in graph.call]
    if graph.buffers:
        data["buf"] = list(graph.buffers)
    if graph.aliases:
        data["alias"] = dict(graph.aliases)
    if graph.dtype is not None:
        data["dtype"] = _NAMES[graph.dtype]
    return data


def _encode_node(node: Node, index: int) -> list[Any]:
    name = node.operator.removeprefix("aten.").removesuffix(".default")
    entry: list[Any] = [name, [_encode_argument(argument, index) for argument in node.args]]
    if node.kwargs:
        entry.append({key: _encode_argument(value, index) for key, value in node.kwargs.items()})
    return entry


def _encode_argument(value: Any, index: int) -> Any:
    match value:
        case NodeRef():
            data: Any = f"%{index - value.index}"
        case InputRef():
            data = f"<{value.index}"
        case TensorRef():
            data = f"${value.name}"
        case tuple():
            data = [_encode_argument(item, index) for item in value]
        case str():
            data = {"s": value}
        case torch.dtype():
            data = {"t": _NAMES[value]}
        case float() if not math.isfinite(value):
            data = {"f": str(value)}
        case _:
            data = value
    return data


def _encode_tree(tree: Tree, index: int) -> Any:
    if not isinstance(tree, Branch):
        return _encode_argument(tree, index)
    children = [_encode_tree(child, index) for child in tree.children]
    return {tree.kind: dict(zip(tree.keys, children)) if tree.keys or tree.kind in ("dict", "record") else children}


def decode(data: object) -> Graph:
    """Reads a graph from what `json.loads` returned; see `Graph.from_json`.

    Args:
        data: anything.

    Returns:
        A graph whose every node has been checked.

    Raises:
        FileError: with what is wrong, in one line.
    """
    top = _object(data, "graph")
    if not _KEYS >= top.keys() >= {"in", "sym", "nodes", "out"}:
        raise FileError("graph: its keys are not those of a graph")
    symbols = _decode_symbols(top["sym"])
    inputs = tuple(_decode_input(item, symbols) for item in _array(top["in"], "graph: inputs", 4096))
    reader = _Reader(len(inputs))
    entries = _array(top["nodes"], "graph: nodes", MOST_NODES)
    for entry in entries:
        reader.node(entry)
    output = reader.tree(top["out"], len(entries), DEEPEST_STRUCTURE)
    return Graph(
        inputs=inputs,
        symbols=symbols,
        nodes=tuple(reader.nodes),
        output=output,
        call=_decode_call(top.get("call", []), len(inputs)),
        buffers=tuple(check_name(name) for name in _unique(top.get("buf", []), "graph: buffers")),
        aliases=_decode_aliases(top.get("alias", {})),
        dtype=_decode_dtype(top["dtype"]) if "dtype" in top else None,
    )


class _Reader:
    """Reads node after node, keeping what each gives."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.nodes: list[Node] = []
        self.kinds: list[Kind] = []

    def node(self, entry: object) -> None:
        index = len(self.nodes)
        where = f"graph: node {index}"
        if not isinstance(entry, list) or len(entry) not in (2, 3) or not isinstance(entry[0], str):
            raise FileError(f"{where} is not [operator, arguments] or [operator, arguments, keywords]")
        arguments = _array(entry[1], f"{where}: arguments", 64)
        keywords = _object(entry[2], f"{where}: keywords") if len(entry) == 3 else {}
        node = Node(
            _full_name(entry[0]),
            tuple(self.argument(item, index, DEEPEST_ARGUMENT) for item in arguments),
            {name: self.argument(item, index, DEEPEST_ARGUMENT) for name, item in keywords.items()},
        )
        self.kinds.append(check_node(node, self.kinds))
        self.nodes.append(node)

    def argument(self, item: object, index: int, depth: int) -> Any:
        if isinstance(item, list):
            if depth == 0 or len(item) > LONGEST_LIST:
                raise FileError(f"graph: node {index}: an argument is too long or nested too deep")
            return tuple(self.argument(inner, index, depth - 1) for inner in item)
        if isinstance(item, str):
            return self.ref(item, index)
        if isinstance(item, dict):
            return _decode_literal(item, index)
        if isinstance(item, int) and not isinstance(item, bool) and not is_int(item):
            raise FileError(f"graph: node {index}: a number exceeds 64 bits")
        if isinstance(item, float) and not math.isfinite(item):
            raise FileError(f"graph: node {index}: a number is not finite")
        return item

    def ref(self, text: str, index: int) -> NodeRef | InputRef | TensorRef:
        sign, rest = text[:1], text[1:]
        if sign == "$":
            return TensorRef(check_name(rest))
        if sign in ("%", "<") and _COUNT.match(rest):
            number = int(rest)
            if sign == "<" and number < self.inputs:
                return InputRef(number)
            if sign == "%" and 1 <= number <= index:
                return NodeRef(index - number)
        raise FileError(f"graph: node {index}: {text[:80]!r} refers to nothing that comes before it")

    def tree(self, item: object, index: int, depth: int) -> Tree:
        kind = next(iter(item)) if isinstance(item, dict) and len(item) == 1 else None
        if kind not in ("tuple", "list", "dict", "record"):
            leaf = self.argument(item, index, 0)
            if isinstance(leaf, torch.dtype):
                raise FileError("graph: a structure holds something other than tensors and plain values")
            if isinstance(leaf, NodeRef) and not isinstance(self.kinds[leaf.index], str):
                raise FileError("graph: a structure holds a tuple of results as if it were a tensor")
            return leaf  # type: ignore[no-any-return]
        if depth == 0:
            raise FileError("graph: a structure is nested too deep")
        assert isinstance(item, dict)
        if kind in ("dict", "record"):
            inner = _object(item[kind], "graph: a structure")
            if any(len(key) > LONGEST_STRING for key in inner):
                raise FileError("graph: a structure's key is too long")
            return Branch(kind, tuple(inner), tuple(self.tree(child, index, depth - 1) for child in inner.values()))
        children = _array(item[kind], "graph: a structure", LONGEST_LIST)
        return Branch(kind, (), tuple(self.tree(child, index, depth - 1) for child in children))


def check_name(name: object) -> str:
    """Checks the name of a tensor: parts that are not empty between dots, no control characters.

    Args:
        name: anything.

    Returns:
        The name.

    Raises:
        FileError: when a module can't have a tensor of this name.
    """
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise FileError(f"graph: {str(name)[:80]!r} can't be a tensor's name")
    parts = name.split(".")
    # Every module has a flag of this name, which nothing may hide.
    if not all(parts) or len(parts) > DEEPEST_NAME or "training" in parts:
        raise FileError(f"graph: {name[:80]!r} can't be a tensor's name")
    return name


def _full_name(name: str) -> str:
    if name == "item" or name.startswith("sym."):
        return name
    return f"aten.{name}" if "." in name else f"aten.{name}.default"


def _object(data: object, what: str) -> dict[str, Any]:
    if not isinstance(data, dict) or len(data) > MOST_NAMES or not all(isinstance(key, str) for key in data):
        raise FileError(f"{what[:120]}: not an object, or too large a one")
    return data


def _array(data: object, what: str, most: int) -> list[Any]:
    if not isinstance(data, list) or len(data) > most:
        raise FileError(f"{what[:120]}: not a list of at most {most} items")
    return data


def _unique(data: object, what: str) -> list[Any]:
    names = _array(data, what, MOST_NAMES)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise FileError(f"{what}: a name is no string, or doubled")
    return names


def _decode_literal(item: dict[Any, Any], index: int) -> Any:
    match item:
        case {"s": str(text)} if len(item) == 1 and len(text) <= LONGEST_STRING:
            return text
        case {"t": name} if len(item) == 1:
            return _decode_dtype(name)
        case {"f": ("nan" | "inf" | "-inf") as text} if len(item) == 1:
            return float(text)
    raise FileError(f"graph: node {index}: an object among its arguments means nothing")


def _decode_dtype(name: object) -> torch.dtype:
    if not isinstance(name, str) or name not in DTYPES:
        raise FileError(f"graph: unknown dtype {str(name)[:80]!r}")
    return DTYPES[name]


def _decode_symbols(data: object) -> dict[str, tuple[int, int | None]]:
    symbols = {}
    for name, bounds in _object(data, "graph: symbols").items():
        if not isinstance(bounds, list) or len(bounds) != 2 or not 0 < len(name) <= LONGEST_STRING:
            raise FileError("graph: a symbol is not [smallest, largest]")
        low, high = bounds
        if not is_int(low) or low < 0 or not (high is None or (is_int(high) and high >= low)):
            raise FileError(f"graph: symbol {name[:80]!r} has no sensible range")
        symbols[name] = (low, high)
    return symbols


def _decode_input(data: object, symbols: dict[str, tuple[int, int | None]]) -> InputSpec:
    if not isinstance(data, list) or len(data) != 3 or not isinstance(data[0], str) or len(data[0]) > LONGEST_NAME:
        raise FileError("graph: an input is not [name, dtype, shape]")
    name, dtype, shape = data
    for size in _array(shape, f"graph: input {name[:80]!r}: shape", MOST_DIMENSIONS):
        if not (is_int(size) and size >= 0) and not (isinstance(size, str) and size in symbols):
            raise FileError(f"graph: input {name[:80]!r}: {str(size)[:80]!r} is no size")
    return InputSpec(name, _decode_dtype(dtype), tuple(shape))


def _decode_call(data: object, inputs: int) -> tuple[tuple[str, Tree], ...]:
    reader = _Reader(inputs)
    call: list[tuple[str, Tree]] = []
    for item in _array(data, "graph: call", 4096):
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], str):
            raise FileError("graph: an argument of the call is not [name, structure]")
        if len(item[0]) > LONGEST_NAME or any(item[0] == name for name, _ in call):
            raise FileError("graph: an argument of the call is doubled, or its name too long")
        tree = reader.tree(item[1], 0, DEEPEST_STRUCTURE)
        call.append((item[0], tree))
    return tuple(call)


def _decode_aliases(data: object) -> dict[str, str]:
    aliases = _object(data, "graph: aliases")
    for name, target in aliases.items():
        check_name(name)
        check_name(target)
        if target in aliases:
            raise FileError(f"graph: alias {name[:80]!r} names another alias")
    return dict(aliases)
