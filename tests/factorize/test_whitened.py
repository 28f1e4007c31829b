"""Factors for the inputs at hand: the identities of the error, and never worse than the plain SVD on them."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.core.stats import Stats
from lilliput.factorize.svd import Svd
from lilliput.factorize.whitened import Whitened
from lilliput.observe.inputs import Gram
from lilliput.testing.spread import gaussian
from lilliput.train.compress import compress


def stats_of(x):
    return Stats({"gram": Gram((x.T @ x / len(x))[None], len(x))})


def inputs(samples=200, columns=16):
    mix = gaussian(columns, columns, seed=7).double() * torch.linspace(0.1, 5, columns)
    return gaussian(samples, columns, seed=8).double() @ mix


WEIGHT = gaussian(12, 16).double()


@pytest.mark.parametrize("rank", [1, 3, 5, 11])
def test_the_error_is_what_the_singular_values_of_the_outputs_leave(rank):
    x = inputs()
    packed = Whitened(rank=rank, force=True).pack(WEIGHT, stats_of(x))
    error = float(((WEIGHT - unpack(packed)) @ x.T).square().sum())
    assert error == pytest.approx(float(torch.linalg.svdvals(WEIGHT @ x.T)[rank:].square().sum()), rel=1e-8)


@pytest.mark.parametrize("rank", [1, 4])
def test_equals_the_svd_of_the_whitened_weight(rank):
    """SVD_k(W L) L^-1 with C = L L^T."""
    x = inputs()
    factor = torch.linalg.cholesky(x.T @ x / len(x))
    left, values, right = torch.linalg.svd(WEIGHT @ factor, full_matrices=False)
    expected = (left[:, :rank] * values[:rank]) @ right[:rank] @ torch.linalg.inv(factor)
    assert torch.allclose(unpack(Whitened(rank=rank).pack(WEIGHT, stats_of(x))), expected, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_no_worse_on_the_inputs_than_plain_or_scaled(rank):
    x = inputs()
    scale = x.abs().mean(0).sqrt()
    left, values, right = torch.linalg.svd(WEIGHT * scale, full_matrices=False)
    scaled = (left[:, :rank] * values[:rank]) @ right[:rank] / scale
    plain = unpack(Svd(rank=rank).pack(WEIGHT))
    best = unpack(Whitened(rank=rank).pack(WEIGHT, stats_of(x)))
    errors = [float(((WEIGHT - other) @ x.T).norm()) for other in (best, scaled, plain)]
    assert errors[0] < min(errors[1:])


def test_inputs_alike_in_every_direction_give_the_plain_svd():
    packed = Whitened(rank=3).pack(WEIGHT, Stats({"gram": Gram(torch.eye(16)[None], 1)}))
    assert torch.allclose(unpack(packed), unpack(Svd(rank=3).pack(WEIGHT)), atol=1e-10)


def test_inputs_in_a_few_directions_alone():
    """C has rank 3, so that rank 3 keeps every output; no inverse of C is needed."""
    x = gaussian(50, 3).double() @ gaussian(3, 16, seed=3).double()
    packed = Whitened(energy=1 - 1e-9).pack(WEIGHT, stats_of(x))
    assert packed.parts["u"].shape == (12, 3)
    assert torch.allclose(unpack(packed) @ x.T, WEIGHT @ x.T, atol=1e-10)


def test_through_compress_on_a_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3))
    x = torch.randn(8, 4, 8, 8) * torch.tensor([3.0, 1, 0.1, 0.01])[:, None, None]
    recipe = Recipe((Rule("0.*", (Whitened(rank=4),)),))
    artifact = compress(model, recipe, [x])
    plain = compress(model, Recipe((Rule("0.*", (Svd(rank=4),)),)), [x])

    @torch.no_grad()
    def error(other):
        layer = nn.functional.conv2d(x, unpack(other.weights["0.weight"]), model[0].bias, padding=1)
        return float((layer - model[0](x)).square().sum())

    assert artifact.weights["0.weight"].method == "factorize/svd"
    assert error(artifact) < 0.9 * error(plain)


def test_refusals():
    with pytest.raises(MethodError, match="needs data"):
        Whitened().pack(WEIGHT)
    with pytest.raises(MethodError, match="grouped"):
        Whitened().pack(gaussian(8, 2, 3, 3), Stats({"gram": Gram(torch.zeros(2, 18, 18), 1)}))
    with pytest.raises(NotWorthwhile, match="rank 11"):
        Whitened(rank=11).pack(WEIGHT, stats_of(inputs()))
