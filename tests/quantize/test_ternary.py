"""Ternary weights: the best of all by brute force, the rule beside it, known errors on Gaussian weights."""

import itertools

import pytest
import torch

from lilliput.core.packed import unpack
from lilliput.quantize.binary import Binary
from lilliput.quantize.ternary import Ternary
from lilliput.testing.spread import gaussian

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])
EXACT, RULE = Ternary(per="tensor"), Ternary("rule", per="tensor")


def error(method, weight):
    return float((unpack(method.pack(weight)).double() - weight.double()).square().sum())


def test_golden_values_of_the_standard_fixture():
    packed = RULE.pack(W0)
    assert packed.parts["codes"].tolist() == [1, -1, 1, -1, 0, 0, 0, 1, 0, 0]
    assert float(packed.parts["scale"]) == pytest.approx(0.592)


@pytest.mark.parametrize("seed", range(4))
def test_exact_is_the_best_of_all(seed):
    w = gaussian(8, seed=seed).double()
    best = float("inf")
    for codes in itertools.product((-1.0, 0.0, 1.0), repeat=8):
        t = torch.tensor(codes, dtype=torch.float64)
        a = float(w @ t) / max(float(t @ t), 1)
        best = min(best, float((w - a * t).square().sum()))
    assert error(EXACT, w) == pytest.approx(best, rel=1e-9)


def test_known_errors_of_a_gaussian():
    """Of the variance: 0.363 with signs, 0.190 with three values; the rule is within a hundredth."""
    w = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    power = float(w.square().sum())
    assert error(Binary(), w) / power == pytest.approx(0.363, abs=0.005)
    assert error(EXACT, w) / power == pytest.approx(0.190, abs=0.003)
    assert error(EXACT, w) <= error(RULE, w) <= 1.01 * error(EXACT, w)


@pytest.mark.parametrize(("name", "ratio"), [("uniform", 2 / 3), ("normal", 0.766), ("laplace", 1.0)])
def test_ideal_thresholds(name, ratio):
    """The best threshold in units of mean|w|."""
    unit = torch.rand(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = {"uniform": unit, "laplace": -torch.log1p(-unit), "normal": torch.special.ndtri(0.5 + unit / 2)}[name]
    codes = EXACT.pack(w).parts["codes"]
    threshold = (w[codes == 0].abs().max() + w[codes != 0].abs().min()) / 2
    assert float(threshold / w.abs().mean()) == pytest.approx(ratio, rel=0.03)


def test_rows_are_each_at_their_best():
    w = gaussian(7, 50) * torch.logspace(-2, 1, 7)[:, None]
    by_rows = Ternary().pack(w)
    for row, value in zip(w, unpack(by_rows)):
        assert torch.allclose(unpack(EXACT.pack(row)), value)
    assert error(Ternary(), w) < error(EXACT, w)


@pytest.mark.parametrize("method", [EXACT, RULE, Ternary()])
def test_invariants(method):
    w = gaussian(9, 30)
    once = unpack(method.pack(w))
    assert torch.equal(unpack(method.pack(-w)), -once)
    assert torch.allclose(unpack(method.pack(5 * w)), 5 * once, rtol=1e-6)
    # Once more the few that are left have the same magnitude, so all of them stay.
    assert torch.allclose(unpack(method.pack(once)), once, rtol=1e-6)
