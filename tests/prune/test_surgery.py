"""Dynamic network surgery: hysteresis, gradients behind the mask, repaired mistakes, and when masks change."""

import math

import pytest
import torch
from torch import nn

from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.sparse import mask_of
from lilliput.prune.surgery import Surgery, threshold
from lilliput.share.kmeans import KMeans
from lilliput.testing.spread import gaussian
from lilliput.train.attach import advance, attach, attached
from lilliput.train.compress import pack


def test_threshold_in_closed_form():
    """Mean and population deviation of |w|, over what isn't zero; never negative."""
    weight = gaussian(1000)
    size = weight.abs().double()
    assert threshold(weight, 1.5) == pytest.approx(float(size.mean() + 1.5 * size.std(correction=0)))
    assert threshold(torch.cat([weight, torch.zeros(500)]), 1.5) == threshold(weight, 1.5)
    assert threshold(weight, -5.0) == 0
    assert threshold(torch.zeros(3), 1.0) == 0


def test_hysteresis():
    """With base 1: 0.95 stays what it was, 0.5 goes, 1.2 comes back."""
    values = torch.tensor([0.95, 0.95, 0.5, 0.5, 1.2, 1.2, 0.9, 1.1], dtype=torch.float64)
    before = torch.tensor([True, False, True, False, True, False, True, False])
    start = Surgery().at(0.0).pack(values)
    assert bool(mask_of(start).all())
    prior = start.with_parts(mask=before, values=values[before])
    object.__setattr__(prior, "settings", {"base": 1.0, "over": 0.0})
    after = mask_of(Surgery().pack(values, prior=prior))
    assert after.tolist() == [True, False, False, False, True, True, False, False]


def layer(deviations=0.5, **settings):
    torch.manual_seed(0)
    model = nn.Linear(20, 10, bias=False)
    method = Surgery(deviations=deviations, rounds=40, until=0.5, **settings)
    return attach(model, Recipe((Rule(steps=(method,)),)))


def test_the_gradient_reaches_masked_weights():
    """It is dL / d(w * T), as autograd gives it for the effective weight as a leaf: this tells surgery from pruning."""
    model = layer()
    advance(model, 0.2)
    inputs = gaussian(8, 20, seed=4)
    effective = model.weight.detach().clone().requires_grad_()
    (inputs @ effective.T).square().sum().backward()
    model(inputs).square().sum().backward()
    (weight, _) = next(attached(model))
    masked = model.weight == 0
    assert 20 < int(masked.sum()) < 180
    assert torch.equal(weight.parameter.grad, effective.grad)
    assert int((weight.parameter.grad[masked] != 0).sum()) == int(masked.sum())


def test_a_mistake_is_repaired_where_plain_masking_cannot():
    """Two inputs; the useful one starts with the smaller weight, and the other's weight is of no use."""
    torch.manual_seed(0)
    X = torch.randn(200, 2)
    Y = 1.0 * X[:, :1]
    found = {}
    for name, method in (
        ("surgery", Surgery(deviations=0.0, rounds=1000, until=0.9)),
        ("masking", Magnitude(sparsity=0.5)),
    ):
        model = nn.Linear(2, 1, bias=False)
        model.weight.data = torch.tensor([[0.1, 0.4]])
        attach(model, Recipe((Rule(steps=(method,)),)))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for step in range(200):
            advance(model, step / 199)
            if step == 1:
                assert model.weight[0, 0] == 0, name
            loss = (model(X) - Y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[name] = model.weight.detach().flatten().tolist()
    assert found["masking"][0] == 0
    assert found["surgery"][0] == pytest.approx(1.0, abs=0.02)
    assert found["surgery"][1] == pytest.approx(0.0, abs=0.02)


def test_updates_come_as_often_as_in_the_paper():
    """With gamma = 1e-4 and T = 14000 the expected number of updates is ln(1 + 1.4) / 1e-4 = 8755."""
    expected = sum(1 / (1 + 1e-4 * t) for t in range(14000))
    assert expected == pytest.approx(math.log(2.4) / 1e-4, rel=1e-3)
    method = Surgery(rounds=8755, decay=1.4, until=1.0)
    for part in (0.1, 0.5, 0.9):
        due = sum(1 / (1 + 1e-4 * t) for t in range(int(part * 14000)))
        assert method.at(part).over * 8755 == pytest.approx(due, rel=1e-3)
    assert method.at(0.0).over == 0
    assert method.at(1.0) == method


def test_after_the_last_update_the_mask_stays():
    model = layer()
    masks = []
    for step in range(41):
        advance(model, step / 40)
        with torch.no_grad():
            next(attached(model))[0].parameter.add_(0.3 * gaussian(10, 20, seed=step))
        masks.append(model.weight != 0)
    changed = [not torch.equal(a, b) for a, b in zip(masks, masks[1:])]  # noqa: RUF007
    assert bool(masks[0].all())
    assert sum(changed[:20]) > 5
    assert not any(changed[20:])
    returned = any(bool((b & ~a).any()) for a, b in zip(masks, masks[1:]))  # noqa: RUF007
    assert returned, "no weight was ever put back"


def test_what_is_packed_is_what_training_saw_and_sharing_goes_on_from_it():
    model = layer()
    advance(model, 1.0)
    seen = model.weight.detach().clone()
    held = pack(model).weights["weight"]
    assert torch.equal(unpack(held), seen)
    assert held.method == "prune/sparse"
    attach(model, Recipe((Rule(steps=(Magnitude(), KMeans(bits=3))),)))
    assert torch.equal(model.weight == 0, seen == 0)


def test_at_once_it_prunes_below_the_lower_threshold():
    weight = gaussian(500)
    base = threshold(weight, 0.3)
    assert torch.equal(mask_of(Surgery(deviations=0.3).pack(weight)), weight.abs().double() > 0.9 * base)
