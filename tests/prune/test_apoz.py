"""Average percentage of zeros: exact fractions, batches, and channels that are never heard."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.core.stats import Stats
from lilliput.observe.collect import collect
from lilliput.observe.outputs import Outputs
from lilliput.prune.apoz import APoZ
from lilliput.prune.sparse import mask_of


def network():
    """Outputs are the input's three channels as they are, through a ReLU."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU())
    model[0].weight.data = torch.eye(3)[:, :, None, None]
    return model


def test_exact_fractions_by_hand_and_over_batches():
    value = torch.ones(2, 3, 4, 4)
    for channel, zeros in enumerate((11, 12, 14)):
        flat = value[:, channel].flatten()
        flat[:zeros] = -1.0
        value[:, channel] = flat.reshape(2, 4, 4)
    for data in (value.split(1), [value]):
        stats = collect(network(), {"0.weight": APoZ.needs}, data)["0.weight"]
        scores = APoZ().score(network()[0].weight.detach(), stats).sum((1, 2, 3))
        torch.testing.assert_close(scores, 1 - torch.tensor([11.0, 12.0, 14.0]) / 32)


def test_silent_channels_go_first_and_nobody_hears_it():
    model, value = network(), torch.rand(4, 3, 5, 5) + 0.1
    value[:, 1] *= -1
    stats = collect(model, {"0.weight": APoZ.needs}, [value])["0.weight"]
    scores = APoZ().score(model[0].weight.detach(), stats).flatten(1).sum(1)
    assert scores.tolist() == pytest.approx([1.0, 0.0, 1.0])
    before = model(value)
    model[0].weight.data = unpack(APoZ(sparsity=0.3).pack(model[0].weight.detach(), stats))
    assert not bool(model[0].weight[1].any())
    assert torch.equal(model(value), before)


def test_the_papers_rule_is_mean_plus_deviations():
    zeros = torch.tensor([10, 10, 10, 10, 90])
    stats = Stats({"outputs": Outputs(100, zeros, torch.zeros(5), torch.zeros(5))})
    weight = torch.ones(5, 2)
    assert mask_of(APoZ(deviations=1.0).pack(weight, stats)).any(1).tolist() == [True] * 4 + [False]
    assert bool(mask_of(APoZ(deviations=3.0).pack(weight, stats)).all())
    same = Stats({"outputs": Outputs(100, torch.full((5,), 50), torch.zeros(5), torch.zeros(5))})
    first = APoZ(deviations=1.0).pack(weight, same)
    assert bool(mask_of(first).all())
    with pytest.raises(MethodError, match="not both"):
        APoZ(deviations=1.0, sparsity=0.5)
    with pytest.raises(MethodError, match="stats of 5 channels"):
        APoZ(sparsity=0.5).pack(torch.ones(4, 2), stats)
