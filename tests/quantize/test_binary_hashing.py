"""Binary hashing: falling objective, BWN where the inputs are white, the best of all signs in small cases."""

import itertools

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.observe.collect import collect
from lilliput.quantize.binary import Binary
from lilliput.quantize.binary_hashing import BinaryHashing, fitted
from lilliput.testing.spread import gaussian


def loss(rows, gram, signs, scale):
    rest = rows - signs * scale[:, None]
    return ((rest @ gram) * rest).sum(1)


def correlated(n, seed):
    mixed = gaussian(40, n, seed=seed).double() @ (gaussian(n, n, seed=seed + 1).double() * 5)
    return mixed.T @ mixed


def test_white_inputs_give_bwn():
    w = gaussian(5, 30).double()
    signs, scale = fitted(w, 3 * torch.eye(30, dtype=torch.float64), 5)
    assert torch.equal(signs, torch.where(w >= 0, 1.0, -1.0).double())
    assert torch.allclose(scale, w.abs().mean(1))


def test_the_objective_never_rises():
    w, gram = gaussian(6, 24).double(), correlated(24, 3)
    course = torch.stack([loss(w, gram, *fitted(w, gram, sweeps)) for sweeps in range(6)])
    plain = loss(w, gram, torch.where(w >= 0, 1.0, -1.0).double(), w.abs().mean(1))
    assert bool((course[0] <= plain + 1e-9).all())
    assert bool((course[1:] <= course[:-1] + 1e-9).all())
    assert float(course[-1].sum()) < 0.8 * float(plain.sum())


@pytest.mark.parametrize("seed", range(3))
def test_each_step_of_the_descent_by_hand(seed):
    """The paper's steps written out, the objective looked at after each: it never rises, and the end is the same."""
    w, gram = gaussian(1, 9, seed=seed).double(), correlated(9, seed + 10)
    b, course = torch.where(w >= 0, 1.0, -1.0).double(), []
    q = w[0] @ gram
    for _ in range(4):
        a = float(q @ b[0]) / float(b[0] @ gram @ b[0])
        course.append(float(loss(w, gram, b, torch.tensor([a]))))
        for j in range(9):
            others = sum(float(gram[j, k] * b[0, k]) for k in range(9) if k != j)
            wanted = a * float(q[j]) - a * a * others
            b[0, j] = b[0, j] if wanted == 0 else (1.0 if wanted > 0 else -1.0)
            course.append(float(loss(w, gram, b, torch.tensor([a]))))
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(course))
    signs, scale = fitted(w, gram, 4)
    assert torch.equal(signs, b)
    assert float(loss(w, gram, signs, scale)) <= course[-1] + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_near_the_best_of_all_signs(seed):
    w, gram = gaussian(1, 9, seed=seed).double(), correlated(9, seed + 10)
    best = float("inf")
    for pattern in itertools.product((-1.0, 1.0), repeat=9):
        b = torch.tensor([pattern], dtype=torch.float64)
        a = ((w @ gram) * b).sum(1) / ((b @ gram) * b).sum(1)
        best = min(best, float(loss(w, gram, b, a)))
    found = float(loss(w, gram, *fitted(w, gram, 20)))
    plain = float(loss(w, gram, torch.where(w >= 0, 1.0, -1.0).double(), w.abs().mean(1)))
    assert best - 1e-12 <= found <= plain + 1e-12
    assert found - best <= 0.5 * (plain - best) + 1e-12


@pytest.mark.parametrize("layer", [nn.Linear(12, 5), nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 3, groups=2)], ids=repr)
def test_outputs_of_a_layer_are_kept_better_than_by_bwn(layer):
    shape = (64, 12) if isinstance(layer, nn.Linear) else (8, layer.in_channels, 7, 7)
    mix = gaussian(shape[1], shape[1], seed=7) * 10
    inputs = torch.einsum("nc...,cd->nd...", torch.randn(shape, generator=torch.Generator().manual_seed(1)), mix)
    stats = collect(layer, {"weight": BinaryHashing.needs}, [inputs])["weight"]
    expected, w = layer(inputs).detach(), layer.weight.detach().clone()
    errors = []
    for packed in (BinaryHashing().pack(w, stats), Binary().pack(w)):
        with torch.no_grad():
            layer.weight.copy_(unpack(packed))
        errors.append(float((layer(inputs) - expected).square().sum().detach()))
    assert errors[0] < errors[1]


def test_stats_of_another_layer():
    stats = collect(nn.Linear(4, 2), {"weight": BinaryHashing.needs}, [torch.randn(5, 4)])["weight"]
    with pytest.raises(MethodError, match="of another layer"):
        BinaryHashing().pack(gaussian(3, 6), stats)
    with pytest.raises(MethodError, match="needs data"):
        BinaryHashing().pack(gaussian(3, 6))
