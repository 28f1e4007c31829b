"""Ranges by divergence: the definition bin by bin, for TensorRT's and for ncnn's, and what they are known to do."""

import math

import pytest
import torch

from lilliput.observe.ranges import HistogramOf
from lilliput.quantize.solvers.kl import EPSILON, KL, divergences, smooth
from lilliput.quantize.solvers.kl_ncnn import EPSILON as ADDED
from lilliput.quantize.solvers.kl_ncnn import KLNcnn, divergence
from lilliput.solve.grid import Grid
from lilliput.solve.sample import magnitudes
from lilliput.testing.spread import gaussian


def tensorrt(histogram, i, levels):
    """The reference pseudo-code, literally."""
    inside = histogram[:i]
    known = list(inside)
    known[-1] += sum(histogram[i:])
    guessed = [0.0] * i
    for level in range(levels):
        own = [b for b in range(i) if b * levels // i == level]
        live = [b for b in own if inside[b] > 0]
        for b in live:
            guessed[b] = sum(inside[x] for x in own) / len(live)
    total, mass = sum(known), sum(guessed)
    result = 0.0
    for p, q in zip(known, guessed):
        if p > 0:
            result += p / total * math.log(p / total / (q / mass if q > 0 else EPSILON))
    return max(result, 0.0)


def ncnn(histogram, bins, levels):
    """Levels of fractional width: each takes its part of the bins at its edges, and gives it back evenly."""
    known = [value + ADDED for value in histogram[:bins]]
    known[-1] += sum(histogram[bins:])
    width = bins / levels
    guessed = [ADDED] * bins
    for level in range(levels):
        start, end = level * width, (level + 1) * width
        parts = [max(0.0, min(end, b + 1) - max(start, b)) for b in range(bins)]
        mean = sum(part * value for part, value in zip(parts, histogram)) / width
        guessed = [value + part * mean for value, part in zip(guessed, parts)]
    return sum(p * math.log(p / q) for p, q in zip(known, guessed))


def histogram(seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 9, (40,), generator=generator).double()
    counts[torch.rand(40, generator=generator) < 0.3] = 0
    counts[39] = 1
    return counts


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [3, 8])
def test_all_divergences_are_those_of_the_definition(seed, levels):
    counts = histogram(seed)
    expected = [tensorrt(counts.tolist(), i, levels) for i in range(levels, 41)]
    assert divergences(counts, levels).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [3, 8])
def test_ncnn_divergence_is_that_of_the_definition(seed, levels):
    counts = histogram(seed)
    counts /= counts.sum()
    for bins in (levels, 17, 24, 39):
        expected = ncnn(counts.tolist(), bins, levels)
        assert float(divergence(counts[None].numpy(), levels, bins)[0]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("solver", [KL, KLNcnn])
def test_even_values_keep_the_whole_range(solver):
    values = torch.linspace(-2, 2, 40_001)[None]
    assert float(solver(bins=512).span(values, Grid(8))[1]) == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("solver", [KL, KLNcnn])
def test_a_lonely_outlier_is_clipped(solver):
    values = torch.cat([10 * gaussian(1, 50_000), torch.tensor([[100.0]])], 1)
    low, high = solver().span(values, Grid(8))
    assert float(high) < 10
    assert float(low) == -float(high)


def test_the_two_differ():
    """Empty bins get mass in ncnn's and none in TensorRT's."""
    values = (10 * gaussian(1, 300)).round()
    assert float(KL().span(values, Grid(8))[1]) != float(KLNcnn().span(values, Grid(8))[1])


def test_ncnn_passes_over_zeros():
    values = torch.cat([gaussian(1, 5000), torch.zeros(1, 100_000)], 1)
    assert torch.equal(KLNcnn(512).span(values, Grid(8))[1], KLNcnn(512).span(values[:, :5000], Grid(8))[1])


@pytest.mark.parametrize("zeros", [50_000, 5_000_000])
def test_zeros_of_a_relu_change_nothing(zeros):
    """They are represented at any scale; as a peak in the first bin they would clip nearly all of the rest."""
    centres = (torch.arange(2000, dtype=torch.float64)[None] + 0.5) / 2000
    counts = torch.exp(-3 * centres) * 1000
    more = counts.clone()
    more[0, 0] += zeros
    grid = Grid(8, symmetric=False)
    plain = KL().span(centres, grid, counts)[1]
    assert torch.equal(KL().span(centres, grid, more)[1], plain)
    assert float(plain) > 0.7


@pytest.mark.parametrize("bits", [4, 8])
def test_pixels_keep_their_range(bits):
    """256 values, half of them the background: exact in a range that holds few of them, and useless there."""
    pixels = torch.cat([torch.zeros(20_000), torch.arange(256).repeat(80)])
    seen = HistogramOf()
    seen.see((pixels / 255 - 0.286) / 0.353)
    centres, counts = seen.result().points()
    assert float(KL().span(centres, Grid(bits, symmetric=False), counts)[1]) > 1.9


def test_values_seen_again_and_again_change_little():
    """What a layer makes of a plain background is a peak, too, but none that only a few ranges can hold."""
    centres = (torch.arange(4000, dtype=torch.float64)[None] + 0.5) / 4000
    counts = torch.exp(-12 * centres) * 1000
    peaks = counts.clone()
    peaks[0, [390, 990]] += 0.025 * float(counts.sum())
    plain, found = (float(KL().span(centres, Grid(8, symmetric=False), c)[1]) for c in (counts, peaks))
    assert found > 0.8 * plain


def test_smoothing_loses_nothing():
    given = torch.rand(2, 300, dtype=torch.float64)
    given[:, 100:200] = 0
    found = smooth(given, 8)
    assert torch.allclose(found.sum(1), given.sum(1))
    assert bool((found[:, 108:192] == 0).all())
    assert bool((found[:, 92:108] > 0).all())
    assert torch.allclose(smooth(given, 0), given)


def test_fewer_codes_clip_more():
    values = gaussian(1, 50_000)
    ends = [float(KL().span(values, Grid(bits))[1]) for bits in (3, 5, 8)]
    assert ends == sorted(ends)
    assert ends[0] < 0.8 * ends[2]


def test_values_of_one_sign_may_use_all_codes():
    values = gaussian(1, 50_000).abs()
    low, high = KL().span(values, Grid(4, symmetric=False))
    assert float(low) == 0
    assert torch.equal(high, KL().span(values, Grid(5))[1])


@pytest.mark.parametrize("bins", [700, 1000, 2048])
def test_bins_of_another_width_share_the_mass_evenly(bins):
    """An even histogram stays even, however its bins fall upon others."""
    centres = (torch.arange(-3000, 3000, dtype=torch.float64)[None] + 0.5) * 2.0**-8
    counts = torch.full((1, 6000), 7.0, dtype=torch.float64)
    found, peak = magnitudes(centres, counts, bins)
    assert float(peak) == 3000 * 2.0**-8
    assert torch.allclose(found, torch.full_like(found, 42_000 / bins))


@pytest.mark.parametrize("solver", [KL(), KLNcnn()])
def test_a_histogram_tells_what_the_values_tell(solver):
    values = torch.cat([3 * gaussian(1, 30_000), torch.tensor([[4.0]])], 1)
    width = 2.0**-9
    places = (values / width).floor().long() + 4096
    counts = torch.bincount(places[0], minlength=8192)
    centres = (torch.arange(8192, dtype=torch.float64)[None] - 4096 + 0.5) * width
    expected = float(solver.span(values, Grid(8))[1])
    assert float(solver.span(centres, Grid(8), counts)[1]) == pytest.approx(expected, rel=0.08)
