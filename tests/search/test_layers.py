"""Layers found by running a model: shapes, names, densities and bits."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import ModelError
from lilliput.hardware.assess import assess
from lilliput.hardware.dataflow import FLOWS
from lilliput.hardware.device import Device
from lilliput.search.layers import code_bits, layers_of


class Odd(nn.Module):
    """Functions, groups, lines, sequences and attention."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(4, 6, 3, padding="same", dilation=2)
        self.kernel = nn.Parameter(torch.ones(8, 1, 3, 1))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        line = self.line(x[:, 0])
        image = functional.conv2d(x, self.kernel, stride=(2, 1), padding=(1, 0), groups=4)
        tokens = image.flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens)[0]
        return self.head(tokens).mean() + line.mean()


def test_shapes_and_names():
    model = Odd().eval()
    found, notes = layers_of(model, lambda: model(torch.rand(2, 4, 4, 7)))
    layers = {layer.name: layer for layer in found}
    line, image, head = layers["line"], layers["kernel"], layers["head"]
    assert (line.kernel, line.padding, line.dilation, line.output_size) == ((1, 3), (0, 2), (1, 2), (1, 7))
    assert (image.groups, image.stride, image.output_size, image.batch) == (4, (2, 1), (2, 7), 2)
    assert (head.channels, head.filters, head.batch) == (8, 3, 2 * 14)
    attention = [layer for layer in found if layer.name.startswith("attention")]
    assert sum(layer.macs for layer in attention) == 4 * 8 * 8 * 28
    assert not notes
    for layer in found:
        for flow in FLOWS:
            assert assess(layer, Device.load("eyeriss"), flow).energy.total > 0


def test_densities_and_bits():
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0] = torch.tensor([1.0, 2, 3, 0, 0, 0, 0, 0])
    first, second = layers_of(model, lambda: model(torch.ones(1, 8)), codes={"0.weight": 2})[0]
    assert first.weight_density == 3 / 32
    assert (first.weight_bits, first.input_bits, first.input_density) == (2, 16, 1.0)
    assert second.input_density == 1 / 4
    assert second.weight_bits == 16
    assert layers_of(model, lambda: model(torch.ones(1, 8)), bits=8)[0][0].weight_bits == 8


def test_what_is_left_out_is_told():
    model = nn.Sequential(nn.Conv3d(1, 1, 1), nn.Flatten(), nn.LSTM(8, 4)).eval()
    with pytest.raises(ModelError, match="no linear layer"):
        layers_of(model, lambda: model(torch.ones(1, 1, 2, 2, 2)))

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.recurrent = nn.ConvTranspose1d(2, 2, 2), nn.LSTM(4, 4)
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.recurrent(self.up(x))[0])

    model = Both().eval()
    layers, notes = layers_of(model, lambda: model(torch.ones(1, 2, 3)))
    assert [layer.name for layer in layers] == ["head"]
    assert notes == ["up: conv_transpose1d, left out", "recurrent: a recurrent layer, left out"]


def test_the_model_is_left_as_it_was():
    model = Odd().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    layers_of(model, lambda: model(torch.rand(1, 4, 4, 7)))
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bits_of_codes():
    from lilliput.prune.magnitude import Magnitude
    from lilliput.quantize.shift import Shift
    from lilliput.quantize.ternary import Ternary
    from lilliput.share.kmeans import KMeans

    torch.manual_seed(0)
    weight = torch.randn(40, 30)
    found = code_bits(
        {
            "ternary": Ternary().pack(weight),
            "shared": KMeans(bits=5).pack(weight),
            "shift": Shift(terms=2).pack(weight),
            "pruned": Magnitude(sparsity=0.5).pack(weight),
            "plain": weight,
        }
    )
    assert found["ternary"] == 1
    assert found["shared"] == 5
    assert found["shift"] == 2 * 4
    assert set(found) == {"ternary", "shared", "shift"}
