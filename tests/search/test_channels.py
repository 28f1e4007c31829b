"""Plans of channels: the budget holds as counted, the loss is no larger than that of one share for all."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput
from lilliput import Budget, Recipe
from lilliput.core.errors import BudgetError
from lilliput.file.write import dumps
from lilliput.graph.macs import macs, uses
from lilliput.graph.trace import trace
from lilliput.observe.sensitivity import whole
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.taylor import Taylor
from lilliput.quantize.float16 import Float16
from lilliput.quantize.uniform import Uniform
from lilliput.search.channels import Channels, share_of
from lilliput.search.narrow import chosen, uniform
from lilliput.search.plan import Options, title
from lilliput.share.kmeans import KMeans
from lilliput.train.cut import cut_by

FEW = Options(batches=2, trials=3)


def pictures() -> tuple[Tensor, Tensor]:
    """Pictures with a bright quarter, and which."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(128) % 4
    images = torch.randn(128, 1, 8, 8, generator=generator)
    for image, quarter in zip(images, classes):
        down, right = divmod(int(quarter), 2)
        image[:, 4 * down : 4 * down + 4, 4 * right : 4 * right + 4] += 1
    return images, classes


@functools.cache
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 24), nn.ReLU(), nn.Linear(24, 4)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    images, classes = pictures()
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), classes).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def data() -> list[tuple[Tensor, Tensor]]:
    images, classes = pictures()
    return list(zip(images.split(32), classes.split(32)))


