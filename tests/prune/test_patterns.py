"""Patterns against brute force and by hand: what each keeps, how recipes spell them, masks as state, global ranking."""

import itertools

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError, RecipeError
from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.prune.block import Block
from lilliput.prune.channel import Channel
from lilliput.prune.filter import Filter
from lilliput.prune.gradual import Gradual
from lilliput.prune.head import Head
from lilliput.prune.iterative import Iterative
from lilliput.prune.kernel import Kernel
from lilliput.prune.kernel_shape import KernelShape
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.n_m import NM
from lilliput.prune.neuron import Neuron
from lilliput.prune.sparse import mask_of, pattern_of
from lilliput.prune.unstructured import Unstructured
from lilliput.testing.spread import gaussian
from lilliput.train.attach import advance, attach
from lilliput.train.compress import compress, pack

CONV = gaussian(6, 4, 3, 3).abs()
MATRIX = gaussian(8, 12, seed=1).abs()


def groups_of(pattern, shape):
    """The groups of a pattern as sets of flat places, written down independently of the code."""
    places = torch.arange(torch.Size(shape).numel()).reshape(shape)
    rows = places.flatten(1)
    if isinstance(pattern, Filter):
        found = list(places)
    elif isinstance(pattern, Channel):
        found = [places[:, c] for c in range(shape[1])]
    elif isinstance(pattern, Kernel):
        found = [places[n, c] for n in range(shape[0]) for c in range(shape[1])]
    elif isinstance(pattern, KernelShape):
        found = [rows[:, j] for j in range(rows.shape[1])]
    elif isinstance(pattern, Neuron):
        part = shape[0] // pattern.gates
        found = [torch.stack([rows[g * part + i] for g in range(pattern.gates)]) for i in range(part)]
    elif isinstance(pattern, Head):
        found = list(places.chunk(pattern.heads, 1))
    else:
        high, wide = pattern.rows, pattern.columns
        corners = itertools.product(range(0, rows.shape[0], high), range(0, rows.shape[1], wide))
        found = [rows[i : i + high, j : j + wide] for i, j in corners]
    return [group.flatten() for group in found]


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("scores", [CONV, MATRIX], ids=["conv", "matrix"])
@pytest.mark.parametrize(
    "pattern",
    [
        Filter(),
        Channel(),
        Kernel(),
        KernelShape(),
        Neuron(),
        Neuron(2),
        Head(4),
        Block(4, 1),
        Block(16, 1),
        Block(2, 5),
    ],
    ids=repr,
)
def test_whole_groups_with_the_largest_sums_stay(pattern, scores, sparsity):
    if isinstance(pattern, Head) and scores.ndim != 2:
        with pytest.raises(MethodError, match="heads"):
            pattern.select(scores, sparsity)
        return
    groups = groups_of(pattern, scores.shape)
    assert sorted(torch.cat(groups).tolist()) == list(range(scores.numel()))
    mask = pattern.select(scores, sparsity).flatten()
    held = [bool(mask[group].all()) for group in groups]
    assert all(kept or not bool(mask[group].any()) for kept, group in zip(held, groups)), "a group is torn"
    sums = [float(scores.flatten()[group].double().sum()) for group in groups]
    assert min(s for s, kept in zip(sums, held) if kept) >= max(
        (s for s, kept in zip(sums, held) if not kept), default=0
    )
    up = isinstance(pattern, Filter | Channel | Neuron | Head)
    removed = -int(-sparsity * len(groups) // 1) if up else round(sparsity * len(groups))
    assert held.count(False) == min(removed, len(groups) - 1)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4), (2, 8), (4, 4)])
