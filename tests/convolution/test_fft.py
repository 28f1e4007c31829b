"""Convolution by FFT: tiles give what the whole gives, spectra are as large as is said, impulses only move."""

import pytest
import torch
from torch.nn import functional

from lilliput.convolution.contract import layer_of
from lilliput.convolution.fft import Fft, good_length
from lilliput.core.errors import MethodError
from lilliput.hardware.layer import Layer


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
    tiled = Fft(8).cost(layer)
    assert tiled.prepared == 8 * 8 * 5 * 30
    assert tiled.workspace == 8 * 8 * 5 * 2 * 11 * 3, "a row of three tiles at a time"


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
