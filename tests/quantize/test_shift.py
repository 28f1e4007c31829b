"""ShiftCNN: golden values, bounds of each stage, shift-and-add in integers, distance from the best choice."""

import itertools
import math

import pytest
import torch

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.quantize.shift import Shift
from lilliput.testing.spread import gaussian

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def codebook(term, bits, first=True):
    """C_n by the formula, n from 1."""
    exponents = [1 - term - i for i in range(2 ** (bits - 1) - 1)][0 if first else 1 :]
    return [0.0] + [sign * 2.0**e for e in exponents for sign in (1, -1)]


def test_golden_values_of_the_standard_fixture():
    expected = [0.9, -0.7875, 0.39375, -0.28125, 0.0984375, -0.02109375, 0, 0.675, 0.0140625, 0]
    assert torch.allclose(unpack(Shift(terms=2, bits=4).pack(W0)), torch.tensor(expected), rtol=1e-6, atol=0)


def test_number_of_words():
    assert len(codebook(1, 4)) == 15
    assert len(codebook(1, 4, first=False)) == 13
    weight = torch.cat([gaussian(200_000, seed=5), torch.zeros(1)])
    for books, words in (("paper", 15), ("survey", 13)):
        value = unpack(Shift(terms=1, codebooks=books).pack(weight))
        assert len(value.unique()) == words


@pytest.mark.parametrize("books", ["paper", "survey"])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("terms", [1, 2, 3])
def test_each_term_is_a_word_of_its_codebook(terms, bits, books):
    weight = gaussian(50, 60)
    packed = Shift(terms=terms, bits=bits, codebooks=books).pack(weight)
    for number, plane in enumerate(packed.parts["codes"].long()):
        top = packed.settings["top"] - number
        value = torch.where(plane == 0, 0.0, torch.sign(plane) * 2.0 ** (top + 1 - plane.abs()))
        assert set(value.flatten().tolist()) <= set(codebook(number + 1, bits, books == "paper"))


def test_one_term_is_the_nearest_word():
    weight = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    words = torch.tensor(codebook(1, 4), dtype=torch.float64)
    found = (unpack(Shift(terms=1).pack(weight)) - weight).abs()
    best = (weight[:, None] - words).abs().min(1).values
    # Below the least power the paper's rule drops more than the nearest word would: from 3/4 of it on it is kept.
    least = 2.0**-6
    outside = weight.abs() >= 0.75 * least
    assert torch.equal(found[outside], best[outside])


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_each_stage_leaves_a_third_at_most(terms):
    weight = gaussian(4000)
    scale = float(weight.abs().max())
    before = weight.double()
    for number in range(1, terms + 1):
        after = weight.double() - unpack(Shift(terms=number).pack(weight.double()))
        alive = before.abs() / scale >= 0.75 * 2.0 ** (1 - number - 6)
        assert bool((after.abs()[alive] <= before.abs()[alive] / 3 + 1e-12).all())
        before = after


def test_signal_to_noise_of_a_gaussian():
    """14.2, 28.5 and 41.1 dB with one, two and three terms of 4 bits."""
    weight = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for terms, decibel in ((1, 14.2), (2, 28.5), (3, 41.1)):
        noise = (unpack(Shift(terms=terms).pack(weight)) - weight).square().mean()
        assert 10 * math.log10(float(weight.square().mean() / noise)) == pytest.approx(decibel, abs=0.7)


def test_shift_and_add_in_integers_is_the_product():
    """Inputs shifted left by what each term asks for, added up: the product with the values times 2^deepest."""
    weight, inputs = gaussian(6, 40), torch.randint(-128, 128, (40,), generator=torch.Generator().manual_seed(1))
    packed = Shift(terms=2, bits=4).pack(weight)
    deepest = 7
    total = torch.zeros(6, dtype=torch.int64)
    for number, plane in enumerate(packed.parts["codes"].long()):
        places = deepest + packed.settings["top"] - number + 1 - plane.abs()
        assert int(places[plane != 0].min()) >= 0
        total += (torch.sign(plane) * (inputs << places.clamp(min=0))).sum(1)
    scale = packed.parts["scale"].double()
    value = unpack(Shift(terms=2, bits=4).pack(weight.double())) / scale * 2.0**deepest
    assert torch.equal(value @ inputs.double(), total.double())


def test_greedy_is_near_the_best_choice():
    """All pairs of words of two codebooks: greedy is not the best for every weight, but nearly so in the mean."""
    weight = torch.linspace(-1, 1, 801, dtype=torch.float64)
    sums = torch.tensor(
        sorted({a + b for a, b in itertools.product(codebook(1, 4), codebook(2, 4))}), dtype=torch.float64
    )
    best = (weight[:, None] - sums).abs().min(1).values
    greedy = (unpack(Shift(terms=2).pack(weight)) - weight).abs()
    assert bool((greedy >= best - 1e-12).all())
    assert float(greedy.square().mean()) <= 1.15 * float(best.square().mean())


def test_a_codebook_without_words():
    with pytest.raises(MethodError, match="empty"):
        Shift(bits=2, codebooks="survey")
