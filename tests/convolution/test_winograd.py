"""Winograd's convolution: exact matrices, counts, errors in their order, tiles that lie partly outside."""

from fractions import Fraction

import pytest
import torch
from torch.nn import functional

from lilliput.convolution.apply import convolve
from lilliput.convolution.contract import layer_of
from lilliput.convolution.error import error
from lilliput.convolution.winograd import Winograd
from lilliput.core import kernel
from lilliput.core.errors import MethodError
from lilliput.hardware.layer import Layer
from lilliput.kernels import winograd
from lilliput.solve.toom_cook import matrices


def rows(text):
    return tuple(tuple(Fraction(value) for value in row.split()) for row in text.split(";"))


GOLDEN = {
    2: (
        "1 1 1 0; 0 1 -1 1",
        "1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1",
        "1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 -1 0 1",
    ),
    4: (
        "1 1 1 1 1 0; 0 1 -1 2 -2 0; 0 1 1 4 4 0; 0 1 -1 8 -8 1",
        "1/4 0 0; -1/6 -1/6 -1/6; -1/6 1/6 -1/6; 1/24 1/12 1/6; 1/24 -1/12 1/6; 0 0 1",
        "4 0 -5 0 1 0; 0 -4 -4 1 1 0; 0 4 -4 -1 1 0; 0 -2 -1 2 1 0; 0 2 -1 -2 1 0; 0 4 0 -5 0 1",
    ),
    6: (
        "1 1 1 1 1 1 1 0; 0 1 -1 2 -2 1/2 -1/2 0; 0 1 1 4 4 1/4 1/4 0; 0 1 -1 8 -8 1/8 -1/8 0;"
        "0 1 1 16 16 1/16 1/16 0; 0 1 -1 32 -32 1/32 -1/32 1",
        "1 0 0; -2/9 -2/9 -2/9; -2/9 2/9 -2/9; 1/90 1/45 2/45; 1/90 -1/45 2/45; 32/45 16/45 8/45;"
        "32/45 -16/45 8/45; 0 0 1",
        "1 0 -21/4 0 21/4 0 -1 0; 0 1 1 -17/4 -17/4 1 1 0; 0 -1 1 17/4 -17/4 -1 1 0;"
        "0 1/2 1/4 -5/2 -5/4 2 1 0; 0 -1/2 1/4 5/2 -5/4 -2 1 0; 0 2 4 -5/2 -5 1/2 1 0;"
        "0 -2 4 5/2 -5 -1/2 1 0; 0 -1 0 21/4 0 -21/4 0 1",
    ),
}


@pytest.mark.parametrize("output", GOLDEN)
def test_the_matrices_of_the_paper(output):
    assert matrices(output, 3) == tuple(rows(text) for text in GOLDEN[output])


@pytest.mark.parametrize(("output", "taps"), [(m, r) for m in range(1, 8) for r in range(1, 9 - m)])
def test_one_dimension_is_exact_in_fractions(output, taps):
    inverse, filters, data = matrices(output, taps)
    size = output + taps - 1
    g = [Fraction(3 * i - 4, i + 2) for i in range(taps)]
    d = [Fraction(7 - i * i, 3) for i in range(size)]
    u = [sum(a * b for a, b in zip(row, g)) for row in filters]
    v = [sum(a * b for a, b in zip(row, d)) for row in data]
    y = [sum(a * b * c for a, b, c in zip(row, u, v)) for row in inverse]
    assert y == [sum(d[i + j] * g[j] for j in range(taps)) for i in range(output)]


def test_what_has_no_points_is_refused():
    for output, taps in ((7, 3), (0, 3), (3, 0)):
        with pytest.raises(MethodError, match="outputs"):
            matrices(output, taps)


@pytest.mark.parametrize(("output", "less"), [(2, 2.25), (4, 4.0), (6, 5.0625)])
def test_multiplications(output, less):
    layer = Layer(8, 16, size=(24, 48), kernel=(3, 3), padding=(1, 1))
    assert layer.macs / Winograd(output).cost(layer).multiplications == less


def test_tiles_that_lie_partly_outside_cost_whole_ones():
    layer = Layer(1, 1, size=(7, 7), kernel=(3, 3))
    assert Winograd(4).tiles(layer) == 4
    assert Winograd(4).cost(layer).multiplications == 4 * 36