@pytest.fixture
def few_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for settings of weights is tested beside; here three will do."""
    settings = (Uniform(bits=4), Uniform(bits=8), Float16())
    monkeypatch.setattr("lilliput.search.candidates.choices", lambda: settings)


def accuracy(model: nn.Module) -> float:
    images, classes = pictures()
    with torch.no_grad():
        return float((model(images).argmax(1) == classes).float().mean())


def counts(model: nn.Module) -> dict[str, int]:
    return {"macs": macs(model, torch.randn(1, 1, 8, 8)), "parameters": sum(p.numel() for p in model.parameters())}


WHOLE = {"macs": 8 * 9 * 64 + 16 * 8 * 9 * 16 + 256 * 24 + 24 * 4, "parameters": 8 * 9 + 16 + 16 * 73 + 257 * 24 + 100}


def test_macs_are_those_of_the_formula() -> None:
    model, x = trained(), torch.randn(2, 1, 8, 8)
    assert counts(model) == WHOLE
    assert macs(model, x) == 2 * WHOLE["macs"]
    graph, constants = trace(model, x)
    state = dict(model.named_parameters()) | dict(model.named_buffers()) | constants
    assert {name: count * state[name].numel() for name, count in uses(graph, state, x).items()} == {
        "0.weight": 2 * 8 * 9 * 64,
        "4.weight": 2 * 16 * 8 * 9 * 16,
        "7.weight": 2 * 256 * 24,
        "9.weight": 2 * 24 * 4,
    }


@pytest.mark.parametrize(
    ("module", "example", "expected"),
    [
        (nn.Conv2d(4, 6, 3, groups=2, stride=2), (1, 4, 9, 9), 6 * 2 * 9 * 16),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 4 * 6 * 4 * 25),
        (nn.LSTM(3, 5, batch_first=True), (2, 7, 3), 2 * 7 * 4 * 5 * (3 + 5)),
        (nn.Linear(3, 5), (2, 7, 3), 2 * 7 * 15),
    ],
)
def test_macs_of_other_layers(module: nn.Module, example: tuple[int, ...], expected: int) -> None:
    x = torch.randn(example)
    assert macs(module, x) == expected
    if not isinstance(module, nn.LSTM):
        graph, constants = trace(module.eval(), x)
        state = dict(module.named_parameters()) | constants
        assert uses(graph, state, x)["weight"] * state["weight"].numel() == expected


def test_macs_of_attention_hold_the_products_of_queries_and_keys() -> None:
    class Attend(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert macs(Attend(), torch.randn(1, 2, 5, 3)) == 2 * (2 * 5 * 5 * 3)


@pytest.mark.parametrize("given", [{"macs": "50%"}, {"macs": 9000}, {"parameters": "3x fewer"}])
def test_the_budget_holds_and_is_used(given: dict[str, Any], data: list[tuple[Tensor, Tensor]]) -> None:
    budget = Budget(**given)
    recipe = lilliput.plan(trained(), budget, data, options=FEW)
    assert not recipe.rules
    assert recipe.cuts
    assert Recipe.loads(recipe.dumps()) == recipe
    smaller, _ = cut_by(trained(), recipe, data[0][0], data)
    for what in budget.counts:
        limit = budget.count(what, WHOLE[what])
        assert 0.8 * limit < counts(smaller)[what] <= limit
    artifact = lilliput.compress(trained(), recipe, data)
    assert sum(w.numel() for n, w in artifact.state_dict().items() if "running" not in n and "num" not in n) <= sum(
        p.numel() for p in smaller.parameters()
    )
    torch.testing.assert_close(lilliput.load(artifact)(data[0][0]), smaller(data[0][0]), rtol=1e-3, atol=1e-4)


def test_both_budgets_hold_at_once(data: list[tuple[Tensor, Tensor]]) -> None:
    recipe = lilliput.plan(trained(), Budget(macs="60%", parameters="30%"), data, options=FEW)
    found = counts(cut_by(trained(), recipe, data[0][0])[0])
    assert found["macs"] <= 0.6 * WHOLE["macs"]
    assert found["parameters"] <= 0.3 * WHOLE["parameters"]


@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_no_worse_than_one_share_for_all(part: float, data: list[tuple[Tensor, Tensor]]) -> None:
    model, x = trained(), data[0][0]
    channels = Channels.of(model, x, data, None, 1)
    channels.batches, channels.trials = data[:2], 4
    limit = [channels.limit("macs", int(part * WHOLE["macs"]))]
    best, alike = chosen(channels, limit, None), uniform(channels, limit)
    assert best is not None
    assert alike is not None
    assert channels.whole(best) <= channels.whole(alike)
    # What was measured with zeros is what the cut model does.
    smaller, _ = cut_by(model, Recipe(cuts=channels.rules(best, channels.errors())), x)
    assert whole(model, smaller, data[:2]) == pytest.approx(channels.whole(best), rel=1e-3, abs=1e-6)


def test_the_cost_of_a_choice_is_that_of_the_cut_model(data: list[tuple[Tensor, Tensor]]) -> None:
    channels = Channels.of(trained(), data[0][0], data, None, 1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        place = tuple(int(torch.randint(len(i.removals), (1,), generator=generator)) for i in channels.items)
        smaller, _ = cut_by(trained(), Recipe(cuts=channels.rules(place, channels.errors())), data[0][0])
        for what in ("macs", "parameters"):
            assert channels.limit(what, 1).cost(channels.removed(place)) == pytest.approx(counts(smaller)[what])


def test_a_layer_that_matters_keeps_its_channels(data: list[tuple[Tensor, Tensor]]) -> None:
    """Of two equal branches one is scaled down to nothing: that one is cut."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 32), nn.Linear(64, 32)
            self.c, self.d = nn.Linear(32, 4), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.c(self.a(x).relu()) + 1e-6 * self.d(self.b(x).relu())

    torch.manual_seed(0)
    recipe = lilliput.plan(Two().eval(), Budget(macs="55%"), data, options=FEW)
    share = {cut.match: cut.share for cut in recipe.cuts}
    assert share["a.weight"] < 0.1
    assert share["b.weight"] > 0.85


def test_widths_are_multiples_and_a_criterion_scores_them(data: list[tuple[Tensor, Tensor]]) -> None:
    options = Options(batches=2, trials=3, criterion=Taylor(), multiple=4)
    recipe = lilliput.plan(trained(), Budget(macs="40%"), data, options=options)
    assert {cut.criterion for cut in recipe.cuts} == {Taylor()}
    smaller, _ = cut_by(trained(), recipe, data[0][0], data)
    assert counts(smaller)["macs"] <= 0.4 * WHOLE["macs"]
    assert all(smaller[place].weight.shape[0] % 4 == 0 for place in (0, 4, 7))


def test_without_data_the_scores_decide() -> None:
    recipe = lilliput.plan(trained(), Budget(macs="50%"), example=torch.randn(1, 1, 8, 8))
    assert counts(cut_by(trained(), recipe, torch.randn(1, 1, 8, 8))[0])["macs"] <= 0.5 * WHOLE["macs"]


