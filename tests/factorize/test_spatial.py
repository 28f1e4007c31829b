"""Separable convolutions: the closed form's error, both schemes' equivalence to their layers, and who is better."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.packed import unpack
from lilliput.factorize.spatial import Spatial
from lilliput.factorize.spatial_own import SpatialOwn
from lilliput.solve.alternating import als, composed
from lilliput.testing.spread import gaussian


def squared_error(method, weight):
    return float((unpack(method.pack(weight)) - weight).square().sum())


@pytest.mark.parametrize("rank", [1, 2, 5, 9, 12])
def test_the_error_is_the_sum_of_the_squares_left_out(rank):
    weight = gaussian(6, 4, 3, 5).double()
    values = torch.linalg.svdvals(weight.permute(1, 2, 3, 0).reshape(12, 30))
    error = squared_error(Spatial(rank=rank, force=True), weight)
    assert error == pytest.approx(float(values[rank:].square().sum()), rel=1e-9, abs=1e-25)


def test_a_separable_kernel_is_exact():
    down, across = gaussian(2, 4, 3, 1).double(), gaussian(6, 2, 1, 3, seed=1).double()
    weight = torch.einsum("kcyo,nkox->ncyx", down, across)
    assert squared_error(Spatial(rank=2), weight) < 1e-24
    packed = Spatial(energy=1 - 1e-12).pack(weight)
    assert packed.parts["down"].shape == (2, 4, 3, 1)
    assert sum(part.numel() for part in packed.parts.values()) == 2 * 3 * (4 + 6)


def test_alternating_least_squares_never_beat_the_closed_form():
    weight = gaussian(5, 3, 3, 3).double()
    matrix = weight.permute(1, 2, 3, 0).reshape(1, 9, 15)
    best = squared_error(Spatial(rank=2, force=True), weight)
    for seed in range(5):
        start = [gaussian(1, 9, 2, seed=seed).double(), gaussian(1, 15, 2, seed=seed + 9).double()]
        errors = [float((composed(als(matrix, start, n)) - matrix).square().sum()) for n in (1, 3, 200)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] > best * (1 - 1e-9)
        assert errors[-1] < best * (1 + 1e-3)


@pytest.mark.parametrize("scheme", [Spatial, SpatialOwn])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 2)])
def test_the_layers_do_what_the_composed_weight_does(scheme, stride):
    layer = nn.Conv2d(4, 6, (3, 5), stride=stride, padding=(1, 2), dilation=(2, 1)).double()
    packed = scheme(rank=2, force=True).pack(layer.weight.detach())
    x = gaussian(2, 4, 11, 9).double()
    expected = functional.conv2d(x, unpack(packed), layer.bias, stride, layer.padding, layer.dilation)
    made = scheme.layers(packed, layer)
    assert torch.allclose(made(x), expected, atol=1e-12)
    assert sum(p.numel() for p in made.parameters()) == sum(t.numel() for t in packed.parts.values()) + 6


def test_filters_of_its_own_for_each_channel():
    """The first scheme recovers kernels that are made so, each channel with other filters."""
    mix, down, across = (
        gaussian(8, 3, 2).double(),
        gaussian(3, 2, 3, seed=1).double(),
        gaussian(3, 2, 3, seed=2).double(),
    )
    weight = torch.einsum("ncm,cmy,cmx->ncyx", mix, down, across)
    packed = SpatialOwn(rank=2, sweeps=500).pack(weight)
    assert float((unpack(packed) - weight).norm() / weight.norm()) < 1e-6
    assert sum(part.numel() for part in packed.parts.values()) == 3 * 2 * (8 + 3 + 3)


def test_own_filters_get_better_with_their_number():
    weight = gaussian(8, 3, 3, 3).double()
    errors = [squared_error(SpatialOwn(rank=m, force=True), weight) for m in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


def test_refusals():
    with pytest.raises(NotWorthwhile, match="rank 12"):
        Spatial(rank=12).pack(gaussian(6, 4, 3, 3))
    with pytest.raises(MethodError, match="out, in, height, width"):
        Spatial().pack(gaussian(6, 4))
    with pytest.raises(MethodError, match="out, in, height, width"):
        SpatialOwn().pack(gaussian(6, 4))
    with pytest.raises(NotWorthwhile, match="8 separable filters"):
        SpatialOwn(rank=8).pack(gaussian(8, 4, 3, 3))
    packed = Spatial(rank=1).pack(gaussian(6, 4, 3, 3))
    with pytest.raises(MethodError, match="don't make"):
        unpack(packed.with_parts(down=torch.zeros(2, 4, 3, 1)))
