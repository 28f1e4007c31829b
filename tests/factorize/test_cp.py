"""CP: recovery, a falling objective, the four layers, and factors that noise harms less."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.factorize.cp import Cp
from lilliput.solve.alternating import als, balanced, composed, cp, degeneracy, sensitivity, steadied
from lilliput.testing.spread import gaussian, generator
from lilliput.train.compress import compress


def factors(rank, *sizes, seed=0):
    return [
        torch.randn(1, size, rank, generator=generator(seed + i), dtype=torch.float64) for i, size in enumerate(sizes)
    ]


def relative(found, tensor):
    return float((composed(found) - tensor).norm() / tensor.norm())


@pytest.mark.parametrize(("rank", "sizes"), [(1, (6, 5, 3, 3)), (3, (16, 12, 9)), (4, (12, 10, 5, 5))])
def test_a_tensor_of_this_rank_is_recovered(rank, sizes):
    tensor = composed(factors(rank, *sizes))
    assert relative(cp(tensor, rank, sweeps=400, restarts=3), tensor) < 1e-6


def test_the_objective_never_rises():
    tensor = gaussian(1, 7, 6, 5).double()
    for penalty in (None, torch.tensor([1e-3]).double()):
        objective, now = [], factors(4, 7, 6, 5)
        for _ in range(15):
            now = als(tensor, now, 1, penalty=penalty)
            extra = 0.0 if penalty is None else float(penalty * sensitivity(now))
            objective.append(float((composed(now) - tensor).square().sum()) + extra)
        assert all(after <= before * (1 + 1e-9) for before, after in pairwise(objective))
        assert objective[-1] < objective[0]


def test_sensitivity_is_what_noise_in_the_factors_does():
    own = factors(3, 6, 5, 4)
    squares = [f[0].square().sum(0) for f in own]
    a, b, c = squares
    assert float(sensitivity(own)) == pytest.approx(float((4 * a * b + 6 * b * c + 5 * a * c).sum()))
    level, source = 1e-4, generator(5)
    changes = [
        float(
            (
                composed([f + level * torch.randn(f.shape, generator=source, dtype=torch.float64) for f in own])
                - composed(own)
            )
            .square()
            .sum()
        )
        for _ in range(2000)
    ]
    assert sum(changes) / len(changes) / level**2 == pytest.approx(float(sensitivity(own)), rel=0.05)


def test_correction_lowers_the_sensitivity_within_its_bound():
    tensor = gaussian(1, 16, 12, 9).double()
    plain = cp(tensor, 6, sweeps=100)
    steady = steadied(tensor, plain, 0.02)
    before, after = (float((composed(f) - tensor).square().sum()) for f in (plain, steady))
    assert after <= 1.02 * before
    assert float(sensitivity(steady)) < 0.7 * float(sensitivity(plain))
    assert float(sensitivity(balanced(plain))) <= float(sensitivity(plain)) * (1 + 1e-9)


def test_degeneracy_tells_terms_that_cancel():
    a = factors(1, 5, 4, 3)
    tensor = composed(a)
    assert float(degeneracy(a, tensor)) == pytest.approx(1)
    cancelling = [torch.cat([a[0] * 101, a[0] * -100], 2), a[1].repeat(1, 1, 2), a[2].repeat(1, 1, 2)]
    assert torch.allclose(composed(cancelling), tensor)
    assert float(degeneracy(cancelling, tensor)) == pytest.approx(101**2 + 100**2)


def test_balance_keeps_the_terms_and_evens_out_their_norms():
    own = factors(3, 6, 5, 4)
    even = balanced([own[0] * 1e6, own[1] * 1e-6, own[2]])
    assert torch.allclose(composed(even), composed(own))
    norms = torch.stack([f.norm(dim=1) for f in even])
    assert torch.allclose(norms, norms[:1].expand_as(norms))
    assert not any(f.isnan().any() for f in balanced([torch.zeros(1, 3, 2), torch.ones(1, 4, 2)]))


@pytest.mark.parametrize("form", ["four", "three"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_the_layers_do_what_the_composed_weight_does(form, stride):
    layer = nn.Conv2d(5, 7, (3, 5), stride=stride, padding=(1, 2), dilation=(2, 1)).double()
    packed = Cp(rank=4, form=form).pack(layer.weight.detach())
    x = gaussian(2, 5, 12, 11).double()
    expected = functional.conv2d(x, unpack(packed), layer.bias, stride, layer.padding, layer.dilation)
    made = Cp.layers(packed, layer)
    assert len(made) == (4 if form == "four" else 3)
    assert torch.allclose(made(x), expected, atol=1e-12)
    window = 3 + 5 if form == "four" else 15
    assert sum(p.weight.numel() for p in made) == 4 * (5 + 7 + window)


def test_the_layers_of_other_dimensions():
    layer = nn.Conv1d(5, 7, 3, padding=1).double()
    packed = Cp(rank=3).pack(layer.weight.detach())
    x = gaussian(2, 5, 12).double()
    assert torch.allclose(Cp.layers(packed, layer)(x), functional.conv1d(x, unpack(packed), layer.bias, padding=1))


@pytest.mark.parametrize("form", ["four", "three"])
def test_more_terms_are_better(form):
    weight = gaussian(8, 6, 3, 3).double()
    errors = [float((unpack(Cp(rank=r, form=form, force=True).pack(weight)) - weight).norm()) for r in (1, 4, 9, 18)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_terms_that_diverge_are_told_of():
    """a a b + a b a + b a a has no best approximation of two terms: they grow as long as one goes on."""
    a, b = torch.eye(6)[:2].double()
    tensor = sum(torch.einsum("i,j,k->ijk", *three) for three in ((a, a, b), (a, b, a), (b, a, a)))
    assert Cp(rank=2, growth=0, sweeps=30, degeneracy=10).pack(tensor).parts["out"].shape == (6, 2)
    with pytest.raises(NotWorthwhile, match=r"2 terms of \(6, 6, 6\) diverge, .* take fewer"):
        Cp(rank=2, growth=0, sweeps=100, degeneracy=10).pack(tensor)
    network = nn.Sequential(nn.Conv1d(6, 6, 6, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(tensor)
    recipe = Recipe((Rule(steps=(Cp(rank=2, growth=0, sweeps=100, degeneracy=10),)),))
    kept = compress(network, recipe, example=torch.zeros(1, 6, 9)).weights["0.weight"]
    assert torch.equal(kept, network[0].weight)


def test_refusals():
    with pytest.raises(NotWorthwhile, match="30 terms"):
        Cp(rank=30).pack(gaussian(8, 6, 3, 3))
    with pytest.raises(MethodError, match="factorize/svd"):
        Cp().pack(gaussian(8, 6))
    with pytest.raises(MethodError, match="form"):
        Cp(form="five")
    packed = Cp(rank=2).pack(gaussian(8, 6, 3, 3))
    with pytest.raises(MethodError, match="don't make"):
        unpack(packed.with_parts(space=torch.zeros(5, 2)))
