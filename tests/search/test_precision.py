"""Plans of activation bits: the mean is kept, the choice is the best of all, the file carries what was planned."""

import functools
import itertools

import pytest
import torch
from torch import Tensor, nn

import lilliput
from lilliput.core.budget import Budget
from lilliput.core.errors import BudgetError
from lilliput.core.recipe import Recipe
from lilliput.file.write import size
from lilliput.search.plan import Options, plan
from lilliput.search.precision import OFFERED, chosen, entries


def inputs_and_classes() -> tuple[Tensor, Tensor]:
    """Pictures with a bright quarter, and which."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(128) % 4
    pictures = torch.randn(128, 1, 8, 8, generator=generator)
    for picture, quarter in zip(pictures, classes):
        down, right = divmod(int(quarter), 2)
        picture[:, 4 * down : 4 * down + 4, 4 * right : 4 * right + 4] += 1
    return pictures, classes


@functools.cache
def small() -> nn.Module:
    """A net with BatchNorm that tells the quarters apart."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 24), nn.Linear(24, 4)
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pictures, classes = inputs_and_classes()
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pictures), classes).backward()
        optimizer.step()
    return model.eval()


def batches():
    pictures, classes = inputs_and_classes()
    return [(pictures[:64], classes[:64]), (pictures[64:], classes[64:])]


def test_losses_fall_with_bits_and_numbers_are_counted():
    found = entries(small(), batches())
    assert [entry.paths for entry in found] == [("0",), ("4",), ("5",)]
    assert [entry.numbers for entry in found] == [64 * 64, 64 * 288, 64 * 24]
    for entry in found:
        assert list(entry.losses) == sorted(entry.losses, reverse=True)
        assert entry.losses[0] > 10 * entry.losses[-1]


@pytest.mark.parametrize("mean", [2, 3.3, 5, 8])
def test_the_choice_is_the_best_of_all(mean):
    found = entries(small(), batches()[:1])
    total = sum(entry.numbers for entry in found)
    best = min(
        sum(entry.losses[at] for entry, at in zip(found, places))
        for places in itertools.product(range(len(OFFERED)), repeat=3)
        if sum(OFFERED[at] * entry.numbers for entry, at in zip(found, places)) <= mean * total
    )
    picks = chosen(found, mean)
    assert sum(loss for _, loss in picks.values()) == pytest.approx(best)
    assert sum(picks[e.weight.name][0] * e.numbers for e in found) <= mean * total


def test_activations_alone_and_better_than_the_same_bits_everywhere(tmp_path):
    model, data = small(), batches()
    recipe = plan(model, Budget(activations=3), data)
    assert recipe.name == "planned for activations of 3 bits"
    assert Recipe.loads(recipe.dumps()) == recipe
    assert all(rule.steps == () and "bits: +" in rule.why for rule in recipe.rules)
    lilliput.compress(model, recipe, data).save(tmp_path / "net.safetensors")
    planned = lilliput.load(tmp_path / "net.safetensors")
    same = Recipe.loads('[[rule]]\nactivations = {method = "quantize/activations/uniform", bits = 3, solver = "mse"}')
    uniform = lilliput.load(lilliput.compress(model, same, data))
    with torch.no_grad():
        wanted = model(data[0][0])
        errors = [float((net(data[0][0]) - wanted).square().sum()) for net in (planned, uniform)]
    assert errors[0] <= errors[1]


def test_weights_too_within_a_size_and_a_drop():
    torch.manual_seed(5)
    model, data = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4)).eval(), [torch.randn(64, 12)]
    with torch.no_grad():
        classes = model(data[0]).argmax(1)

    def evaluate(net):
        with torch.no_grad():
            return float((net(data[0]).argmax(1) == classes).float().mean())

    plain = plan(model, Budget(activations=6), data)
    limit = size(lilliput.compress(model, plain, data)) - 1500
    budget = Budget(size=limit, max_drop=0.2, activations=6)
    recipe = plan(model, budget, data, evaluate, options=Options(trials=1, evaluations=1))
    artifact = lilliput.compress(model, recipe, data)
    assert size(artifact) <= limit
    assert set(artifact.quantizers) == {"0", "2"}
    assert any(rule.steps and rule.activations for rule in recipe.rules)
    assert evaluate(lilliput.load(artifact)) >= 0.8
    assert recipe.name == f"planned for {limit:,} bytes, drop <= 0.2, activations of 6 bits"


def test_what_cannot_be_met_is_one_line():
    model, data = small(), batches()
    with pytest.raises(BudgetError, match="from 2 to 8"):
        Budget(activations=1.5)
    with pytest.raises(BudgetError, match="cut first"):
        Budget(activations=4, macs="50%")
    with pytest.raises(BudgetError, match="needs data"):
        plan(model, Budget(activations=4))
    with pytest.raises(BudgetError, match="no layer's inputs"):
        plan(nn.Sequential(nn.ReLU()), Budget(activations=4), [torch.ones(2, 2)])
    with pytest.raises(BudgetError, match="the metric drops by"):
        plan(model, Budget(activations=2, max_drop=1e-6), data, lambda net: -float(distance(net)))


def distance(net):
    """How far a network's outputs are from the trained one's."""
    with torch.no_grad():
        return (net(batches()[0][0]) - small()(batches()[0][0])).abs().max()
