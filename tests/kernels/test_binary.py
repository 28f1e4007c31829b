"""Binary layers by bits against the same in floats."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.kernels import binary


def drawn(*shape, seed=0):
    return torch.where(torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5, 1.0, -1.0)


@pytest.mark.parametrize("n", [1, 7, 63, 64, 65, 127, 128, 200])
def test_products_of_any_length(n):
    """Lengths that don't fill the words, too: the tail must not count."""
    x, w = drawn(5, n, seed=n), drawn(3, n, seed=n + 1)
    found = binary.products(binary.pack_bits(x), binary.pack_bits(w), n)
    assert torch.equal(found.double(), x.double() @ w.double().T)


def test_bit_counts_of_the_ends():
    assert binary.bit_count(torch.tensor([[0], [-1], [-(2**63)], [2**63 - 1]])).tolist() == [0, 64, 1, 63]


@pytest.mark.parametrize("n", [1, 9, 64, 75])
def test_thresholds_are_batchnorm_and_sign(n):
    """For every whole y in -n .. n, gamma above, below and at 0, and tau exactly a whole number."""
    torch.manual_seed(n)
    norm = nn.BatchNorm1d(400).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(400))
        norm.weight[:20] = 0
        norm.bias.copy_(torch.randn(400))
        norm.running_mean.copy_(torch.randn(400) * n / 2)
        norm.running_var.copy_(torch.rand(400) + 0.1)
        norm.bias[20:60] = 0
        norm.running_mean[20:60] = torch.arange(-20.0, 20.0)
    folded = binary.fold(norm, 400, n)
    y = torch.arange(-n, n + 1)[:, None].repeat(1, 400)
    with torch.no_grad():
        expected = norm(y.float()) >= 0
    assert torch.equal(folded(y), expected)
    p = torch.arange(0, n + 1)[:, None].expand(-1, 400)
    assert torch.equal(binary.of_counts(folded, n)(p), folded(2 * p - n)), "from counts of equal signs"


def test_thresholds_are_the_paper_s_formula():
    """tau = mu - beta sqrt(var + eps) / gamma: ceil of it upwards, floor downwards, where it is within reach."""
    torch.manual_seed(0)
    n, channels = 50, 2000
    norm = nn.BatchNorm1d(channels).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels))
        norm.bias.copy_(torch.randn(channels))
        norm.running_mean.copy_(torch.randn(channels) * 10)
        norm.running_var.copy_(torch.rand(channels) * 5 + 0.1)
    folded = binary.fold(norm, channels, n)
    gamma, deviation = norm.weight.double(), (norm.running_var.double() + norm.eps).sqrt()
    tau = (norm.running_mean.double() - norm.bias.double() * deviation / gamma).detach()
    near = (tau.abs() < n - 1) & ((tau - tau.round()).abs() > 1e-4)
    expected = torch.where(gamma > 0, torch.ceil(tau), torch.floor(tau)).long()
    assert int(near.sum()) > 1500
    assert torch.equal(folded.at[near], expected[near])
    assert torch.equal(folded.up[near], (gamma > 0)[near])


def test_what_is_no_norm_is_refused():
    with pytest.raises(MethodError, match="channel 0: its sign changes 2 times"):
        binary.fold(lambda y: y.square() - 4, 1, 5)


def test_bit_planes_are_the_products_of_8_bit_inputs():
    torch.manual_seed(1)
    x, w = torch.randint(0, 256, (6, 70), dtype=torch.uint8), drawn(4, 70, seed=2)
    assert torch.equal(binary.plane_products(x, w).double(), x.double() @ w.double().T)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1), (1, 2)])
def test_convolutions_with_zeros_around(stride, padding):
    x, w = drawn(2, 5, 7, 6, seed=3), drawn(4, 5, 3, 3, seed=4)
    expected = nn.functional.conv2d(x.double(), w.double(), None, stride, padding)
    assert torch.equal(binary.convolve(x, w, stride, padding).double(), expected)


def test_a_binary_layer_runs_in_integers_bit_for_bit():
    """Signs in, XNOR and count, thresholds out: what the float network's next layer sees."""
    torch.manual_seed(5)
    x, layer, norm = drawn(40, 100, seed=6), nn.Linear(100, 30, bias=False), nn.BatchNorm1d(30).eval()
    with torch.no_grad():
        layer.weight.copy_(drawn(30, 100, seed=7))
        norm.weight.normal_()
        norm.bias.normal_()
        norm.running_mean.normal_().mul_(5)
        norm.running_var.uniform_(50, 150)
        expected = norm(layer(x)) >= 0
    equal = 100 - binary.bit_count(binary.pack_bits(x)[:, None] ^ binary.pack_bits(layer.weight)[None])
    assert torch.equal(binary.of_counts(binary.fold(norm, 30, 100), 100)(equal), expected)