@pytest.mark.usefixtures("few_settings")
def test_a_size_besides_is_met_by_the_smaller_network(data: list[tuple[Tensor, Tensor]]) -> None:
    budget = Budget(macs="60%", size=4_500)
    recipe = lilliput.plan(trained(), budget, data, options=FEW)
    assert recipe.cuts
    assert recipe.rules
    artifact = lilliput.compress(trained(), recipe, data)
    assert len(dumps(artifact)) <= 4_500
    assert macs(lilliput.load(artifact), data[0][0][:1]) <= 0.6 * WHOLE["macs"]


def test_size_budgets_mix_sparsity_with_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight with few large values is pruned, then quantized, another only quantized: as measured on the outputs."""
    offered = (Magnitude(sparsity=0.9), Uniform(bits=4), Uniform(bits=8), KMeans(bits=3), Float16())
    monkeypatch.setattr("lilliput.search.candidates.choices", lambda: offered)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 48, bias=False), nn.ReLU(), nn.Linear(48, 48, bias=False)).eval()
    with torch.no_grad():
        model[0].weight[torch.rand(48, 48) < 0.9] *= 0.02
    inputs = [torch.randn(16, 48) for _ in range(2)]
    recipe = lilliput.plan(model, Budget(size=2_600), inputs, options=FEW)
    steps = {rule.match: [type(step) for step in rule.steps] for rule in recipe.rules}
    assert steps["0.weight"][:2] in ([Magnitude, KMeans], [Magnitude, Uniform])
    assert Magnitude not in steps["2.weight"]
    artifact = lilliput.compress(model, recipe, inputs)
    assert len(dumps(artifact)) <= 2_600
    assert int((artifact.weight("0.weight") == 0).sum()) >= round(0.9 * 48 * 48)


def test_a_drop_is_checked_and_the_metric_is_called_on_copies(data: list[tuple[Tensor, Tensor]]) -> None:
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = lilliput.plan(model, Budget(macs="70%", max_drop=0.2), data, accuracy, options=FEW)
    smaller, _ = cut_by(model, recipe, data[0][0])
    assert accuracy(model) - accuracy(smaller) <= 0.2
    with pytest.raises(BudgetError, match="loses at most 0 without training: the best loses"):
        lilliput.plan(model, Budget(macs="8%", max_drop=0), data, accuracy, options=FEW)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_reached_names_what_can(data: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(BudgetError) as raised:
        lilliput.plan(trained(), Budget(macs=50), data, options=FEW)
    least = 9 * 64 + 9 * 16 + 16 + 4
    assert f"leaves 50 MACs: with one channel left wherever some can go there are still {least:,} MACs" in str(
        raised.value
    )
    with pytest.raises(BudgetError, match="give data or example"):
        lilliput.plan(trained(), Budget(macs="50%"))
    with pytest.raises(BudgetError, match="can't be checked without evaluate"):
        lilliput.plan(trained(), Budget(macs="50%", max_drop=0.1), data)
    with pytest.raises(BudgetError, match="there are still"):
        lilliput.plan(nn.Linear(4, 2), Budget(macs="50%"), [torch.randn(2, 4)])


def test_progress_is_told(data: list[tuple[Tensor, Tensor]]) -> None:
    told: list[tuple[str, int, int]] = []
    lilliput.plan(trained(), Budget(macs="50%"), data, options=FEW, progress=lambda *p: told.append(p))
    assert told


@pytest.mark.usefixtures("few_settings")
def test_a_plan_of_a_network_that_was_cut(data: list[tuple[Tensor, Tensor]]) -> None:
    once, _ = lilliput.cut(trained(), 0.25, data[0][0])
    recipe = lilliput.plan(once, Budget(size=4_500), data, options=FEW)
    assert len(dumps(lilliput.compress(once, recipe, data))) <= 4_500


@pytest.mark.parametrize("total", [2, 3, 7, 16, 24, 512, 1000])
def test_shares_say_just_how_many_channels_go(total: int) -> None:
    assert all(int(share_of(gone, total) * total) == gone for gone in range(total))
    assert all(0 <= share_of(gone, total) < 1 for gone in range(total))


def test_titles() -> None:
    assert title(Budget(macs="50%", size="1 MB")) == "planned for 50% MACs, 1 MB"
