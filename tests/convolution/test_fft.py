"""Convolution by FFT: tiles give what the whole gives, spectra are as large as is said, impulses only move."""

import pytest
import torch
from torch.nn import functional

from lilliput.convolution.contract import layer_of
from lilliput.convolution.fft import Fft, good_length
from lilliput.core import kernel
from lilliput.core.errors import MethodError
from lilliput.hardware.layer import Layer
from lilliput.kernels import fft_conv


def convolved(algorithm, x, weight, **how):
    layer = layer_of(x, weight, **how)
    return algorithm.run(x, algorithm.prepare(weight, layer), layer)


@pytest.mark.parametrize("tile", [0, 7, 8, 9, 16, 64])
def test_any_tile_gives_the_whole(tile):
    """Odd and even lengths, tiles larger than the input, the last ones lying partly outside."""
    x, weight = torch.randn(2, 3, 21, 18, dtype=torch.float64), torch.randn(4, 3, 5, 5, dtype=torch.float64)
    for how in ({}, {"padding": 2}, {"stride": 3, "padding": 1}):
        right = functional.conv2d(x, weight, None, **how)
        assert torch.allclose(convolved(Fft(tile), x, weight, **how), right, atol=1e-10)


def test_one_tap_and_an_impulse():
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(convolved(Fft(), x, 2 * torch.ones(1, 1, 1, 1, dtype=torch.float64)), 2 * x)
    impulse = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    impulse[0, 0, 2, 1] = 1
    assert torch.allclose(convolved(Fft(8), x, impulse), x[:, :, 2:, 1:-1])


def test_the_transform_of_the_input_is_shared_by_all_filters(monkeypatch):
    """N C transforms of the input and N K back, whatever the number of pairs of channels and filters."""
    done = {"rfft2": 0, "irfft2": 0}
    for name in done:
        whole = getattr(torch.fft, name)

        def counted(value, *, s, name=name, whole=whole):
            done[name] += value.shape[:-2].numel()
            return whole(value, s=s)

        monkeypatch.setattr(torch.fft, name, counted)
    x, weight = torch.randn(2, 3, 16, 16), torch.randn(7, 3, 3, 3)
    layer = layer_of(x, weight)
    held = Fft().prepare(weight, layer)
    assert done == {"rfft2": 21, "irfft2": 0}
    Fft().run(x, held, layer)
    assert done == {"rfft2": 21 + 6, "irfft2": 14}


