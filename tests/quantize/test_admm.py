"""ADMM: projections by brute force, known errors, the splitting on a convex problem, the extragradient step."""

import itertools
from dataclasses import replace

import pytest
import torch

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.quantize.admm import Admm, Splitting, alternating_levels, exact_levels, extragradient
from lilliput.quantize.binary import Binary
from lilliput.quantize.ternary import Ternary
from lilliput.testing.spread import gaussian

SETS = {
    "binary": Admm(top=1, zero=False),
    "ternary": Admm(top=1),
    "two": Admm(top=2),
    "four": Admm(top=4),
    "eight": Admm(top=8),
}
W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def best_of_all(w, magnitudes):
    """The least squared error over all codes, by trying them."""
    levels = sorted({s * m for m in magnitudes for s in (1, -1)})
    q = torch.tensor(list(itertools.product(levels, repeat=len(w))), dtype=torch.float64)
    power = q.square().sum(1)
    inner = (q @ w).clamp(min=0)  # the scale is positive
    return float(w.square().sum() - (inner.square() / power.clamp(min=1)).max())


def error(method, w):
    return float((unpack(method.pack(w)).double() - w.double()).square().sum())


@pytest.mark.parametrize("levels", SETS)
@pytest.mark.parametrize("seed", range(4))
def test_exact_projection_is_the_best_of_all(levels, seed):
    w = gaussian(5, seed=seed).double()
    assert error(SETS[levels], w) == pytest.approx(best_of_all(w, SETS[levels].levels), rel=1e-9)


def test_golden_values_of_the_standard_fixture():
    w = W0[W0 != 0].double()
    for method in SETS.values():
        codes = method.pack(W0).parts["codes"]
        assert float(codes.abs().max()) <= method.top
        assert int(codes[6]) == 0
    assert error(SETS["ternary"], W0) == pytest.approx(error(Ternary(per="tensor"), W0))
    assert error(SETS["binary"], w) == pytest.approx(error(Binary(), w))


def test_exact_is_never_worse_than_turns_and_often_better():
    rows = gaussian(300, 16).double().abs()
    lost = []
    for find in (exact_levels, alternating_levels):
        q = find(rows, SETS["four"].levels)
        lost.append(rows.square().sum(1) - (rows * q).sum(1).square() / q.square().sum(1).clamp(min=1))
    assert bool((lost[0] <= lost[1] + 1e-12).all())
    assert int((lost[0] < lost[1] - 1e-12).sum()) > 150


def test_known_errors_of_a_gaussian():
    """0.363, 0.190, 0.082 and 0.0476 of the variance."""
    w = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    power = float(w.square().sum())
    for levels, expected in (("binary", 0.363), ("ternary", 0.190), ("two", 0.082), ("four", 0.0476)):
        assert error(SETS[levels], w) / power == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("levels", ["ternary", "two", "four", "eight"])
def test_invariants(levels):
    w = gaussian(12, 20)
    once = unpack(SETS[levels].pack(w))
    assert torch.equal(unpack(SETS[levels].pack(-w)), -once)
    assert torch.allclose(unpack(SETS[levels].pack(3 * w)), 3 * once, rtol=1e-6)
    assert torch.allclose(unpack(SETS[levels].pack(once)), once, rtol=1e-6)
    assert error(replace(SETS[levels], per="row"), w) <= error(SETS[levels], w)


def test_splitting_on_a_quadratic_comes_near_the_best_of_all():
    """min (w - c)^T H (w - c) over a q: not below the best of all codes, and better than projecting the minimum."""
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    h, c = root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64), gaussian(6, seed=5).double() * 10

    def f(w):
        return float((w - c) @ h @ (w - c))

    q = torch.tensor(list(itertools.product((-1, 0, 1), repeat=6)), dtype=torch.float64)[1:]
    scale = ((q @ h @ c) / ((q @ h) * q).sum(1)).clamp(min=0)
    best = min(f(a * row) for a, row in zip(scale, q))
    w = torch.nn.Parameter(c.clone())
    split = Splitting([w], SETS["ternary"], rho=20.0)
    solve = torch.linalg.inv(2 * h + split.rho * torch.eye(6, dtype=torch.float64))
    gaps, values = [], []
    for _ in range(300):
        with torch.no_grad():
            w.copy_(solve @ (2 * h @ c + split.rho * (split.targets[0] - split.duals[0])))
        split.update()
        gaps.append(split.gap())
        values.append(f(split.targets[0]))
    split.finish()
    assert torch.equal(w.detach(), split.targets[0])
    assert best - 1e-9 <= min(values) <= f(unpack(SETS["ternary"].pack(c)))
    assert gaps[-1] < 0.05 * max(gaps)


def test_the_penalty_is_that_of_the_augmented_lagrangian():
    w = torch.nn.Parameter(gaussian(30))
    split = Splitting([w], SETS["two"], rho=0.5)
    split.update()
    split.loss().backward()
    assert torch.allclose(w.grad, 0.5 * (w.detach() - split.targets[0] + split.duals[0]))


def test_extragradient_converges_where_the_gradient_runs_away():
    """min over x, max over y of x y."""

    def run(predict):
        x, y = torch.tensor([1.0]), torch.tensor([1.0])
        for _ in range(200):
            extragradient([x, y], lambda: [y.clone(), -x.clone()], predict, 0.3)
        return float(x.square() + y.square())

    assert run(0.3) < 1e-3
    assert run(0.0) > 100


@pytest.mark.parametrize("settings", [{"top": 3}, {"top": 0}, {"top": 128}, {"top": 2, "zero": False}])
def test_settings_that_make_no_set_are_refused(settings):
    with pytest.raises(MethodError, match="top = "):
        Admm(**settings)
