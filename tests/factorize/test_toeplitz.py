"""Low displacement rank: what has it, that it is rebuilt exactly, and products by FFT."""

import pytest
import torch

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.packed import unpack
from lilliput.factorize.toeplitz import Toeplitz, displacement, matrices
from lilliput.testing.spread import gaussian


def toeplitz(n, seed=0):
    values = gaussian(2 * n - 1, seed=seed).double()
    places = torch.arange(n)
    return values[places[:, None] - places + n - 1]


def rank(matrix):
    values = torch.linalg.svdvals(displacement(matrix))
    return int((values > 1e-9 * values[0]).sum())


def shift(n, corner):
    moved = torch.zeros(n, n).double()
    moved[range(1, n), range(n - 1)] = 1
    moved[0, n - 1] = corner
    return moved


def test_displacement_is_what_the_formula_says():
    matrix = gaussian(6, 6).double()
    assert torch.allclose(displacement(matrix), shift(6, 1) @ matrix - matrix @ shift(6, -1))


def test_matrices_are_sums_of_products_of_circulants():
    """1/2 sum_i Z_1(g_i) Z_-1(J h_i), column by column."""
    g, h = gaussian(2, 5).double(), gaussian(2, 5, seed=1).double()

    def krylov(corner, vector):
        columns = [vector]
        for _ in range(4):
            columns.append(shift(5, corner) @ columns[-1])
        return torch.stack(columns, 1)

    expected = sum(krylov(1, a) @ krylov(-1, b.flip(0)) for a, b in zip(g, h)) / 2
    assert torch.allclose(matrices(g[None], h[None])[0], expected)


@pytest.mark.parametrize("r", [1, 2, 4])
@pytest.mark.parametrize("n", [5, 8])
def test_what_is_built_has_its_displacement(n, r):
    g, h = gaussian(r, n).double(), gaussian(r, n, seed=1).double()
    built = matrices(g[None], h[None])[0]
    assert torch.allclose(displacement(built), g.T @ h, atol=1e-12)
    assert rank(built) == r


def test_ranks_of_known_families():
    own = toeplitz(8)
    assert rank(own) <= 2
    assert rank(torch.linalg.inv(own + torch.eye(8))) <= 2
    low = gaussian(8, 2).double() @ gaussian(2, 8, seed=1).double()
    assert rank(low) <= 4
    assert rank(gaussian(8, 8).double()) == 8


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_exact_at_full_rank(n):
    weight = gaussian(n, n).double()
    assert torch.allclose(unpack(Toeplitz(rank=n, force=True).pack(weight)), weight, atol=1e-12)


@pytest.mark.parametrize("n", [7, 16])
def test_toeplitz_matrices_are_exact_at_rank_two(n):
    weight = toeplitz(n)
    packed = Toeplitz(rank=2).pack(weight)
    assert torch.allclose(unpack(packed), weight, atol=1e-12)
    assert sum(part.numel() for part in packed.parts.values()) == 4 * n


@pytest.mark.parametrize("shape", [(6, 6), (6, 15), (15, 6), (9, 2, 3, 2), (1, 4), (4, 1)])
def test_products_by_fft(shape):
    weight = gaussian(*shape).double()
    packed = Toeplitz(rank=3, force=True).pack(weight)
    matrix = unpack(packed).flatten(1)
    x = gaussian(2, 5, matrix.shape[1]).double()
    assert torch.allclose(Toeplitz.multiply(packed, x), x @ matrix.T, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 13), (13, 5)])
def test_other_shapes_are_tiled(shape):
    weight = gaussian(*shape).double()
    packed = Toeplitz(rank=5, force=True).pack(weight)
    assert packed.parts["g"].shape == (3, 5, 5)
    assert torch.allclose(unpack(packed), weight, atol=1e-12)


def test_gradients_are_those_of_differences():
    g, h = (gaussian(2, 2, 5, seed=s).double().requires_grad_() for s in (0, 1))
    assert torch.autograd.gradcheck(matrices, (g, h))


def test_the_multiple_is_the_best():
    weight = gaussian(12, 12).double()
    made = unpack(Toeplitz(rank=2).pack(weight))
    error = float((made - weight).square().sum())
    assert error < float(weight.square().sum())
    for factor in (0.9, 1.1):
        assert float((factor * made - weight).square().sum()) > error


def test_refusals():
    with pytest.raises(NotWorthwhile, match="displacement rank 7"):
        Toeplitz(rank=7).pack(gaussian(12, 12))
    with pytest.raises(MethodError, match="two or more axes"):
        Toeplitz().pack(gaussian(12))
    packed = Toeplitz(rank=2).pack(gaussian(12, 12))
    with pytest.raises(MethodError, match="don't make"):
        unpack(packed.with_parts(g=torch.zeros(1, 13, 12), h=torch.zeros(1, 13, 12)))
