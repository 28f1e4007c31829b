"""Correlation: r against numpy, streaming, invariance, and how many of which half are kept."""

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.stats import Stats
from lilliput.observe import correlation as observed
from lilliput.observe.collect import collect
from lilliput.prune.correlation import Correlation
from lilliput.prune.sparse import mask_of


def matrix(layer, data):
    return collect(layer, {"weight": Correlation.needs}, data)["weight"].values["correlation"].matrix


@pytest.mark.parametrize("size", [3, 50])
def test_linear_is_numpys_corrcoef(size):
    layer, value = nn.Linear(4, 3).double(), torch.randn(50, 4, dtype=torch.float64) + 100
    output = layer(value).detach()
    expected = np.corrcoef(value.T.numpy(), output.T.numpy())[4:, :4]
    found = matrix(layer, value.split(size))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)
    assert float(found.abs().max()) <= 1


def test_convolution_is_the_mean_over_places():
    layer, value = nn.Conv1d(2, 4, 3, groups=2).double(), torch.randn(40, 2, 6, dtype=torch.float64)
    output = layer(value).detach()
    found = matrix(layer, value.split(11))
    for channel in range(4):
        for column in range(3):
            pairs = [np.corrcoef(value[:, channel // 2, m + column], output[:, channel, m])[0, 1] for m in range(4)]
            assert float(found[channel, column]) == pytest.approx(np.abs(pairs).mean(), abs=1e-9)


def test_identical_neurons_are_one_independent_ones_nothing():
    layer, value = nn.Linear(2, 2, bias=False), torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    layer.weight.data = torch.eye(2)
    found = matrix(layer, [value])
    torch.testing.assert_close(found.diagonal(), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
    assert abs(float(found[0, 1])) < 0.06
    torch.testing.assert_close(matrix(layer, [3 * value + 5]), found, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("sparsity", "strong"), [(0.5, 0.75), (0.8, 0.75), (0.6, 1.0), (0.2, 0.75)])
def test_halves_give_their_parts(sparsity, strong):
    """400 positive and 200 negative: of each list S * K are kept, `strong` of them from its stronger half."""
    generator = torch.Generator().manual_seed(2)
    values = torch.cat([torch.rand(400, generator=generator), -torch.rand(200, generator=generator)])
    values = values[torch.randperm(600, generator=generator)].reshape(20, 30)
    stats = Stats({"correlation": observed.Correlation(values, 10)})
    method = Correlation(sparsity=sparsity, strong=strong)
    kept = mask_of(method.pack(torch.ones(20, 30), stats))
    assert int(kept.sum()) == 600 - round(sparsity * 600)
    for own in (values >= 0, values < 0):
        count = int(own.sum())
        middle = values[own].abs().median()
        upper = int((kept & own & (values.abs() > middle)).sum())
        asked = (1 - sparsity) * count
        assert int((kept & own).sum()) == pytest.approx(asked, abs=2)
        assert upper == pytest.approx(min(strong * asked, count / 2), abs=2)
    other = mask_of(Correlation(sparsity=sparsity, strong=strong, seed=1).pack(torch.ones(20, 30), stats))
    assert strong == 1.0 or not torch.equal(other, kept)


def test_bad_input_is_refused():
    one = collect(nn.Linear(3, 2), {"weight": Correlation.needs}, torch.randn(1, 3))["weight"]
    with pytest.raises(MethodError, match="give more data"):
        Correlation(sparsity=0.5).pack(torch.ones(2, 3), one)
    with pytest.raises(MethodError, match="strong"):
        Correlation(strong=0.2)
