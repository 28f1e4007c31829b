"""Sparse CNN: exact at full rank with any stride and padding, the best coefficients, costs as counted."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.graph.macs import macs
from lilliput.prune.sparse_kernel import SparseKernel, as_layers
from lilliput.testing.spread import gaussian


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (0, 2)}], ids=str)
@pytest.mark.parametrize("outputs", [5, 20])
def test_full_rank_is_the_convolution(options, outputs):
    conv = nn.Conv2d(6, outputs, 3, **options).double()
    packed = SparseKernel().pack(conv.weight.detach())
    torch.testing.assert_close(unpack(packed), conv.weight.detach())
    value = torch.randn(2, 6, 11, 9, dtype=torch.float64)
    layers = as_layers(packed, conv)
    torch.testing.assert_close(layers(value), conv(value))
    assert layers[1].weight.shape == (6 * min(9, outputs), 1, 3, 3)


def test_axes_and_bases_are_orthonormal_so_that_the_error_is_what_is_removed():
    weight = gaussian(8, 4, 3, 3).double()
    whole, packed = SparseKernel().pack(weight), SparseKernel(sparsity=0.6).pack(weight)
    channels, kernels = packed.tensor("channels"), packed.tensor("kernels")
    torch.testing.assert_close(channels.T @ channels, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(kernels @ kernels.transpose(1, 2), torch.eye(8, dtype=torch.float64).expand(4, 8, 8))
    assert (kernels.norm(dim=2) <= 1 + 1e-12).all()
    gone = whole.tensor("values").abs().sort().values[: round(0.6 * 256)]
    assert len(packed.tensor("values")) == 256 - round(0.6 * 256)
    torch.testing.assert_close((unpack(packed) - weight).square().sum(), gone.square().sum())


def test_sparse_layers_compute_what_is_packed():
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
    packed = SparseKernel(sparsity=0.7, bases=5).pack(conv.weight.detach())
    dense = nn.Conv2d(4, 8, 3, stride=2, padding=1)
    dense.weight.data, dense.bias.data = unpack(packed), conv.bias.data
    value = torch.randn(2, 4, 9, 9)
    layers = as_layers(packed, conv)
    torch.testing.assert_close(layers(value), dense(value), rtol=1e-4, atol=1e-5)
    assert int((layers[2].weight != 0).sum()) == 4 * 8 * 5 - round(0.7 * 4 * 8 * 5)


def test_fewer_bases_and_more_zeros_are_worse():
    weight = gaussian(16, 6, 3, 3)
    for settings in ([SparseKernel(bases=b) for b in (1, 3, 9)], [SparseKernel(sparsity=s) for s in (0.9, 0.5, 0.1)]):
        errors = [float((unpack(s.pack(weight)) - weight).square().sum()) for s in settings]
        assert errors == sorted(errors, reverse=True)


def test_multiplications_are_those_of_the_formula():
    """A pixel: m^2 + s^2 sum q + density n sum q, and the sparse product in CSR is that of the layer with zeros."""
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    packed = SparseKernel(sparsity=0.75, bases=5).pack(conv.weight.detach())
    layers, value = as_layers(packed, conv), torch.randn(1, 4, 6, 7)
    counted = macs(nn.Sequential(*list(layers)[:2]), value) + 42 * int((layers[2].weight != 0).sum())
    assert counted == 42 * (4 * 4 + 9 * 20 + round(0.25 * 8 * 20))
    hidden = layers[1](layers[0](value)).flatten(2)[0]
    rows = layers[2].weight.detach().flatten(1).to_sparse_csr()
    torch.testing.assert_close((rows @ hidden).reshape(8, 6, 7), layers(value)[0], rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(MethodError, match="takes weights of convolutions"):
        SparseKernel().pack(torch.ones(3, 4))
    with pytest.raises(MethodError, match="of one group"):
        as_layers(SparseKernel().pack(torch.ones(4, 2, 3, 3)), nn.Conv2d(4, 4, 3, groups=2))
