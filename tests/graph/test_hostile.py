"""Graphs from a stranger: each is refused with one line, before memory is taken."""

import contextlib
import copy
import json
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.core.errors import FileError, LilliputError
from lilliput.graph.ir import Graph
from lilliput.graph.run import GraphModule
from lilliput.graph.trace import trace


def good() -> dict[str, Any]:
    """x (n x 4) -> linear -> relu -> reshape."""
    return {
        "in": [["x", "float32", ["n", 4]]],
        "sym": {"n": [1, None]},
        "nodes": [
            ["linear", ["<0", "$fc.weight", "$fc.bias"]],
            ["relu", ["%1"]],
            ["sym_size.int", ["<0", 0]],
            ["reshape", ["%2", ["%1", 2, -1]]],
        ],
        "out": {"tuple": ["%1"]},
        "call": [["x", "<0"]],
    }


TENSORS = {"fc.weight": torch.rand(6, 4), "fc.bias": torch.rand(6)}


def refusal(data: Any) -> str:
    start = time.perf_counter()
    with pytest.raises(FileError) as caught:
        Graph.from_json(data)
    assert time.perf_counter() - start < 5
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_the_good_one_runs() -> None:
    net = GraphModule(Graph.from_json(good()), TENSORS)
    assert net(torch.rand(3, 4))[0].shape == (3, 2, 3)


NODES: dict[str, tuple[list[Any], str]] = {
    "unknown operator": (["os.system", [{"s": "true"}]], "not on the list"),
    "in place": (["relu_", ["<0"]], "not on the list"),
    "random": (["rand", [[2]]], "not on the list"),
    "uninitialised memory": (["empty.memory_format", [[2]]], "not on the list"),
    "dunder": (["__class__", ["<0"]], "not on the list"),
    "dotted": (["linear.default.__init__", ["<0"]], "not on the list"),
    "file": (["from_file", [{"s": "/etc/passwd"}]], "not on the list"),
    "forward reference": (["relu", ["%0"]], "refers to nothing"),
    "itself and beyond": (["relu", ["%-1"]], "refers to nothing"),
    "too far back": (["relu", ["%5"]], "refers to nothing"),
    "huge reference": (["relu", ["%" + "9" * 5000]], "refers to nothing"),
    "unicode digits": (["relu", ["%\u0661"]], "refers to nothing"),
    "unknown input": (["relu", ["<1"]], "refers to nothing"),
    "no sign": (["relu", ["fc.weight"]], "refers to nothing"),
    "empty name": (["relu", ["$"]], "tensor's name"),
    "dots in a name": (["relu", ["$a..b"]], "tensor's name"),
    "NUL in a name": (["relu", ["$a\0b"]], "tensor's name"),
    "long name": (["relu", ["$" + "a" * 1000]], "tensor's name"),
    "deep name": (["relu", ["$" + ".".join("a" * 100)]], "tensor's name"),
    "too few arguments": (["linear", ["<0"]], "'weight' is missing"),
    "too many arguments": (["relu", ["<0", "<0"]], "takes 1 positional"),
    "unknown keyword": (["relu", ["<0"], {"x": 1}], "unknown or given twice"),
    "given twice": (["relu", ["<0"], {"self": "<0"}], "unknown or given twice"),
    "number for a tensor": (["linear", ["<0", 1.0]], "'weight' is no tensor"),
    "tensor for a number": (["softmax.int", ["<0", "<0"]], "'dim' is no int"),
    "bool for an int": (["softmax.int", ["<0", True]], "'dim' is no int"),
    "float for an int": (["softmax.int", ["<0", 1.0]], "'dim' is no int"),
    "string for an int": (["softmax.int", ["<0", {"s": "1"}]], "'dim' is no int"),
    "null for a tensor": (["relu", [None]], "is no tensor"),
    "list for a tensor": (["relu", [["<0"]]], "is no tensor"),
    "tensor for a list": (["cat", ["<0"]], "list of tensors"),
    "null among tensors": (["cat", [["<0", None]]], "list of tensors"),
    "size as a tensor": (["relu", ["%2"]], "is no tensor"),
    "dtype for an int": (["softmax.int", ["<0", {"t": "float32"}]], "'dim' is no int"),
    "unknown dtype": (["to.dtype", ["<0", {"t": "object"}]], "unknown dtype"),
    "odd object": (["relu", [{"x": 1}]], "means nothing"),
    "two things at once": (["relu", [{"s": "a", "t": "int8"}]], "means nothing"),
    "huge integer": (["softmax.int", ["<0", 2**63]], "64 bits"),
    "enormous integer": (["softmax.int", ["<0", 10**4000]], "64 bits"),
    "NaN": (["add.Scalar", ["<0", float("nan")]], "not finite"),
    "infinity": (["add.Scalar", ["<0", float("inf")]], "not finite"),
    "odd infinity": (["add.Scalar", ["<0", {"f": "Infinity"}]], "means nothing"),
    "memory format": (["clone", ["<0"], {"memory_format": 1}], "'memory_format' is no"),
    "device": (["zeros", [[2]], {"device": {"s": "cuda"}}], "'device' is no"),
    "pinned": (["zeros", [[2]], {"pin_memory": True}], "'pin_memory' is no"),
    "item of a tensor": (["item", ["<0", 0]], "no earlier node"),
    "item of a single result": (["item", ["%3", 0]], "has none such"),
    "negative item": (["item", ["%3", -1]], "within range"),
    "long list": (["reshape", ["<0", [1] * 100_000]], "too long"),
    "long string": (["gelu", ["<0"], {"approximate": {"s": "x" * 300}}], "means nothing"),
    "training norm": (
        ["batch_norm", ["<0", None, None, "$fc.bias", "$fc.bias", True, 0.1, 1e-5, False]],
        "for inference",
    ),
    "random attention": (["scaled_dot_product_attention", ["<0", "<0", "<0", None, 0.5]], "for inference"),
    "no list": ("relu", "is not [operator"),
    "empty": ([], "is not [operator"),
    "number for an operator": ([1, []], "is not [operator"),
    "arguments no list": (["relu", "<0"], "not a list"),
    "keywords no object": (["relu", ["<0"], []], "not an object"),
}