def test_n_m_is_the_best_mask_of_all(n, m):
    """Against every choice of n of m in each group."""
    scores = gaussian(3, 2 * m, seed=5).abs()
    mask = NM(n, m).select(scores, 1 - n / m)
    for row, group in itertools.product(range(3), range(2)):
        part = slice(group * m, (group + 1) * m)
        best = max(itertools.combinations(range(m), n), key=lambda places: float(scores[row, part][list(places)].sum()))
        assert mask[row, part].nonzero().flatten().tolist() == sorted(best)


def test_n_m_runs_along_the_inputs_of_a_convolution():
    mask = NM(2, 4).select(gaussian(5, 8, 3, 3), 0.5)
    assert bool((mask.reshape(5, 2, 4, 3, 3).sum(2) == 2).all())


@pytest.mark.parametrize("inputs", [1, 3, 5, 7])
def test_a_short_last_group_keeps_n_too(inputs):
    mask = NM(2, 4).select(gaussian(4, inputs), 0.5)
    for part in mask.split(4, dim=1):
        assert bool((part.sum(1) == min(2, part.shape[1])).all())


@pytest.mark.parametrize("wrong", [(5, 4), (-1, 4), (2, 0)])
def test_n_larger_than_m_is_refused(wrong):
    with pytest.raises(MethodError, match="n_m"):
        NM(*wrong)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", Unstructured()),
        ("2:4", NM(2, 4)),
        ("n_m:2:4", NM(2, 4)),
        ("n_m", NM()),
        ("n_m:0:8", NM(0, 8)),
        ("block", Block(4, 1)),
        ("block:16x1", Block(16, 1)),
        ("block:2:3", Block(2, 3)),
        ("neuron:4", Neuron(4)),
        ("head:12", Head(12)),
    ],
)
def test_spelling(text, pattern):
    assert pattern_of(text) == pattern
    recipe = Recipe.loads(f"[[rule]]\nsteps = [{{method = 'prune/magnitude', pattern = '{text}', sparsity = 0.5}}]")
    assert Recipe.loads(recipe.dumps()) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("magnitude", "not a pattern"),
        ("blok", "prune/block"),
        ("5:4", "1 to m"),
        ("block:0x1", "holds nothing"),
        ("block:4x1x1", "takes rows:columns"),
        ("block:-4", "whole numbers"),
        ("filter:3", "no settings"),
        ("2:four", "whole numbers"),
        ("neuron:0", "at least 1"),
    ],
)
def test_a_pattern_that_cannot_be_read_says_why(text, said):
    with pytest.raises(MethodError, match=said):
        Magnitude(sparsity=0.5, pattern=text)
    with pytest.raises(RecipeError, match=r"rule\[0\].steps\[0\]"):
        Recipe.loads(f"[[rule]]\nsteps = [{{method = 'prune/magnitude', pattern = '{text}'}}]")


def test_two_of_four_sets_the_sparsity_and_forbids_more():
    assert Magnitude(pattern="2:4").sparsity == 0.5
    assert Magnitude(pattern="n_m:1:4").sparsity == 0.75
    with pytest.raises(MethodError, match="more than"):
        Magnitude(pattern="2:4", sparsity=0.9)
    with pytest.raises(MethodError):
        Magnitude(pattern="2:4", quality=1.0)
    with pytest.raises(MethodError, match="give a sparsity to filter"):
        Magnitude(pattern="filter", quality=1.0)


