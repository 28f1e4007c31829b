"""Truncated SVD: Eckart and Young's equality, ranks, counts and refusals."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.packed import take, unpack
from lilliput.factorize.rank import rank_for_energy
from lilliput.factorize.svd import Svd, as_matrix
from lilliput.testing.spread import decaying, gaussian


def squared_error(method, weight):
    return float((unpack(method.pack(weight)) - weight).square().sum())


@pytest.mark.parametrize("rank", range(1, 13))
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (12, 5, 3, 2)])
def test_error_is_the_sum_of_the_squares_left_out(shape, rank):
    weight = gaussian(*shape).double()
    values = torch.linalg.svdvals(weight.reshape(shape[0], -1))
    error = squared_error(Svd(rank=rank, force=True), weight)
    assert error == pytest.approx(float(values[rank:].square().sum()), abs=1e-24, rel=1e-9)


def test_no_other_factors_of_this_rank_do_better():
    weight = gaussian(10, 12).double()
    best = squared_error(Svd(rank=3, force=True), weight)
    for seed in range(20):
        left = gaussian(10, 3, seed=seed).double()
        fitted = left @ torch.linalg.lstsq(left, weight).solution
        assert float((fitted - weight).square().sum()) > best


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_matrix_of_this_rank_is_recovered_exactly(rank):
    weight = (gaussian(20, rank) @ gaussian(rank, 30, seed=1)).double()
    assert torch.allclose(unpack(Svd(rank=rank).pack(weight)), weight, atol=1e-14)
    assert Svd(rank=0, energy=1.0).pack(weight).parts["u"].shape == (20, rank)


def test_count_and_balance():
    packed = Svd(rank=4).pack(gaussian(20, 8, 3, 3))
    u, v = packed.parts["u"], packed.parts["v"]
    assert u.numel() + v.numel() == 4 * (20 + 72)
    values = torch.linalg.svdvals(gaussian(20, 8, 3, 3).reshape(20, 72))[:4]
    assert torch.allclose(u.T @ u, torch.diag(values), atol=1e-5)
    assert torch.allclose(v @ v.T, torch.diag(values), atol=1e-5)


def test_convolution_is_the_matrix_of_its_filters():
    weight = gaussian(6, 4, 3, 3)
    flat = unpack(Svd(rank=2).pack(weight.reshape(6, 36)))
    assert torch.equal(unpack(Svd(rank=2).pack(weight)), flat.reshape(6, 4, 3, 3))


def test_energy_rule():
    values = torch.tensor([4.0, 2.0, 2.0, 1.0])  # squares 16, 4, 4, 1 of 25
    assert [rank_for_energy(values, e) for e in (0.01, 0.64, 0.65, 0.8, 0.81, 0.96, 0.97, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]
    assert rank_for_energy(torch.zeros(3), 0.9) == 1
    assert rank_for_energy(torch.zeros(0), 0.9) == 0


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_energy_is_kept_by_the_fewest_values(energy):
    weight = decaying(24, 32).double()
    packed = Svd(energy=energy).pack(weight)
    rank, total = packed.parts["u"].shape[1], float(weight.square().sum())
    assert squared_error(Svd(rank=rank), weight) <= (1 - energy) * total
    assert rank == 1 or squared_error(Svd(rank=rank - 1), weight) > (1 - energy) * total


def test_not_worthwhile_beyond_the_break_even_rank():
    """m n / (m + n) = 12 * 24 / 36 = 8."""
    weight = gaussian(12, 24)
    assert Svd(rank=8).pack(weight).parts["u"].shape == (12, 8)
    with pytest.raises(NotWorthwhile, match="rank 9 of a 12 x 24 matrix holds 324 numbers, the weight 288"):
        Svd(rank=9).pack(weight)
    assert Svd(rank=9, force=True).pack(weight).parts["u"].shape == (12, 9)


def test_vectors_are_refused():
    with pytest.raises(MethodError, match="two or more axes"):
        Svd(rank=1).pack(gaussian(12))


def test_factors_from_nothing_are_refused():
    """Rank 0 would declare a weight of 2^40 numbers in no bytes."""
    packed = Svd(rank=1, force=True).pack(gaussian(4, 4))
    from dataclasses import replace

    huge = replace(packed, shape=(2**20, 2**20), parts={"u": torch.zeros(2**20, 0), "v": torch.zeros(0, 2**20)})
    with pytest.raises(MethodError, match="factors"):
        unpack(huge)


def test_gradients_reach_both_factors():
    packed = Svd(rank=2, force=True).pack(gaussian(5, 6))
    u, v = (packed.parts[n].clone().requires_grad_() for n in "uv")
    slope = gaussian(5, 6, seed=3)
    (Svd.unpack(packed.with_parts(u=u, v=v)) * slope).sum().backward()
    assert torch.allclose(u.grad, slope @ v.detach().T)
    assert torch.allclose(v.grad, u.detach().T @ slope)


def test_a_product_wider_than_its_weight_is_refused():
    """The caps count the declared dtype: factors of 64 bits would take four times as much as a weight of 16."""
    packed = Svd(rank=2, force=True).pack(torch.rand(6, 5))
    wider = packed.with_parts(u=packed.parts["u"].double(), v=packed.parts["v"].double())
    with pytest.raises(MethodError, match=r"float64 .* of torch.float32"):
        unpack(wider)
    with pytest.raises(MethodError, match="factors"):
        unpack(replace(packed, dtype=torch.float16))


@pytest.mark.parametrize(
    ("view", "shape"), [("out", (7, 5, 3, 2)), ("in", (7, 5, 3, 2)), ("space", (7, 5, 3, 2)), ("in", (7, 5))]
)
def test_each_view_is_exact_at_full_rank_and_loses_its_own_singular_values(view, shape):
    weight = gaussian(*shape).double()
    values = torch.linalg.svdvals(as_matrix(weight, view))
    full = unpack(Svd(rank=99, force=True, view=view).pack(weight))
    assert torch.allclose(full, weight, atol=1e-14)
    error = squared_error(Svd(rank=2, force=True, view=view), weight)
    assert error == pytest.approx(float(values[2:].square().sum()), rel=1e-9)


def test_views_as_the_papers_write_them():
    weight = gaussian(4, 3, 2, 5)
    assert as_matrix(weight, "in")[1, 2 * 10 + 5 + 4] == weight[2, 1, 1, 4]  # C x (N kh kw)
    assert as_matrix(weight, "space")[1 * 2 + 1, 4 * 4 + 2] == weight[2, 1, 1, 4]  # (C kh) x (kw N)


@pytest.mark.parametrize("view", ["out", "in", "space"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_chain_of_layers_does_what_the_composed_weight_does(view, bias):
    layer = nn.Conv2d(5, 7, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=bias).double()
    packed = Svd(rank=3, force=True, view=view).pack(layer.weight.detach())
    x = gaussian(2, 5, 9, 11).double()
    expected = functional.conv2d(x, unpack(packed), layer.bias, layer.stride, layer.padding, layer.dilation)
    made = Svd.layers(packed, layer)
    assert torch.allclose(made(x), expected, atol=1e-12)
    assert [part.bias is not None for part in made] == [False, bias]
    assert sum(p.weight.numel() for p in made) == sum(t.numel() for t in packed.parts.values())


@pytest.mark.parametrize("view", ["out", "in"])
def test_the_chain_of_a_linear_layer(view):
    layer = nn.Linear(6, 9).double()
    packed = Svd(rank=3, view=view, force=True).pack(layer.weight.detach())
    x = gaussian(4, 6).double()
    assert torch.allclose(Svd.layers(packed, layer)(x), functional.linear(x, unpack(packed), layer.bias), atol=1e-13)


def test_the_chain_refuses_other_layers():
    packed = Svd(rank=1, view="in").pack(gaussian(8, 4, 3, 3))
    with pytest.raises(MethodError, match="groups = 1"):
        Svd.layers(packed, nn.Conv2d(8, 8, 3, groups=2))
    with pytest.raises(MethodError, match="the layer's weight"):
        Svd.layers(packed, nn.Conv2d(4, 9, 3))
    with pytest.raises(MethodError, match="ReLU"):
        Svd.layers(packed, nn.ReLU())


@pytest.mark.parametrize("view", ["out", "in", "space"])
@pytest.mark.parametrize("axis", range(4))
def test_cutting_indices_keeps_the_values_of_the_others(view, axis):
    packed = Svd(rank=2, force=True, view=view).pack(gaussian(6, 5, 4, 3))
    kept = torch.tensor([0, 2])
    whole = unpack(packed).index_select(axis, kept)
    assert torch.allclose(unpack(take(packed, axis, kept)), whole, atol=1e-6)


def test_rules():
    planted = gaussian(40, 3) @ gaussian(3, 60, seed=1) * 10 + 0.01 * gaussian(40, 60, seed=2)
    assert Svd(rule="evbmf").pack(planted).parts["u"].shape == (40, 3)
    assert Svd(rule="ratio", ratio=0.25).pack(planted).parts["u"].shape == (40, 6)
    for wrong in ({"rule": "best"}, {"view": "side"}, {"ratio": 0}):
        with pytest.raises(MethodError):
            Svd(**wrong)
    with pytest.raises(MethodError, match="four axes"):
        Svd(view="space").pack(gaussian(4, 4))
