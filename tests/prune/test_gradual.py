"""The cubic of Zhu and Gupta in closed form."""

import pytest

from lilliput.core.errors import MethodError
from lilliput.prune.gradual import Gradual
from lilliput.prune.magnitude import Magnitude


def test_closed_form():
    schedule = Gradual(initial=0.2, begin=0.1, until=0.9, rounds=8)
    target = Magnitude(sparsity=0.9)
    for progress, part in [(0.0, 0), (0.1, 0), (0.15, 0), (0.2, 1 / 8), (0.5, 0.5), (0.85, 7 / 8), (0.9, 1), (1.0, 1)]:
        expected = 0.9 + (0.2 - 0.9) * (1 - part) ** 3
        assert schedule.advance(target, progress).sparsity == pytest.approx(expected)
    assert schedule.advance(target, 0.9) is target


def test_early_removal_is_fast_and_late_removal_slow():
    target, schedule = Magnitude(sparsity=0.9), Gradual(until=1.0)
    values = [schedule.advance(target, p / 10).sparsity for p in range(11)]
    steps = [b - a for a, b in zip(values, values[1:])]  # noqa: RUF007
    assert steps == sorted(steps, reverse=True)


def test_a_target_below_the_start_and_a_quality():
    assert Gradual(initial=0.5).advance(Magnitude(sparsity=0.3), 0.0).sparsity == pytest.approx(0.3)
    assert Gradual(until=1.0).advance(Magnitude(quality=2.0), 0.5).quality == pytest.approx(1.75)
    assert Gradual().advance(Magnitude(), 0.1) == Magnitude()


@pytest.mark.parametrize("wrong", [{"begin": 0.8}, {"until": 1.5}, {"initial": 1.0}, {"rounds": 0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(MethodError):
        Gradual(**wrong)
