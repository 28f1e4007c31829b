"""Graphs that lie, inside a sealed file: operators, arities, cycles and references that don't exist."""

import copy

import pytest

UNKNOWN = [
    "os.system",
    "aten.relu_",
    "relu_",
    "__import__",
    "",
    "linear.out",
    "rand",
    "empty",
    "as_strided",
    "x" * 9999,
    None,
    3,
]


def changed(pieces, change):
    """A file whose graph a function has changed."""
    whole = pieces()
    table = copy.deepcopy(whole.table)
    change(table["g"])
    return whole.with_table(table).seal()


@pytest.mark.parametrize("operator", UNKNOWN)
def test_unknown_operators(pieces, refused, operator):
    assert "graph" in refused(changed(pieces, lambda graph: graph["nodes"][0].__setitem__(0, operator)))


@pytest.mark.parametrize(
    "ref",
    [
        "%0", "%1", "%-1", "%99", "%", "%1.0", "<1", "<-1", "<99999999999999999999", "$", "$none", "$../x", "", "x",
    ],
)  # fmt: skip
def test_references(pieces, refused, ref):
    assert "graph" in refused(changed(pieces, lambda graph: graph["nodes"][0][1].__setitem__(0, ref)))


@pytest.mark.parametrize("count", [0, 1, 8, 64, 65, 100_000])
def test_arities(pieces, refused, count):
    assert "graph" in refused(changed(pieces, lambda graph: graph["nodes"][0].__setitem__(1, ["<0"] * count)))


@pytest.mark.parametrize(
    "value",
    [
        None, True, 1.5, "%1", [], [[]], {}, {"s": "x"}, {"f": "nan"}, 2**63, -(2**70), {"t": "x"},
    ],
)  # fmt: skip
def test_arguments_of_another_type(pieces, refused, value):
    def change(graph):
        graph["nodes"][0][1][1] = value

    assert "graph" in refused(changed(pieces, change))


@pytest.mark.parametrize("key", ["in", "sym", "nodes", "out"])
@pytest.mark.parametrize("value", ["x", [1], {"a": 1}, [[]], "%99", {"tuple": 1}])
def test_parts_of_another_type(pieces, refused, key, value):
    assert "graph" in refused(changed(pieces, lambda graph: graph.__setitem__(key, value)))


def test_unknown_and_missing_keys(pieces, refused):
    assert "graph" in refused(changed(pieces, lambda graph: graph.update(more=1)))
    assert "graph" in refused(changed(pieces, lambda graph: graph.pop("nodes")))
