"""Recipes: what they say, how they are written and read, and how wrong ones are met."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.core.cut import CutRule
from lilliput.core.errors import RecipeError
from lilliput.core.layers import weights
from lilliput.core.recipe import Recipe, Rule, from_data, presets, to_data
from lilliput.factorize.svd import Svd
from lilliput.prune.filter_norm import FilterNorm
from lilliput.prune.iterative import Iterative
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.float16 import Float16
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans

STEPS = st.one_of(
    st.builds(
        Uniform, bits=st.integers(1, 8), symmetric=st.booleans(), per=st.sampled_from(["tensor", "row", "group"])
    ),
    st.builds(Magnitude, sparsity=st.floats(0, 0.999)),
    st.builds(Magnitude, quality=st.floats(0, 1e6, exclude_min=True)),
    st.builds(KMeans, bits=st.integers(1, 8), init=st.sampled_from(["optimal", "linear"]), seed=st.integers(0, 2**62)),
    st.builds(Svd, rank=st.integers(0, 2**31), energy=st.floats(1e-6, 1), force=st.booleans()),
    st.builds(Float16, form=st.sampled_from(["float16", "bfloat16"])),
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
CUTS = st.builds(
    CutRule,
    match=TEXT,
    share=st.floats(0, 0.999),
    pattern=st.sampled_from(["channel", "filter", "neuron", "head", "block"]),
    criterion=st.none() | st.builds(Magnitude) | st.builds(FilterNorm, norm=st.sampled_from([1, 2])),
    multiple=st.integers(1, 64),
    absorb=st.booleans(),
    why=TEXT,
)
RULES = st.builds(
    Rule,
    match=TEXT,
    steps=st.lists(STEPS, max_size=3).map(tuple),
    layers=st.sampled_from(["*", "linear", "conv*", "vector"]),
    schedule=st.none() | st.builds(Iterative, rounds=st.integers(1, 99), until=st.floats(0, 1)),
    why=TEXT,
)


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Recipe, rules=st.lists(RULES, max_size=4).map(tuple), name=TEXT, cuts=st.lists(CUTS, max_size=3).map(tuple)
    )
)
def test_round_trip_through_toml(recipe):
    assert Recipe.loads(recipe.dumps()) == recipe
    assert from_data(to_data(recipe)) == recipe


@pytest.mark.parametrize("name", presets())
def test_presets_can_be_read(name):
    recipe = Recipe.preset(name)
    assert recipe.rules
    assert Recipe.loads(recipe.dumps()) == recipe


def test_the_three_presets():
    assert {"deep-compression", "int8", "tiny"} <= set(presets())
    with pytest.raises(RecipeError, match="no preset recipe 'int9'; there is int8"):
        Recipe.preset("int9")


def step(text):
    return f"[[rule]]\nsteps = [{{{text}}}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[rule]", "not valid TOML"),
        ("versoin = 1", "versoin: unknown; there is version"),
        ("version = 2", "version 2"),
        ("rule = 3", "each rule under its own"),
        ("name = 3", "name: must be a string"),
        ('[[rule]]\nmacth = "*"', r"rule\[0\]\.macth: unknown; there is match"),
        ("[[rule]]\nmatch = 3", r"rule\[0\]\.match: must be a string"),
        ("[[rule]]\nsteps = 3", r"rule\[0\]\.steps: must be a list"),
        ("[[rule]]\nsteps = [3]", r"rule\[0\]\.steps\[0\]: must be a table with a method"),
        (step("bits = 4"), r"steps\[0\]: must be a table with a method"),
        (step('method = "quantize/unifrom"'), r"steps\[0\]: no method 'quantize/unifrom'; there is quantize/uniform"),
        (step('method = "quantize/uniform", bit = 4'), r"steps\[0\]\.bit: unknown; there is bits"),
        (step('method = "quantize/uniform", bits = "4"'), r"steps\[0\]: quantize/uniform: Expected `int`, got `str`"),
        (step('method = "quantize/uniform", bits = 4.5'), "Expected `int`, got `float`"),
        (step('method = "quantize/uniform", bits = true'), "Expected `int`, got `bool`"),
        (step('method = "quantize/uniform", bits = 17'), r"bits = 17 is outside 1 \.\. 16"),
        (step('method = "quantize/uniform", per = "rows"'), "Invalid enum value 'rows'"),
        (step('method = "prune/magnitude", sparsity = nan'), "sparsity = nan is outside"),
        (step('method = "prune/magnitude", sparsity = 1'), "is outside 0 .. 1"),
        (step('method = "prune/magnitude", pattern = "no"'), "no method 'prune/no'"),
        (step('method = "prune/unstructured"'), "prune/unstructured is a pattern, which can't stand here"),
        (step('method = "distill/logits"'), "is a loss, which can't stand here"),
        ("cut = 3", r"cut: write each cut under its own \[\[cut\]\]"),
        ("[[cut]]\nshare = 1.0", r"cut\[0\]: cut: share = 1.0 must be at least 0 and below 1"),
        ("[[cut]]\nshare = nan", r"cut\[0\]: cut: share = nan must be"),
        ("[[cut]]\nshare = -0.5", r"cut\[0\]: cut: share = -0.5 must be"),
        ("[[cut]]\nmultiple = 0", r"cut\[0\]: cut: multiple = 0 must be at least 1"),
        ("[[cut]]\nsahre = 0.5", r"cut\[0\]\.sahre: unknown; there is share"),
        ('[[cut]]\npattern = "fliter"', r"cut\[0\]: Invalid enum value 'fliter'"),
        ("[[cut]]\nmatch = 3", r"cut\[0\]: Expected `str`, got `int`"),
        ('[[cut]]\ncriterion = "quantize/uniform"', r"cut\[0\]\.criterion: quantize/uniform is a weight method"),
        ('[[cut]]\ncriterion = "prune/tailor"', r"cut\[0\]\.criterion: no method 'prune/tailor'; there is"),
        ('[[rule]]\nschedule = "quantize/uniform"', "is a weight method, which can't stand here"),
    ],
)
def test_wrong_recipes_say_what_and_where(text, message):
    with pytest.raises(RecipeError, match=message) as raised:
        Recipe.loads(text)
    assert "\n" not in str(raised.value)


def net():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4))
    return weights(model)


def test_first_rule_that_fits_counts_and_vectors_only_when_asked():
    rules = Recipe.loads('[[rule]]\nmatch = "0.*"\n[[rule]]\nlayers = "vector"\n[[rule]]').rules
    recipe = Recipe(rules)
    chosen = {w.name: recipe.rule_for(w) for w in net()}
    assert chosen["0.weight"] is rules[0]
    assert chosen["0.bias"] is chosen["1.weight"] is chosen["2.bias"] is rules[1]
    assert chosen["2.weight"] is rules[2]
    assert Recipe(rules[2:]).rule_for(net()[1]) is None


def test_a_rule_that_fits_nothing_is_named_with_what_there_is():
    with pytest.raises(
        RecipeError, match=r"rule\[1\] \(match = '2.weigth', layers = '\*'\) fits no weight; there is 2.weight"
    ):
        Recipe.loads('[[rule]]\n[[rule]]\nmatch = "2.weigth"').check(net())
    with pytest.raises(RecipeError, match="layers conv2d, linear, vector"):
        Recipe.loads('[[rule]]\nlayers = "lstm"').check(net())
    Recipe.loads('[[rule]]\n[[rule]]\nmatch = "2.*"').check(net())


def test_a_tied_weight_is_found_by_any_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.out = nn.Linear(4, 5, bias=False)
            self.out.weight = self.embedding.weight

    (weight,) = weights(Tied())
    assert Rule(match="out.*").fits(weight)
    assert Rule(match="embedding.*").fits(weight)
