"""Which convolutions of a graph Winograd's kernel serves, and what it gives."""

import pytest
import torch
from torch.nn import functional

from lilliput.core import kernel
from lilliput.core.packed import unpack
from lilliput.graph.ir import InputRef, Node, TensorRef
from lilliput.kernels.winograd import prepare, serves, winograd
from lilliput.quantize.uniform import Uniform

PACKED = Uniform(bits=8).pack(torch.randn(40, 33, 3, 3))


def node(**named):
    return Node("aten.conv2d.default", (InputRef(0), TensorRef("weight"), None), named)


@pytest.mark.parametrize("padding", [0, 1, (2, 1)])
def test_a_dense_convolution(padding):
    both = padding if isinstance(padding, tuple) else (padding, padding)
    module = serves(PACKED, node(padding=both))
    x, bias = torch.randn(2, 33, 12, 13), torch.randn(40)
    right = functional.conv2d(x.double(), unpack(PACKED).double(), bias.double(), padding=padding)
    found = module(x, bias)
    assert float((found - right).norm() / right.norm()) < module.tolerance
    assert torch.equal(module(x, bias, True), found.relu())
    assert torch.equal(module(x), module(x, torch.zeros(40)))
    assert not list(module.parameters())


def test_same_and_valid():
    x = torch.randn(1, 33, 9, 9)
    for word, size in (("same", 9), ("valid", 7)):
        asked = Node("aten.conv2d.padding", (InputRef(0), TensorRef("weight"), None), {"padding": word})
        assert serves(PACKED, asked)(x).shape[-1] == size


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((40, 33, 3, 3), {"stride": (2, 2)}),
        ((40, 33, 3, 3), {"dilation": (2, 2)}),
        ((40, 33, 3, 3), {"groups": 2}),
        ((40, 33, 1, 1), {}),
        ((40, 33, 3, 5), {}),
        ((40, 3, 3, 3), {}),
    ],
)
def test_others_are_left_alone(shape, named):
    assert serves(Uniform(bits=8).pack(torch.randn(shape)), node(**named)) is None
    linear = Node("aten.linear.default", (InputRef(0), TensorRef("weight")))
    assert serves(Uniform(bits=8).pack(torch.randn(40, 33)), linear) is None


def test_a_batch_of_one_has_the_strides_of_any_other():
    """A single tile that is cut to fewer rows: what is left looks contiguous, with the strides of the whole."""
    x, weight = torch.randn(1, 3, 7, 22), prepare(torch.randn(4, 3, 3, 3), 4)
    with kernel.using("reference"):
        found = winograd(x, weight, None, 4, 4, [0, 0], False)
    assert found.stride() == (400, 100, 20, 1)
    one = winograd(torch.randn(1, 3, 7, 22), prepare(torch.randn(1, 3, 3, 3), 4), None, 1, 4, [0, 0], False)
    with kernel.using("reference"):
        again = winograd(torch.randn(1, 3, 7, 22), prepare(torch.randn(1, 3, 3, 3), 4), None, 1, 4, [0, 0], False)
    assert one.stride() == again.stride() == (100, 100, 20, 1)
