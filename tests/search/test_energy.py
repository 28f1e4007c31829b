"""Budgets of energy: they hold when the plan is assessed, more energy is no worse, and what can't be met is said."""

import pytest
import torch
from torch import nn

from lilliput.core.budget import Budget
from lilliput.core.errors import BudgetError, DeviceError
from lilliput.core.recipe import Recipe, Rule
from lilliput.factorize.svd import Svd
from lilliput.file.write import size
from lilliput.hardware.assess import assess
from lilliput.hardware.dataflow import analyse
from lilliput.hardware.device import Device
from lilliput.hardware.layer import Layer
from lilliput.quantize.uniform import Uniform
from lilliput.run.load import fill
from lilliput.search.candidates import candidates
from lilliput.search.layers import as_run, code_bits, factors_of, layers_of
from lilliput.search.plan import draft, plan
from lilliput.train.compress import compress

EXAMPLE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
DEVICE = Device.load("eyeriss")


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8)).eval()


@pytest.fixture(scope="module", autouse=True)
def known():
    """The settings of each weight are looked for once."""
    held = {}

    def remembered(weight):
        key = weight.detach().numpy().tobytes()
        if key not in held:
            held[key] = candidates(weight)
        return held[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lilliput.search.space.candidates", remembered)
        yield


def energy_of(model, codes=None):
    layers, _ = layers_of(model, lambda: model(EXAMPLE), DEVICE.word_bits, codes or {})
    return sum(assess(layer, DEVICE).energy.total for layer in layers)


@pytest.fixture(scope="module")
def planned():
    return {share: plan(build(), Budget(energy=share), example=EXAMPLE) for share in ("75%", "2x less")}


def test_what_is_compressed_takes_what_was_asked(planned):
    """Counted anew, from the artifact that `compress` makes; activations are noise, as they were."""
    dense = energy_of(build())
    for share, recipe in planned.items():
        artifact = compress(build(), recipe, example=EXAMPLE)
        spent = energy_of(fill(build(), artifact), code_bits(artifact.weights))
        assert spent <= Budget(energy=share).energies(dense) * 1.03, "zeros of the inputs may differ by a little"
        assert spent > 0.5 * Budget(energy=share).energies(dense), "nothing is given away"


def test_less_energy_costs_more(planned):
    model, losses = build(), []
    for recipe in planned.values():
        small = fill(build(), compress(model, recipe, example=EXAMPLE))
        losses.append(float((small(EXAMPLE) - model(EXAMPLE)).detach().norm()))
    assert losses[0] < losses[1]


def test_with_a_size_both_hold():
    budget = Budget(energy="75%", size="6 kB")
    found = draft(build(), budget, example=EXAMPLE)
    assert size(compress(build(), found.recipe, example=EXAMPLE)) <= 6_000
    assert "75% energy on eyeriss" in found.recipe.name


def test_what_can_t_be_met():
    with pytest.raises(BudgetError, match="the least is"):
        plan(build(), Budget(energy="50x less"), example=EXAMPLE)
    with pytest.raises(BudgetError, match="sizes of what goes into"):
        plan(build(), Budget(energy="50%"))
    with pytest.raises(BudgetError, match="at once"):
        plan(build(), Budget(energy="50%", macs="50%"), example=EXAMPLE)
    with pytest.raises(DeviceError, match="no device"):
        plan(build(), Budget(energy="50%", device="abacus"), example=EXAMPLE)
    right = build()(EXAMPLE)
    asked = Budget(energy="2x less", max_drop=1e-9)
    with pytest.raises(BudgetError, match="loses"):
        plan(build(), asked, [EXAMPLE], lambda model: -float((model(EXAMPLE) - right).detach().norm()))


@pytest.mark.parametrize("bad", ["much", "0", "-1", "3x fewer", "40% less", True, "", "1e999"])
def test_words_that_can_t_be_read(bad):
    with pytest.raises(BudgetError, match="energy"):
        Budget(energy=bad)


def test_words_that_can():
    assert Budget(energy=5e6).energies(1e9) == 5e6
    assert Budget(energy="40%").energies(200.0) == pytest.approx(80)
    assert Budget(energy="0.4x").energies(200.0) == pytest.approx(80)
    assert Budget(energy="2.5x less").energies(200.0) == pytest.approx(80)


def test_factors_are_counted_as_a_chain():
    """A linear layer and convolutions of a low rank: the chain's multiplications, by hand."""
    weight = torch.randn(24, 6, 3, 3)
    conv = Layer(6, 24, (10, 9), (3, 3), (2, 1), (1, 1), batch=2, input_density=0.5, name="conv")
    chain = factors_of(conv, Svd(rank=2).pack(weight))
    assert [each.name for each in chain] == ["conv"] * len(chain)
    assert len(chain) == 2
    assert chain[0].size == conv.size
    assert chain[-1].output_size == conv.output_size
    assert (chain[0].channels, chain[-1].filters) == (6, 24)
    assert chain[0].filters == chain[1].channels == 2
    assert sum(each.macs for each in chain) < conv.macs
    assert [each.input_density for each in chain] == [0.5, 1.0]
    line = Layer(40, 30, batch=3)
    few, many = (factors_of(line, Svd(rank=rank, force=True).pack(torch.randn(30, 40))) for rank in (4, 25))
    assert [each.macs for each in few] == [3 * 4 * 40, 3 * 4 * 30]
    assert many == [line], "as many multiplications as the layer itself, or more"
    assert factors_of(line, torch.randn(30, 40)) == factors_of(line, None) == [line]


def test_factors_with_codes_cost_their_bits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30)).eval()
    recipe = Recipe((Rule(steps=(Svd(rank=4), Uniform(bits=4))),))
    artifact = compress(model, recipe, example=torch.randn(1, 40))
    chain = as_run([Layer(40, 30, name="0")], artifact.weights)
    assert [each.weight_bits for each in chain] == [4, 4]
    uncoded = compress(model, Recipe((Rule(steps=(Svd(rank=4),)),)), example=torch.randn(1, 40))
    assert [each.weight_bits for each in as_run([Layer(40, 30, name="0")], uncoded.weights)] == [16, 16]


def test_a_plan_charges_a_factorized_setting_for_its_factors():
    """Of a plan's settings the factorized ones cost what the chain costs."""
    from lilliput.search.energy import _of_setting

    class Alone:
        def forms(self, item, place):
            return {"weight": Svd(rank=2).pack(torch.randn(30, 40, generator=torch.Generator().manual_seed(0)))}

    line = Layer(40, 30)
    spent = _of_setting(Alone(), None, 0, [(line, analyse(line, DEVICE))], DEVICE)
    chain = [assess(Layer(40, 2), DEVICE), assess(Layer(2, 30), DEVICE)]
    assert spent == pytest.approx(sum(each.energy.total for each in chain))
    assert spent < assess(line, DEVICE).energy.total / 3
