"""Model -> graph -> JSON -> graph -> module gives what the model gives, at other batches and lengths than traced."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.graph.ir import Graph
from lilliput.graph.run import GraphModule
from lilliput.graph.structure import tensors_in
from lilliput.graph.trace import trace


def reload(model: nn.Module, example: Any) -> GraphModule:
    graph, constants = trace(model, example)
    again = Graph.from_json(json.loads(json.dumps(graph.to_json())))
    assert again == graph
    return GraphModule(again, model.state_dict() | constants)


class Residual(nn.Module):
    """Residual sum, concatenation, squeeze-excitation, depthwise and grouped convolution, interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 8, 1, groups=4)
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.excite = nn.Conv2d(2, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.norm(self.first(x)), inplace=True)
        x = x + functional.silu(self.depthwise(x))
        x = self.grouped(torch.cat([x, x.flip(-1)], 1))
        x = x * torch.sigmoid(self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))))
        return functional.interpolate(self.up(x), scale_factor=0.5, mode="bilinear", align_corners=False)


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 6)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("nid,njd->nij", self.query(x), x) * self.scale + torch.tensor([1.0])
        return torch.matmul(scores.softmax(-1), x).masked_fill(x > 2, 0.0)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.output = nn.Linear(6, 20, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.embedding(ids) + torch.arange(ids.shape[1]).unsqueeze(-1))


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool, kind: type[nn.Module]) -> None:
        super().__init__()
        self.layer = kind(5, 4, 2, batch_first=batch_first, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return self.layer(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x, x, x)


class IntegerBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, self.order]


