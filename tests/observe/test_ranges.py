"""Ranges and histograms of what goes into a layer."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import DataError
from lilliput.observe.collect import collect
from lilliput.observe.ranges import HALF, HistogramOf


def test_ranges_of_every_kind_of_layer():
    """Transposed convolutions and recurrent layers, whose output is no tensor, included; padding isn't counted."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 2, 2)
            self.rnn = nn.LSTM(5, 3, batch_first=True)
            self.fc = nn.Linear(3, 1)

        def forward(self, x):
            return self.fc(self.rnn(self.up(x))[0])

    torch.manual_seed(0)
    data = [torch.rand(3, 2, 4) + 1, torch.rand(3, 2, 4) - 5]
    names = ("up.weight", "rnn.weight_ih_l0", "fc.weight")
    stats = collect(Net(), {name: frozenset({"range", "histogram"}) for name in names}, data)
    found = stats["up.weight"].values["range"]
    assert (found.low, found.high) == (float(data[1].min()), float(data[0].max()))
    assert found.count == 48
    for name in names:
        assert int(stats[name].values["histogram"].counts.sum()) == stats[name].values["range"].count


@pytest.mark.parametrize("order", [(1.0, 100.0), (100.0, 1.0), (0.0, 3.0, 1e-3)])
def test_histogram_counts_exactly(order):
    """However the bins grow, counts are those of one pass with the final bins, zeros are counted, ends are exact."""
    torch.manual_seed(3)
    parts = [torch.randn(500) * size for size in order]
    observer = HistogramOf()
    for part in parts:
        observer.see(part)
    found = observer.result()
    values = torch.cat(parts).double()
    place = torch.floor((values - found.start) / found.width).long()
    assert torch.equal(found.counts, torch.bincount(place, minlength=2 * HALF))
    assert (found.low, found.high) == (float(values.min()), float(values.max()))
    assert found.zeros == int((values == 0).sum())
    assert found.start == -HALF * found.width


def test_a_power_of_two_is_inside():
    observer = HistogramOf()
    observer.see(torch.tensor([1.0, -1.0]))
    assert int(observer.result().counts.sum()) == 2
    assert HistogramOf().result() is None


def test_data_that_the_model_can_t_take_is_one_line():
    with pytest.raises(DataError, match=r"batch 1 of shape \(2, 5\): the model can't take it") as caught:
        collect(nn.Linear(3, 1), {"weight": frozenset({"range"})}, [torch.ones(2, 3), torch.ones(2, 5)])
    assert "\n" not in str(caught.value)


def test_nan_is_an_error_that_names_the_layer():
    with pytest.raises(DataError, match="batch 0: what goes into layer '' is NaN"):
        collect(nn.Linear(3, 1), {"weight": frozenset({"histogram"})}, [torch.full((2, 3), torch.nan)])
