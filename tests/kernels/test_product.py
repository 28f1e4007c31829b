"""Product quantization by look-up against the dense layers."""

import pytest
import torch
from torch import nn

from lilliput.core import kernel
from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.graph.ir import InputRef, Node, TensorRef
from lilliput.kernels import product
from lilliput.share.product import Product

LINEAR = Node("aten.linear.default", (InputRef(0), TensorRef("weight")))
LAYERS = [
    (nn.Linear(70, 33), (2, 70)),
    (nn.Linear(70, 33), (12, 70)),
    (nn.Conv2d(10, 12, 1), (2, 10, 6, 7)),
    (nn.Conv2d(10, 12, (3, 2), padding=1, stride=2), (2, 10, 9, 8)),
    (nn.Conv1d(10, 12, 3, dilation=2), (10, 20)),
]


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize(("width", "k"), [(4, 16), (3, 32), (8, 9), (2, 50)])
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_layers(variant, width, k, layer, shape):
    """The last run is narrower than the others where channels aren't a multiple of it."""
    torch.manual_seed(0)
    packed = Product(width=width, k=k, correct=False, force=True).pack(layer.weight.detach())
    node, bias = LINEAR, layer.bias.detach().float()
    if not isinstance(layer, nn.Linear):
        ends = (layer.stride, layer.padding, layer.dilation, layer.groups)
        name = f"aten.conv{layer.weight.dim() - 2}d.default"
        node = Node(name, (InputRef(0), TensorRef("weight"), TensorRef("bias"), *ends))
    x = torch.randn(shape)
    with torch.no_grad():
        layer.weight.copy_(unpack(packed))
        expected = layer.double()(x.double())
    layer.float()
    with kernel.using(variant):
        found = product.serves(packed, node)(x, bias)
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("k", [3, 16, 32, 33, 256])
def test_layout(k):
    codes = torch.randint(0, k, (35, 13))
    word, book = product.prepare(codes, torch.zeros(13, k, 2))
    assert torch.equal(product.restored(word, book.shape[2], 35, 13), codes)


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize("k", [16, 32, 256])
def test_any_word_is_safe(variant, k):
    """All bits that a damaged file may hold point within their table."""
    word, book = product.prepare(torch.zeros(16, 8), torch.randn(8, k, 2))
    word = torch.randint(-(1 << 31), 1 << 31, word.shape, dtype=torch.int64).to(torch.int32)
    x = torch.randn(1, 16)
    with kernel.using("reference"):
        expected = product.product_linear(x, word, book, None, 16)
    with kernel.using(variant):
        torch.testing.assert_close(product.product_linear(x, word, book, None, 16), expected, rtol=0, atol=1e-4)


def test_what_is_not_served_or_does_not_fit():
    packed = Product(width=2, k=4, correct=False, force=True).pack(torch.randn(8, 6, 3, 3))
    grouped = Node("aten.conv2d.default", (InputRef(0), TensorRef("weight"), None, (1, 1), (0, 0), (1, 1), 2))
    assert product.serves(packed, grouped) is None
    word, book = product.prepare(torch.zeros(5, 3), torch.zeros(3, 4, 2))
    x = torch.zeros(1, 6)
    for call in (
        lambda: product.product_linear(x.double(), word, book, None, 5),
        lambda: product.product_linear(x[:, :4], word, book, None, 5),
        lambda: product.product_linear(x, word, book, None, 17),
        lambda: product.product_linear(x, word.long(), book, None, 5),
        lambda: product.product_linear(x, word, book, torch.zeros(4), 5),
    ):
        with pytest.raises(MethodError):
            call()
