"""Discriminant analysis: separable and uninformative channels, regression as oracle, invariance."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.observe.collect import collect
from lilliput.prune.lda import LDA


def scores(values, target, **options):
    """Scores of channels whose activations are these values, collected batch by batch."""
    layer = nn.Linear(values.shape[1], values.shape[1], bias=False)
    layer.weight.data = torch.eye(values.shape[1])
    stats = collect(layer, {"weight": LDA.needs}, list(zip(values.split(7), target.split(7))))["weight"]
    return LDA(**options).score(layer.weight.detach(), stats).sum(1)


def test_separable_is_one_and_uninformative_near_nothing():
    target = torch.arange(3).repeat(200)
    values = torch.stack(
        [target.float(), torch.randn(600, generator=torch.Generator().manual_seed(0)), target * 0.0], 1
    )
    found = scores(values, target)
    assert float(found[0]) == pytest.approx(1)
    assert float(found[1]) < 8 * 2 / 599
    assert float(found[2]) == 0
    assert abs(float(scores(values, target, estimator="icc1")[1])) < 0.02


def test_is_the_r_squared_of_a_regression_on_the_classes():
    target = torch.randint(4, (80,), generator=torch.Generator().manual_seed(1))
    values = torch.randn(80, 5) + target[:, None] * torch.linspace(0, 1, 5)
    wide = values.double()
    design = torch.nn.functional.one_hot(target).double()
    fitted = design @ torch.linalg.lstsq(design, wide).solution
    expected = 1 - (wide - fitted).square().sum(0) / (wide - wide.mean(0)).square().sum(0)
    torch.testing.assert_close(scores(values, target).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores(3 * values - 7, target), scores(values, target), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("target", [torch.zeros(6, dtype=torch.int64), torch.arange(6)])
def test_classes_must_vary_and_hold_examples(target):
    with pytest.raises(MethodError, match="give more data"):
        scores(torch.randn(6, 2), target)
