"""im2col, MEC and Strassen: sizes of what they hold, to the byte, and exact products of integers."""

import pytest
import torch
from torch.nn import functional

from lilliput.convolution import im2col, mec, strassen
from lilliput.convolution.contract import layer_of
from lilliput.convolution.direct import Direct
from lilliput.convolution.im2col import Im2col
from lilliput.convolution.mec import Mec
from lilliput.convolution.strassen import Strassen, counts, multiply
from lilliput.core import kernel
from lilliput.core.errors import MethodError
from lilliput.hardware.layer import Layer

# Cho & Brand 2017: numbers lowered by im2col and by MEC.
PAPER = [
    (Layer(1, 1, size=(7, 7), kernel=(3, 3)), 225, 105),
    (Layer(3, 96, size=(227, 227), kernel=(11, 11), stride=(4, 4)), 1_098_075, 412_005),
    (Layer(64, 64, size=(226, 226), kernel=(3, 3)), 28_901_376, 9_719_808),
]


@pytest.mark.parametrize(("layer", "wide", "narrow"), PAPER)
def test_numbers_of_the_papers(layer, wide, narrow):
    assert Im2col().cost(layer).workspace == 4 * wide
    assert Mec().cost(layer).workspace == 4 * narrow
    assert Im2col().cost(layer).multiplications == Mec().cost(layer).multiplications == layer.macs
    ratio = layer.output_size[0] * layer.kernel[0] / layer.size[0]
    assert wide / narrow == pytest.approx(ratio)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_what_is_lowered_is_as_large_as_is_said(stride, monkeypatch):
    x, weight = torch.randn(3, 4, 13, 14), torch.randn(6, 2, 3, 2)
    layer = layer_of(x, weight, stride, (1, 2), groups=2)
    right = functional.conv2d(x, weight, None, stride, (1, 2), groups=2)
    for own, algorithm in ((im2col, Im2col()), (mec, Mec("B"))):
        assert own.lower(x, layer).numel() * 4 == 3 * algorithm.cost(layer).workspace
        seen = []
        operator = vars(own)[own.__name__.rpartition(".")[2]]
        monkeypatch.setattr(operator, "run", lambda name, *given, seen=seen: bool(seen.append(given[4].nbytes)))
        found = algorithm.run(x, algorithm.prepare(weight, layer), layer)
        assert seen == [algorithm.cost(layer).workspace]
        assert torch.allclose(found, right, atol=1e-4), "the plain reference of the operator"
    assert Im2col(per_image=False).cost(layer).workspace == 3 * Im2col().cost(layer).workspace
    assert Mec("A").cost(layer).workspace == 3 * Mec("B").cost(layer).workspace


def test_im2col_lowers_as_unfold_does():
    x = torch.randn(2, 3, 6, 7)
    layer = layer_of(x, torch.zeros(1, 3, 3, 2), (2, 1), (1, 0), (1, 2))
    assert torch.equal(im2col.lower(x, layer)[:, 0], functional.unfold(x, (3, 2), (1, 2), (1, 0), (2, 1)))


def test_a_product_as_it_stands_needs_no_workspace():
    assert Im2col().cost(Layer(8, 8, size=(5, 5))).workspace == 0
    assert Im2col().cost(Layer(8, 8, size=(5, 5), stride=(2, 2))).workspace == 8 * 9 * 4
    assert Direct().cost(Layer(8, 8, size=(5, 5), kernel=(3, 3))).workspace == 0


@pytest.mark.parametrize(("kernel_size", "stride"), [((3, 1), 1), ((1, 3), 1), ((2, 2), 3), ((3, 3), 2)])
def test_both_solutions_of_mec(kernel_size, stride):
    """Degenerate kernels, and strides beyond the kernel, where MEC saves nothing."""
    x, weight = torch.randn(3, 2, 9, 8, dtype=torch.float64), torch.randn(4, 2, *kernel_size, dtype=torch.float64)
    layer = layer_of(x, weight, stride)
    right = functional.conv2d(x, weight, None, stride)
    for solution in ("A", "B", "auto"):
        algorithm = Mec(solution)
        assert torch.allclose(algorithm.run(x, algorithm.prepare(weight, layer), layer), right)


def test_mec_chooses_its_solution():
    layer = Layer(8, 8, size=(30, 30), kernel=(3, 3), batch=4)
    assert Mec().chosen(layer) == "A"
    assert Mec().chosen(Layer(8, 8, size=(30, 130), kernel=(3, 3), batch=4)) == "B", "too wide"
    assert Mec().chosen(Layer(1, 64, size=(30, 30), kernel=(3, 3), batch=4)) == "B", "the result is larger than L"
    assert Mec().chosen(Layer(8, 8, size=(30, 30), kernel=(3, 3))) == "B", "one image"
    assert "sub-matrix" in Mec().unsuited(Layer(1, 1, size=(9, 9), kernel=(3, 3), dilation=(2, 1)))
    assert Mec().unsuited(Layer(1, 1, size=(9, 9), kernel=(3, 3), dilation=(1, 2))) is None