@pytest.mark.parametrize("output", [1, 2, 3, 4, 5, 6])
def test_all_ones(output):
    """9 C in the middle, 6 C at the sides, 4 C in the corners."""
    x, weight = torch.ones(1, 5, 11, 9, dtype=torch.float64), torch.ones(2, 5, 3, 3, dtype=torch.float64)
    found = convolve(x, weight, layer_of(x, weight, padding=1), Winograd(output))
    rows, columns = (torch.tensor([2.0] + [3.0] * (size - 2) + [2.0]) for size in (11, 9))
    assert torch.allclose(found, 5 * (rows[:, None] * columns).double().expand(1, 2, -1, -1), atol=1e-10)


def test_errors_grow_with_the_tile():
    """F(2, 3) < F(4, 3) < F(6, 3), all small (Lavin & Gray 2015, section 5)."""
    layer = Layer(64, 16, size=(18, 18), kernel=(3, 3))
    two, four, six = (error(Winograd(output), layer).ulps for output in (2, 4, 6))
    assert two < four < six < 1000


def test_the_workspace_is_what_the_kernel_gets(monkeypatch):
    """To the byte, whatever the variant that runs; the reference tells the paper's alpha^2 (C + K) T."""
    layer = Layer(20, 40, size=(30, 31), kernel=(3, 3), padding=(1, 1), batch=2)
    x, weight = torch.randn(2, 20, 30, 31), torch.randn(40, 20, 3, 3)
    algorithm, seen = Winograd(4), []
    right = functional.conv2d(x, weight, padding=1)
    monkeypatch.setattr(winograd, "run", lambda name, *given: bool(seen.append(given[4].nbytes)))
    found = algorithm.run(x, algorithm.prepare(weight, layer), layer)
    assert torch.allclose(found, right, atol=1e-3), "the plain reference of the operator"
    if kernel.variant() != "reference":
        assert seen == [algorithm.cost(layer).workspace]
    assert algorithm.cost(layer, 8).workspace == 36 * (20 + 40) * 2 * 8 * 8 * 8


def test_small_blocks_give_the_same(monkeypatch):
    """A workspace of the fewest tiles makes many blocks, of parts of rows and of several images."""
    monkeypatch.setattr(winograd, "LEAST", 1)
    x, weight, bias = torch.randn(3, 5, 9, 75), torch.randn(18, 5, 3, 3), torch.randn(18)
    right = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
    for output in winograd.OUTPUTS:
        held = winograd.prepare(weight, output)
        found = winograd.winograd(x, held, bias, 18, output, [1, 1], True)
        assert float((found - right).abs().max()) < 1e-4 * float(right.abs().max())


def test_nan_comes_through():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = float("nan")
    found = winograd.winograd(x, winograd.prepare(torch.ones(1, 1, 3, 3), 2), None, 1, 2, [0, 0], True)
    assert bool(found.isnan().any())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"output": 3}, "outputs of"),
        ({"padding": [1]}, "padding"),
        ({"filters": 40}, "isn't one of 40"),
        ({"x": torch.zeros(1, 3, 8, 8)}, "3 channels"),
        ({"x": torch.zeros(1, 2, 8, 8, dtype=torch.float64)}, "float32"),
        ({"x": torch.zeros(1, 2, 2, 8)}, "no output"),
        ({"bias": torch.zeros(3)}, "bias"),
    ],
)
def test_the_operator_refuses_what_doesn_t_fit(bad, says):
    given = {"x": torch.zeros(1, 2, 8, 8), "weight": winograd.prepare(torch.ones(4, 2, 3, 3), 4), "bias": None,
             "filters": 4, "output": 4, "padding": [0, 0], "rectify": False} | bad  # fmt: skip
    with pytest.raises(MethodError, match=says):
        winograd.winograd(*given.values())


def test_other_kernels_than_3_x_3():
    x, weight = torch.randn(1, 2, 12, 12, dtype=torch.float64), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    layer = layer_of(x, weight, padding=2)
    assert torch.allclose(convolve(x, weight, layer, Winograd(4)), functional.conv2d(x, weight, padding=2))
    assert "use output 4" in Winograd(5).unsuited(layer)
    assert "stride" in Winograd().unsuited(layer_of(x, weight, 2))
    assert "not square" in Winograd().unsuited(layer_of(x, weight[..., :3]))
    for bad in (0, 8):
        with pytest.raises(MethodError, match="output"):
            Winograd(bad)
