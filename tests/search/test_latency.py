"""Plans for a latency: what is measured afterwards holds, and layers keep floats where there is time."""

import functools

import pytest
import torch
from torch import nn

import lilliput
from lilliput import Budget, Recipe, compress
from lilliput.core.errors import BudgetError
from lilliput.run import layers as run_layers
from lilliput.run.layers import Seconds, layer_seconds
from lilliput.search import latency
from lilliput.search.latency import Latency
from lilliput.search.plan import Options

FEW = Options(batches=1, trials=2)


@functools.cache
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(32, 10)),
    )
    model(torch.randn(32, 3, 16, 16))
    return model.eval()


def data():
    torch.manual_seed(1)
    return [torch.randn(8, 3, 16, 16)]


class Machine:
    """A machine whose latency is counted: each number of a weight takes a nanosecond, half a one in 8 bits."""

    def __init__(self, rest=0.0):
        self.rest = rest

    def seconds(self, artifact):
        total = self.rest
        for name in artifact.weights:
            size = artifact.weight(name).numel()
            total += size * 1e-9 * (0.5 if name.rpartition(".")[0] in artifact.quantizers else 1.0)
        return total

    def layers(self, artifact, way):
        return {
            name: Seconds(artifact.weight(name).numel() * 0.5e-9, artifact.weight(name).numel() * 1e-9)
            for name in artifact.weights
            if name.endswith("weight")
        }


def work(monkeypatch, machine=None, evaluate=None):
    made = Latency(network(), data(), data()[0], evaluate, FEW)
    if machine is not None:
        whole = machine.seconds(made.whole)
        net = nn.Identity()
        net.chosen = type("Chosen", (), {"way": "torch"})()
        seen = []
        monkeypatch.setattr(latency, "load", lambda artifact, engine: seen.append(artifact) or net)
        monkeypatch.setattr(latency, "layer_seconds", machine.layers)
        monkeypatch.setattr(
            latency,
            "race",
            lambda calls, seconds: {"whole": whole, "net": machine.seconds(seen[-1]) if seen else 0.0},
        )
    return made


def test_slow_budgets_need_nothing(monkeypatch):
    made = work(monkeypatch, Machine())
    assert made.plan(Budget(latency="1x"), "plan").recipe == Recipe(name="plan")


@pytest.mark.parametrize("part", [0.55, 0.7, 0.9])
def test_layers_keep_floats_as_far_as_there_is_time(monkeypatch, part):
    machine = Machine()
    made = work(monkeypatch, machine)
    found = made.plan(Budget(latency=f"{part}x"), "plan")
    assert found.part <= part
    assert not found.recipe.cuts
    kept = [rule.match for rule in found.recipe.rules if not rule.steps]
    coded = made.timed(Recipe(found.recipe.rules[-1:]))
    assert found.loss <= coded.loss
    # No choice of layers within the time has a smaller sum of losses.
    names = [name for name in coded.artifact.weights if name.rpartition(".")[0] in coded.artifact.quantizers]
    names = [name for name in names if name.endswith("weight")]
    losses = dict(zip(names, made.losses(coded.artifact, names)))
    sizes = {name: coded.artifact.weight(name).numel() * 0.5e-9 for name in names}
    room = (part * 0.97 - coded.part) * machine.seconds(made.whole)
    best = 0.0
    for mask in range(1 << len(names)):
        some = [name for place, name in enumerate(names) if mask >> place & 1]
        if sum(sizes[name] for name in some) <= room:
            best = max(best, sum(losses[name] for name in some))
    if found is not coded and kept:
        assert sum(losses[name] for name in kept) == pytest.approx(best)


def test_channels_are_cut_where_bits_are_not_enough(monkeypatch):
    machine = Machine()
    found = work(monkeypatch, machine).plan(Budget(latency="3x faster"), "plan")
    assert found.part <= 1 / 3
    assert found.part > 0.25
    assert found.recipe.cuts
    assert found.recipe.rules[0].activations is not None
    assert Recipe.loads(found.recipe.dumps()) == found.recipe


def test_a_network_that_nothing_passes_any_more_is_another_try(monkeypatch):
    """Cut to few channels that are dead on the data, a layer gets zeros alone, and its quantizer refuses."""
    made, refused = work(monkeypatch, Machine()), []
    real = made.timed

    def timed(recipe):
        if recipe.cuts and len(refused) < 2:
            refused.append(recipe)
            # What compress says of it.
            dead = compress(dead_network(), Recipe.preset("int8-activations"), data())
            raise AssertionError(f"{dead} was compressed")
        return real(recipe)

    monkeypatch.setattr(made, "timed", timed)
    found = made.plan(Budget(latency="2.6x faster"), "plan")
    assert len(refused) == 2
    assert found.part <= 1 / 2.6


def dead_network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    return model


def test_what_cannot_be_reached_names_the_nearest(monkeypatch):
    made = work(monkeypatch, Machine(rest=1e-4))
    with pytest.raises(BudgetError, match=r"no network of 0\.10 times the latency was found; the fastest takes 0\.8"):
        made.plan(Budget(latency="0.1x"), "plan")


def test_other_wishes_are_checked(monkeypatch):
    made = work(monkeypatch, Machine(), evaluate=lambda model: -float(model(data()[0]).square().sum() * 1e3))
    with pytest.raises(BudgetError, match="loses"):
        made.plan(Budget(latency="0.3x", max_drop=0.0), "plan")
    with pytest.raises(BudgetError, match=r"takes .* bytes, more than 1,000"):
        made.plan(Budget(latency="0.55x", size=1000), "plan")


def test_bad_budgets():
    for text in ("soon", "0x", "5", "2 faster", "-1 ms", "5 parsecs"):
        with pytest.raises(BudgetError, match="can't be read"):
            Budget(latency=text)
    with pytest.raises(BudgetError, match="give data"):
        lilliput.plan(network(), Budget(latency="0.5x"))
    with pytest.raises(BudgetError, match="two ways"):
        lilliput.plan(network(), Budget(latency="0.5x", macs="50%"), data())
    with pytest.raises(BudgetError, match="evaluate"):
        lilliput.plan(network(), Budget(latency="0.5x", max_drop=0.1), data())


def test_layers_are_measured_in_the_engine_that_runs_them():
    recipe = Recipe.preset("int8-activations")
    artifact = lilliput.compress(network(), recipe, data())
    found = layer_seconds(artifact, "ONNX Runtime")
    assert set(found) == {"0.weight", "3.weight", "5.weight", "9.weight"}
    assert all(each.packed > 0 and each.floats > 0 for each in found.values())
    # The largest layer takes longest, by far.
    assert max(found, key=lambda name: found[name].floats) == "5.weight" or found["3.weight"].floats > 0
    assert run_layers.ONNX == "ONNX Runtime"


def test_on_this_machine():
    recipe = lilliput.plan(network(), Budget(latency="20x"), data(), options=FEW)
    assert recipe.name == "planned for a latency of 20x"
