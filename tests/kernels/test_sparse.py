"""Sparse layers against the dense ones that they stand for, and damaged buffers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core import kernel
from lilliput.core.errors import MethodError
from lilliput.core.packed import pack_steps, unpack
from lilliput.graph.ir import InputRef, Node, TensorRef
from lilliput.kernels import sparse_conv, sparse_linear
from lilliput.kernels.sparse import blocks, tiles
from lilliput.kernels.window import Window, window_of
from lilliput.prune.magnitude import Magnitude
from lilliput.share.kmeans import KMeans

LINEAR = Node("aten.linear.default", (InputRef(0), TensorRef("weight")))


def close(found, expected):
    assert found.shape == expected.shape
    assert float((found.double() - expected).norm()) <= 1e-5 * float(expected.norm())


def pruned(weight, sparsity=0.9, pattern="unstructured", *then):
    return pack_steps(weight, (Magnitude(sparsity=sparsity, pattern=pattern), *then))


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize(
    ("pattern", "then", "kind"),
    [
        ("unstructured", (), "sparse, single weights"),
        ("unstructured", (KMeans(bits=5),), "sparse, shared values"),
        ("unstructured", (KMeans(bits=6),), "sparse, shared values"),
        ("unstructured", (KMeans(bits=7),), "sparse, single weights"),
        ("block:4x1", (), "sparse, blocks of 4"),
        ("block:16x1", (KMeans(bits=4),), "sparse, blocks of 16"),
        ("2:4", (), "sparse, two of four"),
    ],
)
def test_linear_layers(variant, pattern, then, kind):
    """Each form of Packed, few rows and many, with and without a bias."""
    torch.manual_seed(0)
    packed = pruned(torch.randn(75, 333), 0.5 if pattern == "2:4" else 0.9, pattern, *then)
    layer = sparse_linear.serves(packed, LINEAR)
    assert layer.kind == kind
    bias = torch.randn(75)
    with kernel.using(variant):
        for rows in (1, 3, 40):
            x = torch.randn(2, rows, 333)
            close(layer(x, bias), functional.linear(x.double(), unpack(packed).double(), bias.double()))
        close(layer(x[0, 0]), functional.linear(x[0, 0].double(), unpack(packed).double()))


def test_what_is_hardly_sparse_is_not_served():
    weight = torch.randn(20, 20)
    assert sparse_linear.serves(pruned(weight, 0.4), LINEAR) is None
    assert sparse_linear.serves(KMeans(bits=4).pack(weight), LINEAR) is None
    assert sparse_linear.serves(pruned(weight.double()), LINEAR) is None
    assert sparse_conv.serves(pruned(weight), LINEAR) is None


CONVOLUTIONS = [
    nn.Conv2d(12, 20, 1),
    nn.Conv2d(12, 20, 3, padding=1),
    nn.Conv2d(12, 20, (3, 2), stride=2, padding=(2, 0), dilation=(1, 3)),
    nn.Conv2d(12, 32, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(12, 20, 3, padding="same", bias=False),
    nn.Conv2d(12, 20, 1, stride=2),
    nn.Conv1d(12, 20, 5, padding=2),
]


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1", "block:16x1"])
@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_convolutions(variant, pattern, conv):
    torch.manual_seed(1)
    packed = pruned(conv.weight.detach(), 0.8, pattern)
    kind = "padding" if isinstance(conv.padding, str) else "default"
    dims = conv.weight.dim() - 2
    weight, bias = TensorRef("weight"), None if conv.bias is None else TensorRef("bias")
    arguments = (InputRef(0), weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    layer = sparse_conv.serves(packed, Node(f"aten.conv{dims}d.{kind}", arguments))
    with torch.no_grad():
        conv.weight.copy_(unpack(packed))
        for size in (6, 17):
            x = torch.randn(2, 12, *(size + i for i in range(dims)))
            bias = conv.bias.detach() if conv.bias is not None else None
            expected = type(conv).forward(conv.double(), x.double())
            with kernel.using(variant):
                close(layer(x, bias.float() if bias is not None else None), expected)
            conv.float()


def test_geometry_of_other_nodes():
    conv = Node("aten.conv2d.padding", (InputRef(0), TensorRef("weight"), None, (1, 1), "same"))
    assert window_of(conv, (4, 4, 2, 2)) is None, "two zeros at one end, one at the other"
    assert window_of(LINEAR, (4, 4)) is None
    with pytest.raises(MethodError, match="no convolution has"):
        Window.of([3, 3, 0, 1, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize("matrix", [torch.zeros(5, 70), torch.ones(5, 70), torch.eye(70)[:5]], ids=["0", "1", "eye"])
def test_all_or_nothing(variant, matrix):
    """All-zero weights, full ones, and a row with one weight."""
    x, bias = torch.randn(2, 70), torch.randn(5)
    with kernel.using(variant):
        for part in (sparse_linear.shared(matrix), sparse_linear.single(matrix)):
            operator = sparse_linear.sparse_shared if part[2].dtype == torch.float32 else sparse_linear.sparse_single
            close(operator(x, *part, bias, 5), functional.linear(x.double(), matrix.double(), bias.double()))


def test_tiles_hold_all_that_is_worth_it():
    """What is in tiles and what is in lists is all there is; with dear lists nothing is in them."""
    live = torch.rand(50, 300) < 0.1
    found = tiles(live, 4.0)
    assert not (found.taken & ~live).any()
    assert len(found.slot.unique()) == len(found.slot) == int(found.taken.sum()) <= int(live.sum())
    assert 0 <= int(found.slot.min()) <= int(found.slot.max()) < found.size[0] * found.size[1] * 16
    assert torch.equal(tiles(live, 1e9).taken, live)
    assert int(tiles(live, 0.0).steps.sum()) == 0


@pytest.mark.parametrize("variant", kernel.variants())
class TestDamage:
    """Lists that point outside are refused, and nothing outside is read."""

    def test_convolution(self, variant):
        part = blocks(torch.eye(6), 1)
        x, numbers = torch.ones(1, 6, 4, 4), Window((1, 1)).numbers
        for name, value in [("column", 6), ("column", -1), ("start", 7), ("start", -1), ("start", 100)]:
            lists = {key: getattr(part, key).clone() for key in ("start", "column")}
            lists[name][2] = value
            with kernel.using(variant), pytest.raises(MethodError, match="points outside"):
                sparse_conv.sparse_conv(x, lists["start"], lists["column"], part.value, None, 6, numbers)

    def test_linear(self, variant):
        matrix = torch.eye(16)
        for value in (16, -1, 1 << 30):
            part = blocks(matrix, 4)
            part.column[3] = value
            with kernel.using(variant), pytest.raises(MethodError, match="points outside"):
                sparse_linear.sparse_blocks(torch.ones(1, 16), part.start, part.column, part.value, None, 16)
            place, numbers, steps, _ = sparse_linear.single(matrix)
            rest = blocks(matrix, 1)
            rest.column[3] = value
            lists = [rest.start, rest.column, rest.value]
            with kernel.using(variant), pytest.raises(MethodError, match="points outside"):
                sparse_linear.sparse_single(torch.ones(1, 16), place, numbers, steps, lists, None, 16)

    def test_any_word_and_place_is_safe(self, variant):
        """All bits that a damaged file may hold: they point within their tile."""
        torch.manual_seed(0)
        word, steps, book, rest = sparse_linear.shared(torch.randint(0, 2, (16, 64)).float())
        word = torch.randint(-(1 << 15), 1 << 15, word.shape, dtype=torch.int16)
        x = torch.randn(1, 64)
        with kernel.using("reference"):
            expected = sparse_linear.sparse_shared(x, word, steps, book, rest, None, 16)
        with kernel.using(variant):
            close(sparse_linear.sparse_shared(x, word, steps, book, rest, None, 16), expected.double())
        place, value, steps, rest = sparse_linear.single(torch.randint(0, 2, (16, 64)).float())
        place = torch.randint(0, 256, place.shape, dtype=torch.uint8)
        with kernel.using("reference"):
            expected = sparse_linear.sparse_single(x, place, value, steps, rest, None, 16)
        with kernel.using(variant):
            close(sparse_linear.sparse_single(x, place, value, steps, rest, None, 16), expected.double())


def test_arguments_that_do_not_fit():
    matrix, x = torch.eye(16), torch.ones(2, 16)
    word, steps, book, rest = sparse_linear.shared(matrix)
    part, numbers = blocks(matrix, 1), Window((1, 1)).numbers
    calls = [
        lambda: sparse_linear.sparse_shared(x.double(), word, steps, book, rest, None, 16),
        lambda: sparse_linear.sparse_shared(x[:, :3], word, steps, book, rest, None, 32),
        lambda: sparse_linear.sparse_shared(x, word[:, :0], steps, book, rest, None, 16),
        lambda: sparse_linear.sparse_shared(x, word, steps, book[:3], rest, None, 16),
        lambda: sparse_linear.sparse_shared(x, word, steps, book, rest[:2], None, 16),
        lambda: sparse_linear.sparse_shared(x, word, steps, book, rest, torch.ones(3), 16),
        lambda: sparse_linear.sparse_blocks(x, part.start, part.column, part.value, None, 16),
        lambda: sparse_linear.sparse_two_four(x, torch.zeros(4, 1, 4, 16), torch.zeros(4, 1, 4), None, 16),
        lambda: sparse_conv.sparse_conv(x[None, :, :, None], part.start, part.column, part.value, None, 16, numbers),
        lambda: sparse_conv.sparse_conv(
            torch.ones(1, 16, 0, 4), part.start, part.column, part.value, None, 16, numbers
        ),
        lambda: blocks(matrix, 4, 8),
        lambda: blocks(matrix, 3),
    ]
    for call in calls:
        with pytest.raises(MethodError):
            call()


def test_two_of_four_is_only_that():
    assert sparse_linear.two_four(torch.tensor([[1.0, 1, 1, 0]])) is None