@pytest.mark.parametrize("name", NODES)
def test_node_is_refused(name: str) -> None:
    node, words = NODES[name]
    data = good()
    data["nodes"].append(node)
    assert words in refusal(data)


def deep(levels: int, key: str | None = None) -> Any:
    item: Any = "<0"
    for _ in range(levels):
        item = [item] if key is None else {key: [item]}
    return item


def test_deep_nesting() -> None:
    data = good()
    data["nodes"].append(["cat", [deep(50_000)]])
    assert "nested too deep" in refusal(data)
    data = good() | {"out": deep(50_000, "tuple")}
    assert "nested too deep" in refusal(data)
    data = good() | {"call": [["x", deep(50_000, "list")]]}
    assert "nested too deep" in refusal(data)


def test_a_million_nodes() -> None:
    data = good()
    data["nodes"] += [["relu", ["%1"]]] * 1_000_000
    assert "at most 200000" in refusal(data)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("in", 3, "not a list"),
        ("in", [["x", "float32"]], "an input is not"),
        ("in", [["x", "float99", [1]]], "unknown dtype"),
        ("in", [["x", ["float32"], [1]]], "unknown dtype"),
        ("in", [["x", "float32", [-1]]], "is no size"),
        ("in", [["x", "float32", [True]]], "is no size"),
        ("in", [["x", "float32", [1.0]]], "is no size"),
        ("in", [["x", "float32", [2**64]]], "is no size"),
        ("in", [["x", "float32", ["m"]]], "is no size"),
        ("in", [["x", "float32", [1] * 100]], "not a list of at most"),
        ("sym", {"n": [2, 1]}, "no sensible range"),
        ("sym", {"n": [-1, None]}, "no sensible range"),
        ("sym", {"n": [0.5, None]}, "no sensible range"),
        ("sym", {"n": 3}, "is not [smallest"),
        ("sym", [], "not an object"),
        ("nodes", {}, "not a list"),
        ("out", "%9", "refers to nothing"),
        ("out", [1], "too long or nested"),
        ("out", {"t": "int8"}, "structure holds"),
        ("out", {"dict": []}, "not an object"),
        ("out", {"tuple": {}}, "not a list"),
        ("call", [["x", "<0"], ["x", "<0"]], "doubled"),
        ("call", [["x", "%1"]], "refers to nothing"),
        ("call", [["x"]], "is not [name"),
        ("buf", ["a", "a"], "doubled"),
        ("buf", [["a"]], "doubled"),
        ("buf", ["../x\n"], "tensor's name"),
        ("alias", {"a": "b", "b": "a"}, "another alias"),
        ("alias", {"a": 1}, "tensor's name"),
        ("dtype", "int", "unknown dtype"),
        ("code", "import os", "keys"),
    ],
)
def test_part_is_refused(key: str, value: Any, words: str) -> None:
    assert words in refusal(good() | {key: value})


@pytest.mark.parametrize("data", [None, 1, "x", [], {}, {"in": []}, {1: 2}])
def test_no_graph_at_all(data: Any) -> None:
    refusal(data)


def test_tuple_of_results_is_no_tensor() -> None:
    data = good()
    data["nodes"].append(["topk", ["<0", 1]])
    assert "tuple of results" in refusal(data | {"out": "%1"})
    data["nodes"].append(["item", ["%1", 2]])
    assert "has none such" in refusal(data)


def build(nodes: list[Any], limit: int = 2**31, **tensors: torch.Tensor) -> GraphModule:
    data = good() | {"nodes": nodes, "out": "%1"}
    return GraphModule(Graph.from_json(data), tensors, limit)


