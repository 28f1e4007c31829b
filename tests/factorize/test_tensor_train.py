"""Tensor train: exactness, error bound, counts of the paper, and products core by core."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.packed import Packed, unpack
from lilliput.factorize.tensor_train import TensorTrain, even, train, unfolded
from lilliput.testing.spread import gaussian

FULL = TensorTrain(rank=0, force=True)


@pytest.mark.parametrize("shape", [(12, 18), (7, 5), (8, 12, 3), (8, 6, 3, 2), (4, 4, 1, 1)])
@pytest.mark.parametrize("cores", [1, 2, 3])
def test_exact_with_full_ranks(shape, cores):
    weight = gaussian(*shape).double()
    packed = TensorTrain(rank=0, cores=cores, force=True).pack(weight)
    assert torch.allclose(unpack(packed), weight, atol=1e-13)


@pytest.mark.parametrize("rank", [1, 2, 4, 7])
def test_the_error_is_within_the_sum_of_what_was_left_out(rank):
    """Each SVD leaves out no more than that of the same unfolding of the tensor itself (Oseledets 2011)."""
    weight = gaussian(12, 18).double()
    value, shapes = unfolded(weight, even(12, 3), even(18, 3))
    flat, left, bound, largest = value.flatten(), 1, 0.0, 0.0
    for m, n in shapes[:-1]:
        left *= m * n
        tail = float(torch.linalg.svdvals(flat.reshape(left, -1))[rank:].square().sum())
        bound, largest = bound + tail, max(largest, tail)
    error = float((unpack(TensorTrain(rank=rank, force=True).pack(weight)) - weight).square().sum())
    assert largest * (1 - 1e-9) <= error <= bound * (1 + 1e-9)


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_the_energy_is_kept(energy):
    weight = gaussian(24, 36).double()
    packed = TensorTrain(rank=0, energy=energy, force=True).pack(weight)
    error = float((unpack(packed) - weight).square().sum())
    assert error <= (1 - energy) * float(weight.square().sum()) * (1 + 1e-9)
    assert packed.parts["cores"].numel() < FULL.pack(weight).parts["cores"].numel()


def test_ranks_of_one_are_a_kronecker_product():
    first, second, third = gaussian(2, 3), gaussian(3, 2, seed=1), gaussian(2, 2, seed=2)
    weight = torch.kron(torch.kron(first, second), third).double()
    packed = TensorTrain(rank=1, rows="2x3x2", columns="3x2x2").pack(weight)
    assert torch.allclose(unpack(packed), weight, atol=1e-12)
    assert packed.parts["cores"].numel() == 6 + 6 + 4


@pytest.mark.parametrize(
    ("rows", "columns", "rank", "numbers"),
    [
        ("4x4x4x4x4x4", "2x7x8x8x7x4", 1, 144),
        ("4x4x4x4x4x4", "2x7x8x8x7x4", 2, 528),
        ("4x4x4x4x4x4", "2x7x8x8x7x4", 4, 2016),
        ("4x4x4x4x4x4", "4x4x4x4x4x4", 4, 1152),
    ],
)
def test_counts_of_the_paper(rows, columns, rank, numbers):
    """VGG's first and second fully-connected layer, Novikov et al."""
    m, n = ([int(x) for x in text.split("x")] for text in (rows, columns))
    assert (math.prod(m), math.prod(n)) in {(4096, 25088), (4096, 4096)}
    ranks = [1, *[rank] * 5, 1]
    count = sum(a * i * j * b for a, i, j, b in zip(ranks, m, n, ranks[1:]))
    assert count == numbers
    packed = Packed(
        "factorize/tensor_train",
        (math.prod(m), math.prod(n)),
        torch.float32,
        {"cores": torch.ones(count)},
        {"rows": rows, "columns": columns, "ranks": "x".join(map(str, ranks))},
    )
    x = torch.rand(2, math.prod(n))
    # All cores of ones: each entry is the number of paths, rank^5.
    assert torch.allclose(TensorTrain.multiply(packed, x)[:, 7], x.sum(1) * rank**5, rtol=1e-4)


def test_the_product_core_by_core():
    weight = gaussian(12, 18).double()
    packed = TensorTrain(rank=3, force=True).pack(weight)
    x = gaussian(2, 5, 18).double()
    assert torch.allclose(TensorTrain.multiply(packed, x), x @ unpack(packed).T, atol=1e-12)


@pytest.mark.parametrize("window", [(3, 2), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_convolution_core_by_core(window, bias):
    layer = nn.Conv2d(6, 8, window, stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=bias).double()
    packed = TensorTrain(rank=3, force=True).pack(layer.weight.detach())
    x = gaussian(2, 6, 7, 8).double()
    expected = functional.conv2d(x, unpack(packed), layer.bias, layer.stride, layer.padding, layer.dilation)
    assert torch.allclose(TensorTrain.convolve(packed, layer, x), expected, atol=1e-12)


def test_gradients_reach_all_cores():
    packed = TensorTrain(rank=2).pack(gaussian(12, 18).double())
    cores = packed.parts["cores"].clone().requires_grad_()
    unpack(packed.with_parts(cores=cores)).square().sum().backward()
    assert bool((cores.grad != 0).all())


def test_cores_are_of_one_size():
    cores = train(*unfolded(gaussian(64, 64).double() * 1e6, even(64, 3), even(64, 3)), 4, 1.0)
    means = [float(core.square().mean()) for core in cores]
    assert max(means) == pytest.approx(min(means))


def test_refusals():
    with pytest.raises(MethodError, match="don't make"):
        TensorTrain(rows="3x4", columns="2x9").pack(gaussian(12, 20))
    with pytest.raises(MethodError, match="4x4x8"):
        TensorTrain(rows="3,4")
    with pytest.raises(NotWorthwhile, match="ranks"):
        TensorTrain(rank=0).pack(gaussian(12, 18))
    packed = TensorTrain(rank=2).pack(gaussian(12, 18))
    with pytest.raises(MethodError, match="more than"):
        unpack(
            Packed(packed.method, packed.shape, packed.dtype, packed.parts, {**packed.settings, "ranks": "1x999x2x1"})
        )
