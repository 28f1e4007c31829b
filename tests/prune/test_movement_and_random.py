"""Movement against the paper's sum over gradients; the random baseline."""

import torch
from torch import nn

from lilliput.core.packed import leaves
from lilliput.core.recipe import Recipe, Rule
from lilliput.prune.gradual import Gradual
from lilliput.prune.movement import Movement, moved
from lilliput.prune.random import Random
from lilliput.prune.sparse import mask_of
from lilliput.testing.spread import gaussian
from lilliput.train.attach import advance, attach, attached
from lilliput.train.compress import pack


def problem():
    X = gaussian(200, 12, seed=2) * 10
    return X, X @ gaussian(12, 3, seed=3) * 10


def test_the_score_is_the_papers_sum_under_small_steps():
    """sum -w dL/dw over the steps, against (w^2 - w0^2) / (2 rate); exact but for the squares of the steps."""
    X, Y = problem()
    weight = (gaussian(12, 3, seed=4) * 10).double().requires_grad_()
    origin, rate = weight.detach().clone(), 1e-4
    total = torch.zeros_like(weight)
    for _ in range(300):
        loss = (X.double() @ weight - Y.double()).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        total -= weight.detach() * gradient
        with torch.no_grad():
            weight -= rate * gradient
    score = moved(weight.detach(), origin) / (2 * rate)
    assert float((score - total).norm() / total.norm()) < 1e-3
    assert torch.equal(score > 0, (total > 0))


def test_a_large_weight_that_shrinks_goes_before_a_small_one_that_grows():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[2.0, 0.1]])
    rule = Rule(steps=(Movement(sparsity=0.5),), schedule=Gradual(until=0.5, rounds=1))
    attach(model, Recipe((rule,)))
    advance(model, 0.0)
    assert bool((model.weight != 0).all())
    weight, node = next(attached(model))
    with torch.no_grad():
        weight.parameter.copy_(torch.tensor([[1.9, 0.3]]))
    advance(model, 0.6)
    assert (model.weight != 0).tolist() == [[False, True]]
    held = dict(leaves(pack(model).weights["weight"]))
    assert set(held) == {"mask", "values"}
    assert set(dict(leaves(node.first(weight.parameter)))) == {"mask", "values", "origin"}


def test_movement_goes_on_from_the_first_origin_over_rounds_and_keeps_patterns():
    weight, method = gaussian(16, 8), Movement(sparsity=0.5, pattern="2:4")
    start = Movement().pack(weight)
    first = Movement(sparsity=0.25, pattern="2:4").pack(weight + 0.1 * gaussian(16, 8, seed=1), prior=start)
    last = method.pack(weight + 0.2 * gaussian(16, 8, seed=1), prior=first)
    assert torch.equal(last.parts["origin"], weight)
    assert bool((mask_of(last).reshape(16, 2, 4).sum(2) == 2).all())
    assert not bool((mask_of(last) & ~mask_of(first)).any())
    again = method.pack(gaussian(16, 8, seed=9), prior=last)
    assert torch.equal(mask_of(again), mask_of(last))


def test_without_training_it_is_magnitude():
    weight = gaussian(30, 30)
    kept = mask_of(Movement(sparsity=0.7).pack(weight))
    assert float(weight[kept].abs().min()) >= float(weight[~kept].abs().max())


def test_random_masks_are_even_and_differ_by_seed_and_weight():
    weight, other = gaussian(100, 100), gaussian(100, 100, seed=1)
    one = mask_of(Random(sparsity=0.9).pack(weight))
    assert int(one.sum()) == 1000
    assert torch.equal(one, mask_of(Random(sparsity=0.9).pack(weight)))
    for mask in (mask_of(Random(sparsity=0.9, seed=1).pack(weight)), mask_of(Random(sparsity=0.9).pack(other))):
        overlap = int((one & mask).sum())
        assert 55 < overlap < 155  # 100 expected, deviation below 10: by chance
    large = mask_of(Random(sparsity=0.5).pack(weight)) & (weight.abs() > weight.abs().median())
    assert abs(int(large.sum()) - 2500) < 200