@pytest.mark.parametrize("name", ["im2col", "mec"])
@pytest.mark.parametrize("variant", [v for v in kernel.variants() if v != "reference"])
def test_rows_of_many_vectors(name, variant):
    """Filters that fill several blocks of rows, columns that fill several parts of vectors."""
    x, weight, bias = torch.randn(2, 6, 11, 150), torch.randn(27, 3, 3, 3), torch.randn(27)
    x = torch.cat([x, x], 1)[:, :9]
    algorithm = Im2col() if name == "im2col" else Mec("B")
    layer = layer_of(x[:, :3], weight, 1, 1)
    with kernel.using(variant):
        found = algorithm.run(x[:, :3], algorithm.prepare(weight, layer), layer, bias)
    assert torch.allclose(found, functional.conv2d(x[:, :3], weight, bias, padding=1), atol=1e-4)


@pytest.mark.parametrize("variant", ["strassen", "winograd"])
@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("sizes", [(16, 16, 16), (17, 13, 19), (8, 31, 5), (1, 40, 9), (24, 7, 33)])
def test_integers_are_multiplied_exactly(variant, levels, sizes):
    m, k, n = sizes
    torch.manual_seed(0)
    a, b = torch.randint(-1000, 1000, (m, k)), torch.randint(-1000, 1000, (k, n))
    assert torch.equal(multiply(a, b, Strassen(levels, 2, variant)), a @ b)


def test_operations_of_one_level():
    """n = 64: 520,192 plainly, 470,016 with 18 additions, 466,944 with 15; n = 1024: 0.8768 of it with 18."""
    assert sum(counts(64, 64, 64, Strassen(0))[:2]) == 520_192
    assert sum(counts(64, 64, 64, Strassen(1, 2, "strassen"))[:2]) == 470_016
    assert sum(counts(64, 64, 64, Strassen(1, 2, "winograd"))[:2]) == 466_944
    whole = sum(counts(1024, 1024, 1024, Strassen(0))[:2])
    assert sum(counts(1024, 1024, 1024, Strassen(1, variant="strassen"))[:2]) / whole == pytest.approx(0.8768, abs=1e-4)


def test_levels_multiply_seven_eighths_in_a_third_of_the_matrices():
    for levels in (1, 2, 3):
        times, _, held = counts(64, 64, 64, Strassen(levels, 2))
        assert times == 64**3 * 7**levels // 8**levels
        assert held == sum(3 * (64 >> level) ** 2 for level in range(1, levels + 1)) < 3 * 64**2 / 3
    assert counts(64, 64, 64, Strassen(9, 64)) == counts(64, 64, 64, Strassen(1, 64)), "the cut-off"


@pytest.mark.parametrize("variant", ["strassen", "winograd"])
def test_the_recursion_counts_and_holds_what_it_says(variant, monkeypatch):
    """Products and numbers held, counted as they happen, odd edges included."""
    how, sizes = Strassen(2, 4, variant), (18, 21, 27)
    done, held, most = [0], [0], [0]
    whole, empty = torch.matmul, torch.empty_like

    def matmul(a, b, out=None):
        done[0] += a.shape[0] * a.shape[1] * b.shape[1]
        return whole(a, b, out=out) if out is not None else whole(a, b)

    def of(like):
        held[0] += like.numel()
        most[0] = max(most[0], held[0])
        return empty(like)

    step = strassen._into

    def into(*given):
        before = held[0]
        step(*given)
        held[0] = before

    monkeypatch.setattr(torch, "matmul", matmul)
    monkeypatch.setattr(torch, "empty_like", of)
    monkeypatch.setattr(strassen, "_into", into)
    a, b = torch.randint(-9, 9, sizes[:2]), torch.randint(-9, 9, sizes[1:])
    assert torch.equal(multiply(a, b, how), whole(a, b))
    times, _, numbers = counts(*sizes, how)
    assert most[0] == numbers
    assert done[0] <= times, "edges are products of their own"


def test_the_error_grows_with_the_levels():
    torch.manual_seed(0)
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    right = a.double() @ b.double()
    plain, one, four = (float((multiply(a, b, Strassen(n, 8)) - right).norm()) for n in (0, 1, 4))
    assert plain < four
    assert one < four < 1e-4 * float(right.norm())


def test_bad_settings():
    for bad in ({"levels": -1}, {"cutoff": 1}, {"variant": "karatsuba"}):
        with pytest.raises(MethodError):
            Strassen(**bad)