@pytest.mark.parametrize("schedule", [Iterative(rounds=4, until=0.5), Gradual(until=0.5)])
def test_a_schedule_leads_to_two_of_four(schedule):
    model = attach(nn.Linear(16, 8), Recipe((Rule(steps=(Magnitude(pattern="2:4"),), schedule=schedule),)))
    counts = []
    for step in range(11):
        advance(model, step / 10)
        counts.append(int((model.weight != 0).sum()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 64
    assert counts[5:] == [64] * 6
    assert bool(((model.weight != 0).reshape(8, 4, 4).sum(2) == 2).all())


@pytest.mark.parametrize("pattern", ["filter", "channel", "kernel", "kernel_shape", "block:16x1", "2:4", "neuron"])
def test_a_structured_mask_is_state(pattern):
    """Training moves the survivors, the mask stays; another pattern prunes anew within it."""
    method = Magnitude(sparsity=0.5, pattern=pattern)
    first = method.pack(CONV)
    again = method.pack(gaussian(6, 4, 3, 3, seed=8), prior=first)
    assert torch.equal(mask_of(again), mask_of(first))
    other = Magnitude(sparsity=0.5, pattern="filter").pack(CONV, prior=first)
    assert not bool((mask_of(other) & ~mask_of(first)).any())
    rows = mask_of(other).flatten(1).any(1)
    assert int(rows.sum()) == 3


def test_a_filter_is_judged_by_the_weights_that_it_still_has():
    weight = torch.tensor([[5.0, 5.0], [6.0, 1.0], [2.0, 2.0]])
    prior = Magnitude(sparsity=1 / 3).pack(torch.tensor([[0.1, 5.0], [6.0, 0.2], [2.0, 2.0]]))
    kept = mask_of(Magnitude(sparsity=0.5, pattern="filter").pack(weight, prior=prior))
    assert kept.tolist() == [[False, False], [True, False], [False, False]]


def test_attached_and_packed_the_structure_is_the_same():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 16))
    rules = (
        Rule("0.weight", (Magnitude(sparsity=0.5, pattern="kernel_shape"),)),
        Rule("2.weight", (Magnitude(pattern="2:4"),)),
    )
    attach(model, Recipe(rules))
    seen = model[0].weight.detach().clone()
    artifact = pack(model)
    assert torch.equal(unpack(artifact.weights["0.weight"]), seen)
    assert int((seen.abs().sum(0) > 0).sum()) == 18


def layers(*scales):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in scales))
    for layer, scale in zip(model, scales):
        layer.weight.data = gaussian(16, 16, seed=int(scale * 10)) * scale
    return model


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_global_scope_is_one_threshold(sparsity):
    model = layers(1.0, 1.5, 0.8)
    recipe = Recipe((Rule(steps=(Magnitude(sparsity=sparsity, scope="global"),)),))
    artifact = compress(model, recipe)
    whole = torch.cat([layer.weight.abs().flatten() for layer in model])
    threshold = whole.sort(descending=True).values[768 - round(sparsity * 768) - 1]
    for name, layer in model.named_modules():
        if name:
            kept = unpack(artifact.weights[f"{name}.weight"]) != 0
            assert torch.equal(kept, layer.weight.abs() >= threshold), name
    attached_model = attach(layers(1.0, 1.5, 0.8), recipe)
    kept = torch.cat([(layer.weight != 0).flatten() for layer in attached_model])
    assert torch.equal(kept, whole >= threshold)


def test_global_scope_leaves_each_layer_something_and_works_for_filters():
    model = layers(1.0, 100.0)
    artifact = compress(model, Recipe((Rule(steps=(Magnitude(sparsity=0.5, scope="global"),)),)))
    assert int((unpack(artifact.weights["0.weight"]) != 0).sum()) == 1
    step = Magnitude(sparsity=0.25, scope="global", pattern="filter")
    artifact = compress(model, Recipe((Rule(steps=(step,)),)))
    rows = [int((unpack(artifact.weights[f"{i}.weight"]) != 0).any(1).sum()) for i in range(2)]
    assert rows == [8, 16]


def test_global_scope_where_it_makes_no_sense():
    with pytest.raises(MethodError, match=r"rule\[0\].*no ranking across layers"):
        compress(layers(1.0), Recipe((Rule(steps=(Magnitude(pattern="2:4", scope="global"),)),)))
    first, second = Magnitude(sparsity=0.1), Magnitude(sparsity=0.5, scope="global")
    with pytest.raises(MethodError, match="first step"):
        compress(layers(1.0), Recipe((Rule(steps=(first, second)),)))
