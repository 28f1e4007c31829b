"""Recordings: what is written in place, looked at, or held; hollow results; copies of modules."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import lilliput
from lilliput.core.errors import ModelError
from lilliput.graph import record as record_module
from lilliput.graph.duplicate import copied
from lilliput.graph.record import Recording, record
from lilliput.graph.verify import Trial, runnable


class InPlace(nn.Module):
    """Writes through views, over views, and over all that others see."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        part = x[:, :2]
        part += 1.0
        x = self.b(x).flatten(2)
        same = x.view_as(x)
        same.relu_()
        x = self.c(x.view(len(x), -1, 4, 4))
        x.mul_(2.0).add_(x.mean((2, 3), keepdim=True))
        y = torch.empty_like(x)
        y.copy_(x)
        return self.d(y.clamp_(0.0, 9.0))


class Looking(nn.Module):
    """Its code depends on its values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        for _ in range(int(x.abs().max() * 0.0) + 2):
            y = F.relu(self.b(y))
        return self.c(y * float(x.sum() < 1e9))


def expected(model: nn.Module, cuts: lilliput.graph.cut.Cuts, x: Tensor) -> Tensor:
    model = copy.deepcopy(model)
    for cut in cuts.cuts:
        gone = torch.tensor([index for index in range(cut.size) if index not in cut.kept])
        model.get_parameter(cut.parameter).data.index_fill_(cut.axis, gone, 0.0)
    return model(x)


def test_writes_in_place_are_followed_and_what_can_not_be_is_kept() -> None:
    torch.manual_seed(0)
    model, x = InPlace().eval(), torch.rand(2, 3, 4, 4)
    smaller, cuts = lilliput.cut(model, 0.5, x)
    torch.testing.assert_close(smaller(x), expected(model, cuts, x))
    assert (smaller.a.out_channels, smaller.b.out_channels, smaller.c.out_channels) == (6, 4, 4)
    assert any("a.weight: kept whole because a write in place mixes them" in line for line in cuts.lines)


def test_code_that_looks_at_values_is_run_in_earnest() -> None:
    torch.manual_seed(0)
    model, x = Looking().eval(), torch.rand(2, 4)
    with pytest.raises(ModelError):
        lilliput.graph.trace.trace(model, x)
    smaller, cuts = lilliput.cut(model, 0.5, x)
    assert smaller.b.weight.shape == (3, 3)
    torch.testing.assert_close(smaller(x), expected(model, cuts, x))


def test_what_the_model_holds_is_not_written_to() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1.0)
            return self.b(self.a(x))

    model, x = Counting().eval(), torch.rand(2, 4)
    assert record(model, x, runnable(model)) is None
    with pytest.raises(ModelError, match="writes to its buffer 'seen'"):
        lilliput.cut(model, 0.5, x)
    assert float(model.seen) == 0.0

    class Rescaling(Counting):
        def forward(self, x: Tensor) -> Tensor:
            self.a.weight.view(-1).mul_(2.0)
            return self.b(self.a(x))

    model = Rescaling().eval()
    before = model.a.weight.detach().clone()
    assert record(model, x, runnable(model)) is None
    assert torch.equal(model.a.weight, before)


def test_random_numbers_are_left_to_an_export_to_refuse() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand_like(x[:, :1])

    model = Noisy(4, 3).eval()
    assert record(model, torch.rand(2, 4), runnable(model)) is None


def both(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Recording, Recording]:
    found = record(model, x, runnable(model))
    assert found is not None
    with monkeypatch.context() as patch:
        patch.setattr(record_module, "hollow", lambda *_: None)
        computed = record(model, x, runnable(model))
    assert computed is not None
    return found, computed


def test_hollow_results_have_the_shapes_of_computed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        nn.Conv2d(3, 16, 7, stride=2, padding=3),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 16, 3, padding="same", dilation=2, groups=4),
        nn.GroupNorm(4, 16),
        nn.Hardswish(),
        nn.ConvTranspose2d(16, 12, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(12, 8, 1),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(2),
        nn.Conv1d(8, 6, 3, padding=1),
        nn.LayerNorm(9),
        nn.Linear(9, 5),
        nn.Softmax(-1),
    ]
    one, two = both(nn.Sequential(*layers).eval(), torch.rand(2, 3, 65, 63), monkeypatch)
    assert one.graph == two.graph
    assert one.results == two.results


class Several(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, x * x.mean(1, keepdim=True), x.mean((0, 2), True) + x], dim=-2)
        y = y.maximum(y.sum()).sub_(1.0) @ y.transpose(1, 2)
        return torch.cat([y.mean([1]), y.mean()[None, None].expand(y.shape[0], 1)], 1)


def test_hollow_sums_products_and_means(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = both(Several(), torch.rand(2, 3, 4), monkeypatch)
    assert one.results == two.results
    assert one.graph == two.graph


def test_an_example_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ModelError):
        lilliput.cut(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), 0.5, torch.rand(1, 4, 8, 8))
    with pytest.raises(ModelError):
        lilliput.cut(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), 0.5, torch.rand(1, 4))


def test_copies_are_those_of_deepcopy() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.rnn = nn.Linear(3, 3), nn.LSTM(3, 4)
            self.again = self.a
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.config = {"sizes": [1, 2], "of": self.a}
            self.parts = [self.b]
            self.register_buffer("mean", torch.rand(3), persistent=False)
            nn.utils.parametrizations.weight_norm(self.b, "bias")

    model = Odd()
    for twin in (copied(model, {}), copy.deepcopy(model)):
        assert twin.again is twin.a is twin.config["of"] is not model.a
        assert twin.parts[0] is twin.b
        assert twin.b.weight is twin.a.weight is not model.a.weight
        assert twin.config["sizes"] == [1, 2]
        assert twin.config["sizes"] is not model.config["sizes"]
        assert twin.rnn._flat_weights[0] is twin.rnn.weight_ih_l0
        assert list(twin.state_dict()) == list(model.state_dict())
        assert all(torch.equal(one, two) for one, two in zip(twin.state_dict().values(), model.state_dict().values()))
        assert twin.mean is not model.mean
        assert "mean" in twin._non_persistent_buffers_set
    model.a.register_forward_hook(lambda *_: None)
    assert len(copied(model, {}).a._forward_hooks) == 1


def test_a_trial_leaves_no_trace() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(4, 6), nn.Linear(6, 2), None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.a(x)
            return self.b(self.last)

    model, x = Caching().eval(), torch.rand(2, 4)
    smaller, cuts = lilliput.cut(model, 0.5, x)
    assert model.last is smaller.last is None
    trial = Trial(model, x)
    trial.enliven()
    before = trial.run(lilliput.graph.cut.Cuts())[0]
    assert trial.run(cuts)[0].shape == before.shape
    assert trial.model.last is None
    torch.testing.assert_close(trial.run(lilliput.graph.cut.Cuts())[0], before)
    assert trial.model.a.out_features == 6


def test_memory_that_is_let_go() -> None:
    class Frugal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            one, two = (part.contiguous() for part in x.chunk(2, 1))
            y = torch.cat([one + self.b(two), two], 1)
            x.data.set_()
            return self.c(y)

    torch.manual_seed(0)
    model, x = Frugal().eval(), torch.rand(1, 3, 4, 4)
    smaller, cuts = lilliput.cut(model, 0.5, x)
    assert (smaller.a.out_channels, smaller.b.out_channels, smaller.c.in_channels) == (4, 2, 4)
    torch.testing.assert_close(smaller(x), expected(model, cuts, x))
