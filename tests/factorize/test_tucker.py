"""Tucker-2: bounds of HOSVD, sweeps that never hurt, ranks by EVBMF, and the three layers."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.packed import take, unpack
from lilliput.factorize.svd import Svd
from lilliput.factorize.tucker import Tucker, equal_part
from lilliput.solve import tucker
from lilliput.testing.spread import gaussian


def squared_error(method, weight):
    return float((unpack(method.pack(weight)) - weight).square().sum())


def planted(a=3, b=2, noise=0.0):
    out, inner, core = gaussian(16, a).double(), gaussian(b, 12, seed=1).double(), gaussian(a, b, 3, 3, seed=2).double()
    return torch.einsum("na,abyx,bc->ncyx", out, core, inner) * 1e3 + noise * gaussian(16, 12, 3, 3, seed=3)


@pytest.mark.parametrize("shape", [(7, 5, 3, 3), (4, 9, 5), (3, 4, 2, 2, 3)])
def test_exact_at_full_rank(shape):
    weight = gaussian(*shape).double()
    full = Tucker(rank_out=99, rank_in=99, force=True)
    assert torch.allclose(unpack(full.pack(weight)), weight, atol=1e-13)


@pytest.mark.parametrize("ranks", [(1, 1), (3, 2), (5, 4), (2, 5)])
def test_sweeps_never_hurt_and_the_first_bases_keep_their_bound(ranks):
    tensor = gaussian(8, 6, 9).double()
    start = tucker.hosvd(tensor, ranks)
    errors = [
        float((tucker.composed(parts) - tensor).square().sum()) for parts in [start, *tucker.hooi(tensor, start, 8)]
    ]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(errors))
    left_out = [torch.linalg.svdvals(m)[r:].square().sum() for m, r in zip(tucker.unfoldings(tensor), ranks)]
    assert errors[0] <= float(sum(left_out)) * (1 + 1e-12)
    assert errors[0] >= float(max(left_out)) * (1 - 1e-12)


def test_the_bases_are_never_multiplied_with_one_another():
    """Their product alone would take half a terabyte here."""
    left, right, core = gaussian(768, 700), gaussian(512, 500), gaussian(700, 500, 1)
    whole = tucker.composed((left, right, core))
    assert torch.allclose(whole[:, :, 0], left @ core[:, :, 0] @ right.T, atol=1e-2)
    found = tucker.best(whole, (3, 2), 0, start=right[:, :2])
    assert torch.allclose(found[2][:, :, 0], found[0].T @ whole[:, :, 0] @ right[:, :2], atol=1)


def test_sweeps_help():
    tensor = gaussian(8, 6, 9).double()
    start = tucker.hosvd(tensor, (3, 2))
    *_, last = tucker.hooi(tensor, start, 20)
    assert float(last[2].square().sum()) > 1.001 * float(start[2].square().sum())


def test_one_basis_alone_is_the_svd():
    weight = gaussian(8, 3, 3, 3).double()
    one = unpack(Tucker(rank_out=2, rank_in=3).pack(weight))
    assert torch.allclose(one, unpack(Svd(rank=2).pack(weight)), atol=1e-12)
    other = unpack(Tucker(rank_out=8, rank_in=1).pack(weight))
    assert torch.allclose(other, unpack(Svd(rank=1, view="in").pack(weight)), atol=1e-12)


@pytest.mark.parametrize("stride", [1, (2, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layers_do_what_the_composed_weight_does(stride, bias):
    layer = nn.Conv2d(5, 7, 3, stride=stride, padding=(2, 1), dilation=(1, 2), bias=bias).double()
    packed = Tucker(rank_out=4, rank_in=3, force=True).pack(layer.weight.detach())
    x = gaussian(2, 5, 9, 10).double()
    expected = functional.conv2d(x, unpack(packed), layer.bias, layer.stride, layer.padding, layer.dilation)
    made = Tucker.layers(packed, layer)
    assert torch.allclose(made(x), expected, atol=1e-12)
    assert sum(p.weight.numel() for p in made) == 5 * 3 + 4 * 3 * 9 + 4 * 7


def test_variational_bayes_finds_both_ranks():
    packed = Tucker().pack(planted(noise=0.1))
    assert packed.parts["core"].shape == (3, 2, 3, 3)
    half = Tucker(weakening=0.5).pack(planted(noise=0.1))
    assert half.parts["core"].shape[:2] == (round(16 - 0.5 * 13), 12 - 5)


def test_a_tensor_of_these_ranks_is_recovered():
    weight = planted()
    packed = Tucker(rule="energy", energy=1 - 1e-9).pack(weight)
    assert packed.parts["core"].shape == (3, 2, 3, 3)
    assert float((unpack(packed) - weight).norm() / weight.norm()) < 1e-10


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("blocks", [1, 4])
def test_equal_parts_hold_the_numbers_asked_for(ratio, blocks):
    out, channels, area = 64, 32, 9
    part = equal_part((out, channels, area), ratio, blocks)
    a, b = part * out / blocks, part * channels / blocks
    assert blocks * (a * out + b * channels + a * b * area) == pytest.approx(ratio * out * channels * area)


def test_gradients_reach_every_part_and_more_ranks_are_better():
    weight = gaussian(12, 10, 3, 3).double()
    errors = [squared_error(Tucker(rank_out=r, rank_in=r, force=True), weight) for r in (1, 3, 6, 9)]
    assert errors == sorted(errors, reverse=True)
    packed = Tucker(rank_out=3, rank_in=2).pack(weight)
    parts = {name: part.clone().requires_grad_() for name, part in packed.parts.items()}
    unpack(packed.with_parts(**parts)).square().sum().backward()
    assert all(part.grad.abs().min() > 0 for part in parts.values())


@pytest.mark.parametrize("axis", range(4))
def test_cutting_keeps_the_values_of_the_others(axis):
    packed = Tucker(rank_out=3, rank_in=2).pack(gaussian(8, 6, 3, 3))
    kept = torch.tensor([0, 2])
    assert torch.allclose(unpack(take(packed, axis, kept)), unpack(packed).index_select(axis, kept), atol=1e-7)


def test_refusals():
    with pytest.raises(NotWorthwhile, match="ranks 8 and 5"):
        Tucker(rank_out=8, rank_in=5).pack(gaussian(8, 6, 3, 3))
    with pytest.raises(MethodError, match="factorize/svd"):
        Tucker().pack(gaussian(8, 6))
    packed = Tucker(rank_out=2, rank_in=2).pack(gaussian(8, 6, 3, 3))
    with pytest.raises(MethodError, match="don't make"):
        unpack(packed.with_parts(core=torch.zeros(2, 3, 3, 3)))
