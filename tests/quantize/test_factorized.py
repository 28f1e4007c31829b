"""Ternary factors: identities of the decomposition, brute force at rank one, two layers in place of one."""

import itertools

import pytest
import torch

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.quantize.factorized import Factorized, decomposed
from lilliput.testing.spread import gaussian

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def test_each_term_lowers_the_residual_by_what_it_explains():
    w = gaussian(12, 17).double()
    x, d, y = decomposed(w, 20)
    rest = w.clone()
    for k in range(20):
        before = rest.square().sum()
        gain = (x[:, k] @ rest @ y[:, k]) ** 2 / (x[:, k].square().sum() * y[:, k].square().sum())
        rest = rest - d[k] * torch.outer(x[:, k], y[:, k])
        assert float(before - rest.square().sum()) == pytest.approx(float(gain))
        assert float(gain) > 0
        assert float(d[k]) >= 0


def test_a_planted_term_is_found():
    x, y = torch.tensor([1.0, 0, -1, 1, 0]), torch.tensor([0.0, 1, -1, 0, 1, 1])
    w = 0.7 * torch.outer(x, y)
    packed = Factorized(rank=3).pack(w)
    assert torch.allclose(unpack(packed), w)
    assert len(packed.parts["d"]) == 1


@pytest.mark.parametrize("seed", range(4))
def test_rank_one_beside_the_best_of_all(seed):
    w = gaussian(4, 4, seed=seed).double()
    vectors = torch.tensor(list(itertools.product((-1.0, 0, 1), repeat=4)), dtype=torch.float64)
    size = vectors.square().sum(1).clamp(min=1)
    best = ((vectors @ w @ vectors.T).square() / size[:, None] / size).max()
    x, d, y = decomposed(w, 1)
    found = float(w.square().sum() - (w - d * x @ y.T).square().sum())
    assert 0.7 * float(best) <= found <= float(best) + 1e-12


def test_golden_values_of_the_standard_fixture():
    """One column: the best ternary vector times its scale; four of the ten weights live."""
    packed = Factorized(rank=1).pack(W0[:, None])
    assert packed.parts["x"].flatten().abs().tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 0, 0]
    assert float(packed.parts["d"]) == pytest.approx(0.665)


def test_two_layers_and_a_scale_are_the_one():
    w = gaussian(9, 4, 3, 3)
    packed = Factorized().pack(w)
    x, d, y = (packed.parts[name].double() for name in ("x", "d", "y"))
    inputs = gaussian(2, 4, 8, 8, seed=4).double()
    inner = torch.nn.functional.conv2d(inputs, y.T.reshape(-1, 4, 3, 3)) * d[:, None, None]
    outer = torch.nn.functional.conv2d(inner, x[:, :, None, None])
    whole = torch.nn.functional.conv2d(inputs, unpack(replaced(packed)))
    assert torch.allclose(outer, whole, atol=1e-12)


def replaced(packed):
    from dataclasses import replace

    return replace(packed, dtype=torch.float64)


def test_vectors_are_refused():
    with pytest.raises(MethodError, match="two or more axes"):
        Factorized().pack(W0)
