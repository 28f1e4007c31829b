"""Dynamic fixed point: golden values, saturation, exact integer arithmetic, random rounding in training."""

import pytest
import torch
from torch import nn

from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.quantize.fixed_point import FixedPoint, fraction_bits, trim
from lilliput.testing.spread import gaussian
from lilliput.train.attach import attach

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def test_golden_values_of_the_standard_fixture():
    expected = [0.8984375, -0.7421875, 0.3984375, -0.296875, 0.1015625, -0.0234375, 0, 0.6171875, 0.015625, 0]
    assert unpack(FixedPoint(bits=8).pack(W0)).tolist() == expected


def test_a_largest_weight_of_exactly_one_saturates():
    packed = FixedPoint(bits=8).pack(torch.tensor([1.0, -1.0]))
    assert unpack(packed).tolist() == [127 / 128, -1.0]


def test_ties_go_away_from_zero():
    assert FixedPoint(bits=4).pack(torch.tensor([0.9, 0.3125, -0.3125])).parts["codes"].tolist() == [7, 3, -3]


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 16])
def test_values_are_a_grid_of_that_many_bits(bits):
    packed = FixedPoint(bits=bits).pack(gaussian(60, 50))
    codes = packed.parts["codes"].long()
    assert -(2 ** (bits - 1)) <= int(codes.min())
    assert int(codes.max()) <= 2 ** (bits - 1) - 1
    assert float(torch.log2(packed.parts["scale"])) % 1 == 0
    assert torch.equal(unpack(packed).double(), codes.double() * packed.parts["scale"].double())


def test_idempotent_and_scaled_by_powers_of_two():
    weight = gaussian(20, 30)
    once = unpack(FixedPoint(bits=6).pack(weight))
    assert torch.equal(unpack(FixedPoint(bits=6).pack(once)), once)
    assert torch.equal(unpack(FixedPoint(bits=6).pack(weight * 8)), once * 8)


def test_no_code_overflows_the_weights_own_type():
    for weight in (torch.tensor([-65504.0], dtype=torch.float16), torch.tensor([-3.4e38])):
        assert bool(torch.isfinite(unpack(FixedPoint(bits=8).pack(weight))).all())


def test_integer_layer_is_the_layer_of_the_values():
    """Codes multiplied and added as integers, shifted once at the end, are the exact product of the values."""
    weight, inputs = gaussian(7, 40), gaussian(40, 5, seed=3)
    w, x = FixedPoint(bits=8).pack(weight), FixedPoint(bits=8).pack(inputs)
    total = w.parts["codes"].long() @ x.parts["codes"].long()
    shift = fraction_bits(weight, 8) + fraction_bits(inputs, 8)
    assert torch.equal(total.double() * 2.0**-shift, unpack(w).double() @ unpack(x).double())


def test_training_draws_and_the_file_holds_the_nearest():
    torch.manual_seed(1)
    layer = nn.Linear(30, 40, bias=False)
    latent = layer.weight.detach().clone()
    attach(layer, Recipe((Rule(steps=(FixedPoint(bits=4, stochastic=True),)),)))
    layer.train()
    draws = torch.stack([layer.weight.detach() for _ in range(400)])
    step = float(FixedPoint(bits=4).pack(latent).parts["scale"])
    inside = latent.abs() < 7 * step
    assert len(draws.unique(dim=0)) > 300
    # The mean of 400 draws of variance at most step^2 / 4, within five deviations.
    assert float((draws.mean(0) - latent)[inside].abs().max()) < 5 * step / 2 / 20
    layer.eval()
    assert torch.equal(layer.weight, unpack(FixedPoint(bits=4).pack(latent)))


def test_trimming_takes_the_fewest_bits_that_pass():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5))
    before = [p.detach().clone() for p in model.parameters()]

    def metric(candidate):
        """Falls by the largest error of the convolution, and by ten times that of the linear layer."""
        lost = [(a - b).detach().abs().max() for a, b in zip(candidate.parameters(), before)]
        return 1 - float(lost[0]) - 10 * float(lost[2])

    recipe = trim(model, metric, drop=0.02)
    found = {rule.layers: rule.steps[0].bits for rule in recipe.rules}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before))
    for kind, place, factor in (("conv2d", 0, 1), ("linear", 2, 10)):
        passing = [
            bits
            for bits in (16, 8, 4, 2, 1)
            if factor * float((unpack(FixedPoint(bits=bits).pack(before[place])) - before[place]).abs().max()) <= 0.02
        ]
        assert found[kind] == min(passing)
    assert not trim(model, lambda m: 1.0 if m is model else 0.0).rules