class InPlace(nn.Module):
    """Writes that need more than a functional twin: a slice is filled, a view's base is changed."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0] = 3.0
        view = y.view(-1)
        y.add_(1)
        return view.view_as(x) + y


class Shapes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, t = x.shape
        y = x.transpose(1, 2).contiguous().view(n * t, c).chunk(2, dim=1)[1]
        return y.reshape(n, t // 1, -1).mean(1).expand(2, n, -1).permute(1, 0, 2).flatten(1)


class GroupLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(nn.GroupNorm(2, 6), nn.Conv1d(6, 6, 3, padding=1), nn.GELU(approximate="tanh"))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.stack(x).transpose(1, 2))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(6 * 9, 5),
    )


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def long(*shape: int) -> Tensor:
    return torch.randint(0, 20, shape)


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, list[Tensor]]] = {
    "cnn": (cnn, torch.rand(1, 1, 8, 8), [torch.rand(5, 1, 8, 8)]),
    "residual": (Residual, torch.rand(1, 3, 8, 8), [torch.rand(3, 3, 8, 8)]),
    "einsum": (Einsum, torch.rand(2, 4, 6), [torch.rand(1, 9, 6)]),
    "tied": (Tied, long(1, 5), [long(3, 2), long(1, 9)]),
    "lstm": (lambda: Recurrent(True, nn.LSTM), torch.rand(1, 7, 5), [torch.rand(3, 4, 5), torch.rand(2, 1, 5)]),
    "lstm, time first": (lambda: Recurrent(False, nn.LSTM), torch.rand(7, 1, 5), [torch.rand(4, 3, 5)]),
    "gru": (lambda: Recurrent(True, nn.GRU), torch.rand(2, 7, 5), [torch.rand(3, 4, 5)]),
    "rnn": (lambda: Recurrent(True, nn.RNN), torch.rand(2, 7, 5), [torch.rand(3, 4, 5)]),
    "attention": (Attention, torch.rand(1, 5, 8), [torch.rand(3, 7, 8)]),
    "encoder": (encoder, torch.rand(1, 5, 8), [torch.rand(3, 7, 8)]),
    "integer buffer": (IntegerBuffer, torch.rand(1, 4), [torch.rand(3, 4)]),
    "in place": (InPlace, torch.rand(2, 3), [torch.rand(4, 3)]),
    "shapes": (Shapes, torch.rand(2, 4, 5), [torch.rand(3, 4, 7)]),
    "group and layer norm": (GroupLayer, torch.rand(1, 6, 5), [torch.rand(3, 6, 9)]),
}


@pytest.mark.parametrize("name", CASES)
def test_same_outputs_at_other_sizes(name: str) -> None:
    build, example, others = CASES[name]
    torch.manual_seed(0)
    model = build().eval()
    net = reload(model, example)
    assert net.state_dict().keys() >= model.state_dict().keys()
    for x in [example, *others]:
        with torch.no_grad():
            expected, got = tensors_in(model(x)), tensors_in(net(x))
        assert len(expected) == len(got) > 0
        for one, two in zip(expected, got):
            torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


def test_tied_weight_is_one_parameter_under_both_names() -> None:
    net = reload(Tied(), long(2, 5))
    assert net.graph.aliases == {"output.weight": "embedding.weight"}
    state = net.state_dict(keep_vars=True)
    assert state["output.weight"] is state["embedding.weight"]
    assert len(list(net.parameters())) == 1


def test_bfloat16() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).bfloat16().eval()
    net = reload(model, torch.rand(1, 4).bfloat16())
    x = torch.rand(3, 4).bfloat16()
    assert net(x).dtype == torch.bfloat16
    assert torch.equal(net(x), model(x))


@dataclass
class Scores:
    logits: Tensor
    loss: Tensor | None = None


class Pair(NamedTuple):
    one: Tensor
    two: Tensor


class Outputs(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        y = x + 1
        return {
            "tuple": lambda: (x, [y, None], 3),
            "dict": lambda: {"y": y, "inner": {"x": x, "flag": True}},
            "dataclass": lambda: Scores(y),
            "named": lambda: Pair(x, y),
            "size": lambda: (y, x.shape[0] * 2),
        }[self.form]()


def test_structured_outputs() -> None:
    x = torch.rand(3, 2)
    nets = {form: reload(Outputs(form), torch.rand(2, 2)) for form in ("tuple", "dict", "dataclass", "named", "size")}
    one, (two, nothing), three = nets["tuple"](x)
    assert torch.equal(one, x)
    assert torch.equal(two, x + 1)
    assert (nothing, three) == (None, 3)
    got = nets["dict"](x)
    assert list(got) == ["y", "inner"]
    assert got["inner"]["flag"] is True
    record = nets["dataclass"](x)
    assert torch.equal(record.logits, x + 1)
    assert torch.equal(record[0], record["logits"])
    assert record.loss is None
    assert torch.equal(nets["named"](x)[1], x + 1)
    assert nets["size"](x)[1] == 6


class Several(nn.Module):
    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor], *, scale: float = 1.0, mask: Tensor | None = None
    ) -> Tensor:
        y = x * scale + state[0] - state[1]
        return y if mask is None else y * mask


def test_nested_inputs_fixed_values_and_keywords() -> None:
    x = torch.rand(2, 3)
    net = reload(Several(), {"x": x, "state": (x, 2 * x), "scale": 3.0, "mask": torch.ones(2, 3)})
    x = torch.rand(4, 3)
    expected = Several()(x, (x, x), scale=3.0, mask=2 * x)
    assert torch.allclose(net(x, (x, x), mask=2 * x), expected)
    assert torch.allclose(net(x=x, state=[x, x], scale=3.0, mask=2 * x), expected)


def test_trained_and_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    net = reload(model, torch.rand(2, 3))
    x, y = torch.rand(16, 3), torch.rand(16, 1)
    before, expected = copy.deepcopy(net), model(x).detach()
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(before(x), expected)
    before.load_state_dict(net.state_dict())
    assert torch.equal(before(x), net(x))
    model.load_state_dict(net.state_dict())
    assert torch.allclose(model(x), net(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_constants_follow_the_dtype(dtype: torch.dtype) -> None:
    net = reload(Recurrent(True, nn.LSTM), torch.rand(2, 3, 5)).to(dtype)
    assert net(torch.rand(2, 4, 5, dtype=dtype))[0].dtype == dtype


def test_parametrized_after_loading() -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    net = reload(model, torch.rand(2, 3))
    nn.utils.parametrize.register_parametrization(net.get_submodule("0"), "weight", Half())
    x = torch.rand(4, 3)
    assert torch.allclose(net(x), model(x) / 2)
