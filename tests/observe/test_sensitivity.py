"""Losses of single layers: with earlier outputs kept exactly as without, and filled in by the weight error."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.errors import DataError
from lilliput.core.layers import weights
from lilliput.observe.divergence import kl, relative_squared
from lilliput.observe.replay import Replay
from lilliput.observe.sensitivity import Trial, interpolated, sensitivity, take, whole


class Tangled(nn.Module):
    """In-place activations, a layer called twice, a tied weight used without its module, a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.twice = nn.Linear(6, 6)
        self.recurrent = nn.LSTM(6, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.last = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.twice(self.embedding(x)).relu_()
        hidden = self.twice(hidden).mul_(2)
        hidden, _ = self.recurrent(hidden)
        hidden, _ = self.attention(hidden, hidden, hidden)
        hidden = functional.relu_(self.last(hidden))
        return functional.linear(hidden, self.embedding.weight)


@pytest.fixture
def tangled() -> Tangled:
    torch.manual_seed(0)
    return Tangled().eval()


def changed(model: nn.Module, values: Mapping[str, Tensor], inputs: Any) -> Any:
    """The slow and certain way."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in values.items():
            other.get_parameter(name).copy_(value)
        return other(inputs)


@pytest.mark.parametrize("most_bytes", [0, 700, 2**30])
def test_a_replay_equals_a_full_run_for_every_weight(tangled: Tangled, most_bytes: int) -> None:
    inputs = torch.randint(0, 7, (3, 5))
    original, before = copy.deepcopy(tangled), copy.deepcopy(tangled.state_dict())
    with Replay(tangled, inputs, most_bytes).recording() as replay:
        for weight in weights(tangled):
            values = {weight.name: weight.parameter.detach() * 0.5 + 0.1}
            output = replay.run(values, [path for path, _ in weight.owners])
            assert torch.equal(output, changed(original, values, inputs)), weight.name
        assert torch.equal(replay.run({}), replay.output)
    assert all(torch.equal(before[name], value) for name, value in tangled.state_dict().items())
    assert not any("forward" in vars(module) for module in tangled.modules())


def test_earlier_layers_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(OrderedDict((f"l{i}", nn.Linear(4, 4)) for i in range(5))).eval()
    with Replay(model, torch.randn(2, 4)).recording() as replay:
        calls = []
        real = functional.linear
        monkeypatch.setattr(functional, "linear", lambda *args: calls.append(1) or real(*args))
        replay.run({"l3.weight": torch.zeros(4, 4)}, ["l3"])
    assert len(calls) == 2


def test_a_model_is_whole_again_after_an_error(tangled: Tangled) -> None:
    inputs = torch.randint(0, 7, (3, 5))
    before = copy.deepcopy(tangled.state_dict())
    with pytest.raises(RuntimeError), Replay(tangled, inputs).recording() as replay:
        replay.run({"last.weight": torch.zeros(2, 2)}, ["last"])
    assert all(torch.equal(before[name], value) for name, value in tangled.state_dict().items())
    assert not any("forward" in vars(module) for module in tangled.modules())


def test_sensitivity_is_the_mean_divergence_over_batches() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = [(torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])) for _ in range(3)]
    values = {"0.weight": model[0].weight.detach().round()}
    seen = []
    found = sensitivity(
        model, [Trial(("0.weight",), lambda: values)], batches, progress=lambda *state: seen.append(state)
    )
    with torch.no_grad():
        expected = sum(kl(model(x), changed(model, values, x)) for x, _ in batches) / 3
    assert found == [pytest.approx(expected, rel=1e-9)]
    assert expected > 1e-4
    assert seen[-1][1:] == (3, 3)
    squared = sensitivity(model, [Trial(("0.weight",), lambda: values)], batches, measure="squared")
    with torch.no_grad():
        assert squared == [
            pytest.approx(sum(relative_squared(model(x), changed(model, values, x)) for x, _ in batches) / 3)
        ]
    other = copy.deepcopy(model)
    other[0].weight.data.round_()
    assert whole(model, other, batches) == pytest.approx(expected, rel=1e-9)


def test_a_model_that_gives_nan_is_refused() -> None:
    model = nn.Linear(2, 2).eval()
    with pytest.raises(DataError, match="batch 0: the uncompressed model's own output"):
        sensitivity(model, [], [torch.full((1, 2), torch.nan)])


def test_interpolation_keeps_what_was_measured_and_is_exact_for_proportional_losses() -> None:
    errors = [1.0, 0.3, 0.1, 0.01, 0.0]
    assert interpolated(errors, {1: 0.6, 3: 0.02}) == pytest.approx([2.0, 0.6, 0.2, 0.02, 0.0])
    # The ratio doubles between 0.01 and 1; half way in the logarithm it is one and a half.
    assert interpolated([1.0, 0.1, 0.01], {0: 2.0, 2: 0.01})[1] == pytest.approx(0.15)
    assert interpolated([0.5, 0.0], {}) == [0.0, 0.0]
    assert min(interpolated(errors, {0: -1e-9, 2: 0.1})[1:]) >= 0


def test_only_the_first_batches_are_taken() -> None:
    source = iter(range(10))
    assert take(source, 3) == [0, 1, 2]
    assert next(source) == 3
    with pytest.raises(DataError, match="the data is empty"):
        take([], 3)
    with pytest.raises(DataError, match="must be an iterable of batches, not int"):
        take(3, 3)
