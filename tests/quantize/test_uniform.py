"""Uniform quantization: closed forms, invariants and the optimality that its parts claim."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.quantize.uniform import Uniform
from lilliput.testing import hostile
from lilliput.testing.spread import gaussian, tried, weights

BITS = range(1, 9)
PER = ("tensor", "row", "group")


def error(method, weight):
    return float((unpack(method.pack(weight)).double() - weight.double()).square().sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_no_more_levels_than_bits_allow(bits, symmetric):
    weight = gaussian(64, 64)
    codes = Uniform(bits=bits, symmetric=symmetric, per="tensor").pack(weight).parts["codes"]
    assert len(codes.unique()) <= 2**bits
    if symmetric and bits > 1:
        assert int(codes.abs().max()) == 2 ** (bits - 1) - 1
    if not symmetric:
        assert (int(codes.min()), int(codes.max())) == (0, 2**bits - 1)


def test_golden_values_of_the_standard_fixture():
    w = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])
    packed = Uniform(bits=3, per="tensor").pack(w)
    assert packed.parts["codes"].tolist() == [3, -2, 1, -1, 0, 0, 0, 2, 0, 0]
    assert float(packed.parts["scale"]) == pytest.approx(0.3)
    affine = Uniform(bits=2, per="tensor", symmetric=False).pack(w)
    assert float(affine.parts["scale"]) == pytest.approx(1.64 / 3)
    assert affine.parts["zero"].tolist() == [1]
    assert affine.parts["codes"].tolist() == [3, 0, 2, 0, 1, 1, 1, 2, 1, 1]


def test_one_bit_scale_is_the_mean_magnitude_and_optimal():
    weight = gaussian(6, 40)
    packed = Uniform(bits=1).pack(weight)
    assert torch.allclose(packed.parts["scale"], weight.abs().mean(1))
    assert torch.equal(packed.parts["codes"], torch.sign(weight).to(torch.int8))
    best = error(Uniform(bits=1), weight)
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = packed.with_parts(scale=packed.parts["scale"] * factor)
        assert float((unpack(other) - weight).double().square().sum()) > best


def test_one_bit_of_the_largest_weights_stays_finite():
    weight = torch.full((2, 50), 3e38)
    assert torch.allclose(unpack(Uniform(bits=1).pack(weight)), weight)


@pytest.mark.parametrize("cell_mean", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("bits", BITS)
def test_zero_is_exactly_representable(bits, per, symmetric, cell_mean):
    weight = gaussian(8, 24) + 0.05
    weight[::2, ::3] = 0
    method = Uniform(bits=bits, per=per, group=6, symmetric=symmetric, cell_mean=cell_mean)
    assert bool((unpack(method.pack(weight))[weight == 0] == 0).all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_error_is_at_most_half_a_step(bits, symmetric):
    weight = gaussian(16, 50)
    packed = Uniform(bits=bits, symmetric=symmetric).pack(weight)
    deviation = (unpack(packed) - weight).abs().amax(1) / packed.parts["scale"]
    # Affine: the ends move by the rounding of the zero point, at most half a step more.
    assert float(deviation.max()) <= (0.5 if symmetric else 1.0) + 1e-4


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_symmetric_grid_is_idempotent(bits, per):
    method = Uniform(bits=bits, per=per, group=8)
    once = method.pack(gaussian(8, 24))
    twice = method.pack(unpack(once))
    assert torch.equal(twice.parts["codes"], once.parts["codes"])
    assert torch.allclose(unpack(twice), unpack(once), rtol=3e-7, atol=0)


@pytest.mark.parametrize("cell_mean", [True, False])
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("bits", BITS)
def test_odd_symmetry(bits, per, cell_mean):
    method = Uniform(bits=bits, per=per, group=8, cell_mean=cell_mean)
    weight = gaussian(8, 24)
    assert torch.equal(unpack(method.pack(-weight)), -unpack(method.pack(weight)))


@pytest.mark.parametrize("power", [-20, -3, 1, 20])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("bits", BITS)
def test_powers_of_two_scale_through(bits, per, symmetric, power):
    method = Uniform(bits=bits, per=per, group=8, symmetric=symmetric)
    weight, factor = gaussian(8, 24), 2.0**power
    assert torch.equal(unpack(method.pack(weight * factor)), unpack(method.pack(weight)) * factor)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_finer_scales_are_better_in_the_mean(bits, symmetric):
    totals = []
    for per in PER:
        method = Uniform(bits=bits, per=per, group=16, symmetric=symmetric)
        sizes = torch.linspace(0.2, 2, 32)[:, None]
        totals.append(sum(error(method, gaussian(32, 64, seed=s) * sizes) for s in range(5)))
    tensor, row, group = totals
    assert group <= row <= tensor


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("bits", BITS)
def test_cell_means_are_never_worse_than_the_grid(bits, per, symmetric):
    """Pointwise, also where rows have very different scales."""
    for seed in range(4):
        weight = gaussian(16, 24, seed=seed) * torch.logspace(-3, 1, 16)[:, None]
        grid = Uniform(bits=bits, per=per, group=6, symmetric=symmetric)
        mean = Uniform(bits=bits, per=per, group=6, symmetric=symmetric, cell_mean=True)
        assert error(mean, weight) <= error(grid, weight) * (1 + 1e-6)


def test_cell_mean_is_the_mean_of_the_cell():
    weight = torch.tensor([[1.0, 0.9, 0.2, -0.1, -0.8]])
    packed = Uniform(bits=2, per="tensor", cell_mean=True).pack(weight)
    assert packed.parts["codes"].tolist() == [[1, 1, 0, 0, -1]]
    assert packed.parts["levels"].tolist() == pytest.approx([-0.8, 0.05, 0.95])


def test_groups_must_divide_a_row():
    with pytest.raises(MethodError, match=r"groups of 7 don't divide rows of 24 weights \(shape \(8, 24\)\)"):
        Uniform(per="group", group=7).pack(gaussian(8, 24))
    assert len(Uniform(per="group", group=8).pack(gaussian(8, 24)).parts["scale"]) == 24


@pytest.mark.parametrize(
    "wrong", [{"bits": 0}, {"bits": 17}, {"bits": 9, "symmetric": False}, {"group": 0}, {"per": "rows"}]
)
def test_settings_out_of_range(wrong):
    with pytest.raises(MethodError, match="quantize/uniform: "):
        Uniform(**wrong)


@pytest.mark.parametrize(("symmetric", "per"), [(False, "row"), (False, "group"), (True, "tensor"), (True, "group")])
def test_damage_to_settings_that_choices_leave_out(symmetric, per):
    method = Uniform(bits=4, symmetric=symmetric, per=per, group=4, cell_mean=True)
    found = ((n, w, tried(lambda w=w: method.pack(w), n)) for n, w in weights().items())
    hostile.check((n, w, p) for n, w, p in found if p is not None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=24),
    st.integers(1, 8),
    st.booleans(),
    st.booleans(),
)
def test_values_lie_among_the_levels(values, bits, symmetric, cell_mean):
    weight = torch.tensor(values)
    back = unpack(Uniform(bits=bits, symmetric=symmetric, per="tensor", cell_mean=cell_mean).pack(weight))
    assert bool(torch.isfinite(back).all())
    assert len(back.unique()) <= max(2**bits, 3)
    assert float(back.abs().max()) <= float(weight.abs().max()) * (2.001 if not symmetric else 1.001)


@pytest.mark.parametrize("cell_mean", [True, False])
def test_more_than_eight_bits_are_sixteen_bit_codes(cell_mean):
    weight = gaussian(8, 24)
    packed = Uniform(bits=12, cell_mean=cell_mean).pack(weight)
    assert packed.parts["codes"].dtype == torch.int16
    assert int(packed.parts["codes"].abs().max()) == 2047
    assert float((unpack(packed) - weight).abs().max()) <= float(packed.parts["scale"].max()) * 0.501
