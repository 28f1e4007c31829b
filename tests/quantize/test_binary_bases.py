"""Sums of sign patterns: optimal parts, error that falls, the exact form of what has it."""

import itertools

import pytest
import torch

from lilliput.core.packed import unpack
from lilliput.quantize.binary import Binary
from lilliput.quantize.binary_bases import BinaryBases, fitted
from lilliput.testing.spread import gaussian

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def error(method, weight):
    return float((unpack(method.pack(weight)).double() - weight.double()).square().sum())


def test_one_pattern_is_bwn():
    w = gaussian(6, 40)
    assert torch.allclose(unpack(BinaryBases(bases=1).pack(w)), unpack(Binary().pack(w)), rtol=1e-6)
    assert float(BinaryBases(bases=1).pack(W0).parts["scale"]) == pytest.approx(0.3095)


def test_rounds_never_make_it_worse_and_more_patterns_are_better():
    w = gaussian(8, 200).double()
    for bases in (2, 3, 4):
        errors = [error(BinaryBases(bases=bases, rounds=rounds), w) for rounds in range(8)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.9 * errors[0]
        assert errors[-1] < error(BinaryBases(bases=bases - 1), w)


def test_signs_and_magnitudes_are_each_at_their_best():
    """At the end no magnitude is better for the signs, and no signs for the magnitudes."""
    w = gaussian(1, 60).double()
    signs, scale = fitted(w, 2, 200)
    b = signs[:, 0]
    best = torch.linalg.lstsq(b.T, w.T).solution.flatten()
    assert torch.allclose(best, scale[:, 0], atol=1e-6)
    sums = torch.tensor([s * float(scale[0]) + t * float(scale[1]) for s, t in itertools.product((1, -1), repeat=2)])
    nearest = (w.T - sums).abs().min(1).values
    assert torch.allclose(((b * scale).sum(0) - w[0]).abs(), nearest, atol=1e-6)


def test_two_patterns_come_near_the_best_of_all():
    """All pairs of sign patterns of six weights, each with its best magnitudes."""
    w = gaussian(6, seed=3).double()
    best = float("inf")
    patterns = [torch.tensor(p, dtype=torch.float64) for p in itertools.product((-1.0, 1.0), repeat=6)]
    for a, b in itertools.combinations(patterns[:32], 2):
        matrix = torch.stack([a, b], 1)
        best = min(best, float((matrix @ torch.linalg.lstsq(matrix, w[:, None]).solution - w[:, None]).square().sum()))
    found = error(BinaryBases(bases=2, rounds=50), w)
    assert best - 1e-12 <= found <= 2 * best


def test_what_has_the_form_comes_back():
    signs = torch.where(gaussian(3, 4, 50) > 0, 1.0, -1.0)
    w = (signs * torch.tensor([4.0, 2.0, 1.0])[:, None, None]).sum(0)
    assert torch.allclose(unpack(BinaryBases(bases=3).pack(w)), w, atol=1e-5)
