"""Random projections: the best factors where the spectrum falls, near them where it doesn't."""

import pytest
import torch

from lilliput.solve import low_rank
from lilliput.solve.low_rank import projected_svd, truncated_svd
from lilliput.testing.spread import gaussian


def falling(rows, columns, power):
    left = torch.linalg.qr(gaussian(rows, min(rows, columns)).double())[0]
    right = torch.linalg.qr(gaussian(columns, min(rows, columns), seed=1).double())[0]
    return left * torch.arange(1, min(rows, columns) + 1).double() ** -power @ right.T


@pytest.mark.parametrize("shape", [(80, 300), (300, 80)])
@pytest.mark.parametrize(("power", "excess"), [(0.0, 1.02), (0.5, 1.005), (1.0, 1.0005)])
def test_error_beside_the_best(shape, power, excess):
    matrix = falling(*shape, power)
    u, s, v = projected_svd(matrix, 12)
    best = torch.linalg.svdvals(matrix)[12:].square().sum()
    error = (matrix - u * s @ v).square().sum()
    assert float(best) * (1 - 1e-9) <= float(error) <= float(best) * excess
    eye = torch.eye(12, dtype=torch.float64)
    assert torch.allclose(u.T @ u, eye)
    assert torch.allclose(v @ v.T, eye)
    assert torch.equal(s, s.sort(descending=True).values)


def test_a_matrix_of_the_rank_is_recovered_and_always_the_same(monkeypatch):
    matrix = (gaussian(90, 5) @ gaussian(5, 200, seed=1)).double()
    monkeypatch.setattr(low_rank, "LARGE", 100)
    one, other = truncated_svd(matrix, 5), truncated_svd(matrix, 5)
    assert torch.allclose(one[0] * one[1] @ one[2], matrix)
    assert all(torch.equal(a, b) for a, b in zip(one, other))


def test_small_matrices_and_large_ranks_are_decomposed_whole():
    matrix = gaussian(20, 30).double()
    u, s, v = truncated_svd(matrix, 7)
    assert torch.allclose(s, torch.linalg.svdvals(matrix)[:7])
    assert (u.shape, v.shape) == ((20, 7), (7, 30))