def test_spectra_are_as_large_as_is_said():
    """8 n1 (n2 / 2 + 1) bytes for each of N C + K C + N K planes of float32 (Mathieu, Henaff & LeCun 2013)."""
    layer = Layer(5, 6, size=(15, 16), kernel=(3, 3), batch=2)
    cost = Fft().cost(layer)
    assert cost.workspace + cost.prepared == 8 * 15 * 9 * (2 * 5 + 6 * 5 + 2 * 6)
    assert cost.multiplications == 4 * 15 * 9 * 2 * 5 * 6
    tiled = Fft(8).cost(layer)  # in torch
    assert tiled.prepared == 8 * 8 * 5 * 30
    assert tiled.workspace == 8 * 8 * 5 * 2 * 11 * 3, "a row of three tiles at a time"


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize("tile", fft_conv.TILES)
def test_compiled_tiles(variant, tile, monkeypatch):
    """Several blocks of several images and groups, tiles partly outside, the largest kernel: direct to 1e-6."""
    monkeypatch.setattr(fft_conv, "USUAL", 1)
    torch.manual_seed(0)
    for size, how in (
        ((5, 4), {"padding": 3}),
        ((tile - 1, tile), {"padding": 7}),
        ((3, 5), {"stride": (2, 3), "padding": 1, "dilation": (3, 2), "groups": 2}),
        ((1, 1), {}),
    ):
        x, weight, bias = torch.randn(2, 6, 37, 44), torch.randn(8, 6 // how.get("groups", 1), *size), torch.randn(8)
        layer = layer_of(x, weight, **how)
        algorithm = Fft(tile)
        right = functional.conv2d(x.double(), weight.double(), bias.double(), **how)
        with kernel.using(variant):
            found = algorithm.run(x, algorithm.prepare(weight, layer), layer, bias)
        assert float((found - right).abs().max()) < 1e-6 * float(right.abs().max())


@pytest.mark.parametrize("tile", fft_conv.TILES)
def test_the_kernel_gets_the_workspace_that_is_said(tile, monkeypatch):
    """To the byte; spectra of tiles take what the tiles do, of kernels likewise."""
    x, weight = torch.randn(2, 6, 60, 50), torch.randn(4, 3, 7, 7)
    layer, algorithm, seen = layer_of(x, weight, padding=3, groups=2), Fft(tile), []
    held = algorithm.prepare(weight, layer)
    monkeypatch.setattr(fft_conv, "run", lambda name, *given: bool(seen.append(given[4].nbytes)))
    found = algorithm.run(x, held, layer)
    assert torch.allclose(found, functional.conv2d(x, weight, padding=3, groups=2), atol=1e-3), "the reference"
    cost = algorithm.cost(layer)
    assert seen == [cost.workspace] or kernel.variant() == "reference"
    assert cost.prepared == held.nbytes == 4 * tile * tile * 4 * 3
    tiles = 2 * fft_conv.tiles_of((60, 50), (7, 7), [1, 1, 3, 3, 1, 1], tile)[0] * -(-50 // (tile - 6))
    assert cost.multiplications == 2 * tile * tile * tiles * 4 * 3
    block = fft_conv.block_of(tiles, 3, 2, tile)
    assert block.floats == tile * tile * (block.tiles * (3 + 2) + 2)
    assert cost.workspace == 4 * block.floats < fft_conv.USUAL + 4 * 5 * tile * tile


def test_spectra_are_laid_out_and_read_back():
    for tile in fft_conv.TILES:
        weight = torch.randn(4, 3, 5, 6, dtype=torch.float64)
        spread = torch.zeros(4, 3, 9, 6, dtype=torch.float64)
        spread[:, :, ::2] = weight
        expected = torch.fft.rfft2(spread, s=(tile, tile)).conj()
        found = fft_conv.restored(fft_conv.prepare(weight, tile, 2, (2, 1)))
        assert torch.allclose(found.flatten(0, 1), expected, atol=1e-5)


@pytest.mark.parametrize("tile", [0, *fft_conv.TILES])
def test_the_error_is_small_beside_the_norms(tile):
    """About u log2(n) |x| |w| for each output, u = 2^-24: small ones lose relative accuracy where tiles are large."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 4, 64, 64), torch.randn(3, 4, 7, 7)
    x[..., 40:] *= 1e-4
    right = functional.conv2d(x.double(), weight.double())
    off = (convolved(Fft(tile), x, weight) - right).abs()
    bound = 2.0**-24 * 12 * float(x.norm()) * float(weight[0].norm())
    assert float(off.max()) < bound
    near, far = (
        float((off / right.abs().clamp(min=1e-9))[..., part].median()) for part in (slice(0, 30), slice(40, 58))
    )
    # Tiles of 16 have the large and the small inputs apart, but for those at the seam.
    assert far < 10 * near if tile == 16 else far > 100 * near


def test_no_pictures():
    held = fft_conv.prepare(torch.ones(4, 2, 3, 3), 16)
    found = fft_conv.fft_conv(torch.zeros(0, 2, 9, 9), held, None, [3, 3], [1, 1, 0, 0, 1, 1], False)
    assert found.shape == (0, 4, 7, 7)


def test_nan_comes_through_a_tile():
    x, held = torch.zeros(1, 1, 9, 9), fft_conv.prepare(torch.ones(1, 1, 3, 3), 16)
    x[0, 0, 4, 4] = float("nan")
    assert bool(fft_conv.fft_conv(x, held, None, [3, 3], [1, 1, 0, 0, 1, 1], True).isnan().any())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"x": torch.zeros(1, 3, 20, 20)}, "3 channels"),
        ({"x": torch.zeros(1, 2, 20, 20, dtype=torch.float64)}, "float32"),
        ({"weight": torch.zeros(1, 9, 4, 2, 32)}, "isn't one of prepared spectra"),
        ({"bias": torch.zeros(3)}, "bias"),
        ({"kernel": [17, 3]}, "larger than a tile of 16"),
        ({"kernel": [21, 3]}, "larger than the padded input"),
        ({"window": [1, 1, 0, 0, 8, 1]}, "larger than a tile of 16"),
        ({"window": [0, 1, 0, 0, 1, 1]}, "a window is"),
    ],
)
def test_the_operator_refuses_what_doesn_t_fit(bad, says):
    given = {"x": torch.zeros(1, 2, 20, 20), "weight": fft_conv.prepare(torch.ones(4, 2, 3, 3), 16), "bias": None,
             "kernel": [3, 3], "window": [1, 1, 0, 0, 1, 1], "rectify": False} | bad  # fmt: skip
    with pytest.raises(MethodError, match=says):
        fft_conv.fft_conv(*given.values())


def test_large_kernels_need_fewer_products():
    layer = Layer(16, 16, size=(64, 64), kernel=(11, 11), padding=(5, 5))
    assert Fft().cost(layer).multiplications < layer.macs / 10
    assert Fft(32).cost(layer).multiplications < layer.macs / 10


def test_bad_tiles():
    assert "shorter than the kernel" in Fft(4).unsuited(Layer(1, 1, size=(9, 9), kernel=(3, 3), dilation=(2, 2)))
    with pytest.raises(MethodError, match="tile"):
        Fft(-1)


def test_lengths_have_small_primes():
    assert [good_length(n) for n in (1, 7, 11, 17, 31, 33, 97)] == [1, 8, 12, 18, 32, 36, 100]