BOMBS: dict[str, list[Any]] = {
    "zeros": [["zeros", [[2**20, 2**20]]]],
    "full beyond 64 bits": [["full", [[2**62, 2**62], 1.0]]],
    "arange": [["arange", [10**15]]],
    "linspace": [["linspace", [0.0, 1.0, 2**40]]],
    "eye": [["eye", [2**20]]],
    "expand": [["unsqueeze", ["<0", 0]], ["expand", ["%1", [2**50, -1, -1]]]],
    "repeat": [["repeat", ["<0", [2**20, 2**20]]]],
    "repeat_interleave": [["repeat_interleave.self_int", ["<0", 2**40]]],
    "pad": [["constant_pad_nd", ["<0", [2**40, 2**40]]]],
    "outer product": [["arange", [2**20]], ["outer", ["%1", "%1"]]],
    "broadcast": [["arange", [2**20]], ["unsqueeze", ["%1", 1]], ["add.Tensor", ["%2", "%1"]]],
    "upsample": [["reshape", ["<0", [1, 1, -1]]], ["upsample_nearest1d", ["%1", [2**40]]]],
    "transposed convolution": [
        ["reshape", ["<0", [1, 1, -1]]],
        ["conv_transpose1d", ["%1", "$w", None, [2**40]]],
    ],
    "padded convolution": [["reshape", ["<0", [1, 1, -1]]], ["conv1d", ["%1", "$w", None, [1], [2**40]]]],
    "doubling": [["cat", [["<0", "<0"]]], *[["cat", [["%1", "%1"]]]] * 60],
    "index": [["arange", [2**20]], ["unsqueeze", ["%1", 1]], ["index.Tensor", ["%1", ["%1", "%2"]]]],
    "embedding": [["zeros", [[2**30]], {"dtype": {"t": "int64"}}], ["embedding", ["$e", "%1"]]],
    "sizes multiplied": [
        ["sym_size.int", ["<0", 0]],
        *[["sym.mul", ["%1", "%1"]]] * 100,
        ["zeros", [["%1"]]],
    ],
    "many at once": [
        *[["full", [[2**28], float(value)]] for value in range(20)],
        ["stack", [[f"%{back}" for back in range(1, 21)]]],
    ],
}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_before_it_takes_memory(name: str) -> None:
    net = build(BOMBS[name], w=torch.rand(1, 1, 3), e=torch.rand(2, 64))
    start = time.perf_counter()
    with pytest.raises(FileError) as caught:
        net(torch.rand(2, 4))
    assert time.perf_counter() - start < 5
    assert "\n" not in str(caught.value)


def test_shapes_that_do_not_fit() -> None:
    net = build([["linear", ["<0", "$w"]]], w=torch.rand(3, 5))
    with pytest.raises(FileError, match="node 0"):
        net(torch.rand(2, 4))


def test_missing_tensor() -> None:
    with pytest.raises(FileError, match=r"'fc\.weight' is used but not in the file"):
        GraphModule(Graph.from_json(good()), {})


def test_names_that_clash() -> None:
    for other in ("fc.weight.x", "fc"):
        with pytest.raises(FileError, match="inside of"):
            GraphModule(Graph.from_json(good()), TENSORS | {other: torch.rand(1)})


def test_names_of_methods_are_harmless() -> None:
    nodes = [["add.Tensor", ["$forward", "$state_dict.__class__"]], ["add.Tensor", ["%1", "$_parameters._modules"]]]
    names = ["forward", "state_dict.__class__", "_parameters._modules"]
    net = build(nodes, **{name: torch.ones(1) for name in names})
    assert net(torch.rand(2, 4)).item() == 3
    assert sorted(net.state_dict()) == sorted(names)
    assert copy.deepcopy(net)(torch.rand(2, 4)).item() == 3


def test_name_that_a_module_can_not_have() -> None:
    with pytest.raises(FileError, match="tensor's name"):
        build([["relu", ["$fc.training"]]], **{"fc.training": torch.ones(1)})


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


def traced() -> tuple[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Hardswish(), nn.LSTM(6, 3)).eval()
    graph, constants = trace(model, torch.rand(2, 2, 6))
    return json.dumps(graph.to_json()), model.state_dict() | constants


TEXT, STATE = traced()
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 8),
    st.sampled_from([2**31, 2**62, -(2**63), 10**30]),
    st.floats(),
    st.sampled_from(
        ["%1", "%2", "%3", "%0", "<0", "<1", "$0.weight", "relu", "conv1d", "reshape", "float32", "n", "x"]
    ),
    st.sampled_from([{"t": "int64"}, {"s": "same"}, {"tuple": []}, {}, [], [[]], ["%1"], [1, 2]]),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_graphs_run_or_are_refused(data: st.DataObject) -> None:
    mutant = json.loads(TEXT)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(mutant)))
        holder = mutant
        for key in path:
            holder = holder[key]
        if data.draw(st.booleans()):
            # A copy: a later mutation may change what was drawn, which is the strategy's own.
            holder[last] = copy.deepcopy(data.draw(VALUES))
        else:
            del holder[last]
        if not mutant:
            break
    # Anything else that is raised fails the test.
    with contextlib.suppress(LilliputError):
        GraphModule(Graph.from_json(mutant), STATE, limit=10**6)(torch.rand(3, 2, 6))
