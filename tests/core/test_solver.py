"""How a recipe spells solvers, and what quantizers make of them."""

import pytest
import torch

import lilliput
from lilliput.core.errors import MethodError, RecipeError
from lilliput.core.recipe import Recipe, Rule
from lilliput.core.solver import solvers_of
from lilliput.quantize.solvers.gptq import GPTQ
from lilliput.quantize.solvers.mse import MSE
from lilliput.quantize.uniform import Uniform


def test_names_settings_and_pairs():
    assert solvers_of("").range is None
    assert solvers_of("mse") == solvers_of("mse:40:2.0")
    assert solvers_of("mse:power=2.4").range == MSE(power=2.4)
    found = solvers_of("mse:20 + gptq:0.05:order=false")
    assert (found.range, found.rounding) == (MSE(steps=20), GPTQ(damping=0.05, order=False))
    assert solvers_of("gptq+mse").range == MSE()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mze", "no method 'quantize/solvers/mze'; there is .*mse"),
        ("mse+kl", "two solvers for the range; join one that finds the range and one that rounds"),
        ("gptq+adaround", "two solvers for the rounding"),
        ("mse:ten", "solver 'mse:ten': steps: Expected `int`, got `str`"),
        ("mse:stepz=3", "quantize/solvers/mse takes steps, power"),
        ("mse:3:2:1", "quantize/solvers/mse takes steps, power"),
        ("mse:3:steps=4", "quantize/solvers/mse takes steps, power"),
        ("minmax:3", "quantize/solvers/minmax takes no settings"),
        ("percentile:20", "percent = 20.0 is outside 50.0 .. 100.0"),
        ("mse+", "no method 'quantize/solvers/'"),
    ],
)
def test_what_makes_no_sense(text, message):
    with pytest.raises(MethodError, match=message) as raised:
        Uniform(solver=text)
    assert "\n" not in str(raised.value)
    with pytest.raises(RecipeError, match=r"rule\[0\].steps\[0\]"):
        Recipe.loads(f"[[rule]]\nsteps = [{{method = 'quantize/uniform', solver = '{text}'}}]")


def test_needs_depend_on_the_solver():
    assert Uniform(solver="mse").needs == Uniform.needs == frozenset()
    assert Uniform(solver="mse+gptq").needs == {"gram"}


def test_a_recipe_with_solvers_reads_as_it_was_written():
    recipe = Recipe((Rule(steps=(Uniform(bits=3, solver="mse:power=2.4+gptq"),)),))
    assert Recipe.loads(recipe.dumps()) == recipe


def test_one_bit_has_its_own_scale():
    with pytest.raises(MethodError, match="the one scale of 1 bit is"):
        Uniform(bits=1, solver="mse")
    assert Uniform(bits=1, symmetric=False, solver="mse").grid.highest == 1


def test_ranges_reach_the_file():
    model = torch.nn.Linear(20, 10)
    weights = {}
    for solver in ("minmax", "mse"):
        recipe = Recipe((Rule(steps=(Uniform(bits=2, solver=solver),)),))
        weights[solver] = lilliput.unpack(lilliput.compress(model, recipe).weights["weight"])
    assert not torch.equal(weights["mse"], weights["minmax"])
