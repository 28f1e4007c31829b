"""What tracing leaves open, leaves out, decomposes and refuses."""

import json
import logging

import pytest
import torch
from torch import Tensor, nn

from lilliput.core.errors import DataError, ModelError
from lilliput.graph.ir import Graph, InputRef, InputSpec, Node, NodeRef, TensorRef
from lilliput.graph.run import GraphModule
from lilliput.graph.trace import trace


def operators_of(graph: Graph) -> list[str]:
    return [node.operator.removeprefix("aten.").removesuffix(".default") for node in graph.nodes]


class Function(nn.Module):
    """A module that computes what it is told."""

    def __init__(self, function, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def test_no_ops_go_and_equal_nodes_are_one() -> None:
    def function(_, x: Tensor) -> Tensor:
        y = nn.functional.dropout(x, training=False).detach().clone().contiguous().to(torch.float32)
        torch.sin(x)
        return torch.exp(y) + torch.exp(x)

    graph, constants = trace(Function(function), torch.rand(2, 3))
    assert operators_of(graph) == ["exp", "add.Tensor"]
    assert constants == {}


def test_integer_arithmetic_of_open_sizes_stays() -> None:
    def function(_, x: Tensor) -> Tensor:
        n, t, c = x.shape
        return x.reshape(n * t // 2, 2 * c) + torch.zeros(n * t // 2, 1)

    graph, _ = trace(Function(function), torch.rand(2, 4, 3), open_sizes={"0": (0,)})
    assert graph.open == "batch"
    assert "sym_size.int" in operators_of(graph)
    net = GraphModule(graph, {})
    x = torch.rand(5, 4, 3)
    assert torch.equal(net(x), x.reshape(10, 6))


def test_what_stays_open() -> None:
    assert trace(nn.Linear(3, 2), torch.rand(1, 3))[0].open == "batch"
    assert trace(nn.Embedding(9, 2), torch.zeros(1, 4, dtype=torch.long))[0].open == "batch and others"
    fixed = Function(lambda _, x: x + torch.arange(12.0).reshape(2, 2, 3))
    graph, _ = trace(fixed, torch.rand(2, 2, 3))
    assert graph.open == "none"
    assert graph.inputs[0].shape == (2, 2, 3)
    # A feature size that a weight fixes is fixed, though dimension 2 of a tensor of rank 3 may be a length.
    assert trace(nn.Linear(3, 2), torch.rand(2, 4, 3))[0].inputs[0].shape == ("n", "s1", 3)
    named = trace(nn.Conv2d(1, 2, 3), torch.rand(1, 1, 8, 8), open_sizes={"input": (0, 2, 3)})[0]
    net = GraphModule(named, nn.Conv2d(1, 2, 3).state_dict())
    assert net(torch.rand(2, 1, 5, 9)).shape == (2, 2, 3, 7)
    with pytest.raises(ModelError, match="no input is called 'y'"):
        trace(nn.Linear(3, 2), torch.rand(1, 3), open_sizes={"y": (0,)})


def test_operators_outside_the_list_are_decomposed() -> None:
    model = Function(lambda _, x: torch.nn.functional.pairwise_distance(x, x * 2) + torch.special.xlog1py(x, x).sum(1))
    graph, _ = trace(model, torch.rand(2, 3))
    x = torch.rand(5, 3)
    torch.testing.assert_close(GraphModule(graph, {})(x), model(x))


def test_operators_that_can_not_be_decomposed_are_named() -> None:
    with pytest.raises(ModelError, match=r"aten\.\w*fft"):
        trace(Function(lambda _, x: torch.fft.rfft(x).abs()), torch.rand(2, 8))


def test_models_that_can_not_be_exported() -> None:
    branch = Function(lambda _, x: x if x.sum() > 0 else -x)
    with pytest.raises(ModelError, match=r"can't be exported: [^\n]+\Z"):
        trace(branch, torch.rand(2, 3))
    noisy = Function(lambda _, x: nn.functional.dropout(x, 0.5, training=True))
    with pytest.raises(ModelError, match="random"):
        trace(noisy, torch.rand(2, 3))
    with pytest.raises(ModelError):
        trace(Function(lambda _, x: x + torch.rand(3)), torch.rand(2, 3))
    counter = Function(lambda self, x: x + self.count.add_(1), count=torch.zeros(1))
    with pytest.raises(ModelError, match="writes to its buffer 'count'"):
        trace(counter, torch.rand(2, 3))
    assert counter.count.item() == 0
    with pytest.raises(ModelError, match="holds no tensor"):
        trace(nn.Linear(3, 2), ())
    with pytest.raises(ModelError, match="has 2 arguments"):
        trace(nn.Linear(3, 2), (torch.rand(1, 3), torch.rand(1, 3)))
    with pytest.raises(ModelError, match="is a object"):
        trace(Function(lambda _, x: object()), torch.rand(2, 3))


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.LSTM(3, 2))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [id(value) for value in model.parameters()]
    trace(model, torch.rand(4, 3))
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [id(value) for value in model.parameters()] == parameters
    assert model[2]._flat_weights[0] is model[2].weight_ih_l0
    assert all(value.requires_grad for value in model.parameters())


def test_constants_have_names_of_their_own() -> None:
    model = Function(lambda self, x: self.part(x) + torch.tensor([1.0, 2.0]), part=nn.Linear(3, 2))
    graph, constants = trace(model, torch.rand(2, 3))
    assert len(constants) == 1
    assert not set(constants) & set(model.state_dict())
    assert set(graph.buffers) == set(constants)


def test_inputs_are_checked() -> None:
    model = Function(lambda _, ids, x: x * ids.unsqueeze(-1))
    graph, _ = trace(model, (torch.zeros(2, 3, dtype=torch.long), torch.rand(2, 3, 4)))
    net = GraphModule(graph, {})
    ids, x = torch.ones(4, 5, dtype=torch.long), torch.rand(4, 5, 4)
    assert torch.equal(net(ids, x), x)
    wrong = {
        "is missing": ((ids,), {}),
        "3 arguments given": ((ids, x, x), {}),
        "given twice, or not among": ((ids, x), {"z": x}),
        "must be torch.int64, it is torch.float32": ((x[..., 0], x), {}),
        "must be torch.float32, it is torch.int64": ((ids, ids), {}),
        "must be a tensor, not list": ((ids, [1.0]), {}),
        "it has 4x5": ((ids, x[..., 0]), {}),
        "it has 3x5x4": ((ids, x[:3]), {}),
        "it is 0, it must be at least 1": ((ids[:0], x[:0]), {}),
    }
    for words, (args, kwargs) in wrong.items():
        with pytest.raises(DataError) as caught:
            net(*args, **kwargs)
        assert words.replace("it is 0", "is 0") in str(caught.value)


def test_golden_json() -> None:
    """The form of the file: what is written here must be readable for ever."""
    nodes = (
        Node("aten.conv2d.default", (InputRef(0), TensorRef("c.weight"), None, (2, 2))),
        Node("aten.gelu.default", (NodeRef(0),), {"approximate": "tanh"}),
        Node("aten.sym_size.int", (InputRef(0), 0)),
        Node("sym.mul", (NodeRef(2), 2)),
        Node("aten.reshape.default", (NodeRef(1), (NodeRef(3), -1))),
        Node("aten.clamp.default", (NodeRef(4), float("-inf"), 0.5)),
        Node("aten.to.dtype", (NodeRef(5), torch.float64)),
    )
    specs = (InputSpec("x", torch.float32, ("n", 3, 8, 8)),)
    graph = Graph(specs, {"n": (1, None)}, nodes, NodeRef(6), (("x", InputRef(0)),), (), {}, torch.float32)
    text = (
        '{"in":[["x","float32",["n",3,8,8]]],"sym":{"n":[1,null]},"nodes":[["conv2d",["<0","$c.weight",null,[2,2]]],'
        '["gelu",["%1"],{"approximate":{"s":"tanh"}}],["sym_size.int",["<0",0]],["sym.mul",["%1",2]],'
        '["reshape",["%3",["%1",-1]]],["clamp",["%1",{"f":"-inf"},0.5]],["to.dtype",["%1",{"t":"float64"}]]],'
        '"out":"%1","call":[["x","<0"]],"dtype":"float32"}'
    )
    assert json.dumps(graph.to_json(), separators=(",", ":")) == text
    assert Graph.from_json(json.loads(text)) == graph


def test_lengths_that_export_fixes_are_open_only_where_nothing_depends_on_them() -> None:
    layer = nn.LSTM(3, 2, batch_first=True)
    free, _ = trace(layer, torch.rand(2, 5, 3))
    assert free.inputs[0].shape == ("n", "s1", 3)
    # The division holds the traced length as a number.
    mean = Function(lambda self, x: self.layer(x)[0].sum(1) / x.shape[1], layer=layer)
    bound, _ = trace(mean, torch.rand(2, 5, 3))
    assert bound.inputs[0].shape == ("n", 5, 3)


def test_a_failed_trace_logs_nothing():
    """The error is one line; torch's own account of it isn't written anywhere, and its log is left as it was."""
    log, told = logging.getLogger("torch._subclasses.fake_tensor"), []
    listener = logging.Handler()
    listener.emit = told.append
    log.addHandler(listener)
    try:
        with pytest.raises(ModelError, match=r"\A[^\n]+\Z"):
            trace(nn.Linear(3, 2), torch.rand(4, 7))
    finally:
        log.removeHandler(listener)
    assert not told
    assert not log.disabled
