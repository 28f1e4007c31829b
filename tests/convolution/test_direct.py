"""The definition itself against loops, and sizes that can't be."""

import pytest
import torch

from lilliput.convolution.apply import convolve
from lilliput.convolution.contract import layer_of
from lilliput.convolution.direct import Direct
from lilliput.convolution.winograd import Winograd
from lilliput.core.errors import MethodError
from lilliput.core.method import kind_of, methods


def test_the_definition_by_loops():
    """Correlation, without a flip of the kernel; strides, padding, dilation and groups as written down."""
    torch.manual_seed(0)
    x, weight = torch.randint(-9, 9, (2, 4, 6, 5)).double(), torch.randint(-9, 9, (6, 2, 2, 3)).double()
    layer = layer_of(x, weight, (2, 1), (1, 2), (2, 1), groups=2)
    found = convolve(x, weight, layer, Direct())
    for n, k, p, q in torch.cartesian_prod(*(torch.arange(size) for size in found.shape)).tolist():
        total = 0.0
        for c, r, s in torch.cartesian_prod(*(torch.arange(size) for size in weight.shape[1:])).tolist():
            h, w = 2 * p + 2 * r - 1, q + s - 2
            if 0 <= h < 6 and 0 <= w < 5:
                total += float(x[n, k // 3 * 2 + c, h, w] * weight[k, c, r, s])
        assert found[n, k, p, q] == total


@pytest.mark.parametrize(
    ("x", "weight", "how", "says"),
    [
        ((1, 2, 3, 3), (1, 2, 4, 4), {}, "kernel"),
        ((1, 2, 3, 3), (1, 3, 1, 1), {}, "2 channels"),
        ((1, 2, 3), (1, 2, 1, 1), {}, "4 axes"),
        ((1, 2, 3, 3), (1, 2, 1, 1), {"stride": 0}, "stride"),
        ((1, 2, 3, 3), (1, 2, 1, 1), {"padding": -1}, "padding"),
        ((1, 2, 3, 3), (3, 1, 1, 1), {"groups": 2}, "groups"),
        ((0, 2, 3, 3), (1, 2, 1, 1), {}, "batch"),
    ],
)
def test_sizes_that_can_t_be(x, weight, how, says):
    with pytest.raises(MethodError, match=says) as refusal:
        layer_of(torch.zeros(x), torch.zeros(weight), **how)
    assert "\n" not in str(refusal.value)


def test_dtypes_must_agree():
    with pytest.raises(MethodError, match="float64"):
        layer_of(torch.zeros(1, 1, 3, 3, dtype=torch.float64), torch.zeros(1, 1, 1, 1))


def test_algorithms_are_found_by_their_files():
    names = {listing.path.rpartition("/")[2] for listing in methods("convolution")}
    assert names == {"direct", "im2col", "fft", "winograd", "strassen", "mec"}
    assert kind_of(Winograd) == "convolution"
