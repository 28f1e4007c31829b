"""Uniform activations against the formula, in integers, and by hand."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.solver import solvers_of
from lilliput.core.stats import Stats
from lilliput.observe.ranges import HistogramOf, Range
from lilliput.quantize.activations.uniform import Uniform
from lilliput.solve.grid import Grid


def seen(low, high):
    return Stats({"range": Range(low, high, 10, 0.25)})


def test_affine_by_hand():
    uniform = Uniform(bits=8)
    numbers = uniform.observe(seen(-0.5, 2.05))
    assert numbers == {"scale": float(torch.tensor(0.01, dtype=torch.float32)), "zero": 50}
    x = torch.tensor([-9.0, -0.5, 0.0, 0.014, 2.05, 9.0])
    out = uniform.forward(x, numbers)
    assert torch.allclose(out, torch.tensor([-0.5, -0.5, 0.0, 0.01, 2.05, 2.05]), atol=1e-6)
    assert out[2] == 0, "zero is a level"


def test_positive_ranges_have_no_zero_point():
    assert Uniform(bits=4).observe(seen(0.5, 3.0)) == {"scale": float(torch.tensor(0.2)), "zero": 0}
    assert Uniform(bits=4, form="unsigned").observe(seen(-7.0, 3.0))["zero"] == 0


@pytest.mark.parametrize("form", ["affine", "symmetric", "unsigned"])
@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_codes_are_integers_within_range(form, bits):
    """The value is (code - zero) scale, with the code that integer arithmetic in float64 gives."""
    torch.manual_seed(bits)
    x = torch.randn(4000)
    uniform = Uniform(bits=bits, form=form)
    numbers = uniform.observe(seen(-2.0, 1.5))
    scale, zero = numbers["scale"], numbers["zero"]
    code = torch.clamp(torch.round((x / scale).double()) + zero, *uniform.codes)
    assert torch.equal(uniform.forward(x, numbers), ((code - zero).float() * scale))
    assert code.min() == uniform.codes[0]
    assert code.max() == uniform.codes[1]


@pytest.mark.parametrize("form", ["affine", "symmetric", "unsigned"])
def test_error_is_half_a_step_inside(form):
    x = torch.rand(1000) * (2 if form == "unsigned" else 4) - (0 if form == "unsigned" else 2)
    uniform = Uniform(bits=6, form=form, clip=2.0)
    numbers = uniform.observe(None)
    # An affine range is moved by up to half a step to make zero a level.
    slack = numbers["scale"] * (0.5 if form != "affine" else 1.0) * 1.001
    assert float((uniform.forward(x, numbers) - x).abs().max()) <= slack


@pytest.mark.parametrize("form", ["affine", "symmetric", "unsigned"])
def test_dynamic_is_static_with_the_tensor_s_own_range(form):
    torch.manual_seed(0)
    for x in (torch.randn(50), torch.rand(50), -torch.rand(50), torch.zeros(4)):
        low, high = float(x.min()), float(x.max())
        static = Uniform(bits=5, form=form)
        one = Uniform(bits=5, form=form, range="dynamic").forward(x, {})
        other = static.forward(x, static.between(low, high))
        assert torch.allclose(one, other, atol=1e-6 * max(abs(low), abs(high)))


def test_gradient_is_masked_where_clipped():
    uniform = Uniform(bits=3, form="symmetric", clip=3.0)
    x, grad = torch.tensor([-3.6, -3.4, 0.2, 3.49, 3.51]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    own, rest = uniform.gradient(x, uniform.observe(None), grad)
    assert own.tolist() == [0, 2, 3, 4, 0]
    assert rest == {}


def test_learned_scale_follows_lsq():
    """dv/ds: round(x/s) - x/s inside, the bound outside; over sqrt(n q)."""
    uniform = Uniform(bits=3, form="symmetric", clip=3.0, learned=True)
    numbers = {"scale": 0.5, "zero": 0}
    x = torch.tensor([0.6, -0.2, 9.0, -9.0])
    grad = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    own, rest = uniform.gradient(x, numbers, grad)
    slopes = [1 - 1.2, 0 + 0.4, 3, -3]
    expected = sum(g * s for g, s in zip(grad.tolist(), slopes)) / (4 * 3) ** 0.5
    assert float(rest["scale"]) == pytest.approx(expected, rel=1e-5)
    assert own.tolist() == [1, 10, 0, 0]


def test_a_learned_scale_starts_where_lsq_says():
    assert Uniform(bits=3, form="unsigned", learned=True).observe(seen(0.0, 4.0))["scale"] == pytest.approx(
        2 * 0.25 / 7**0.5
    )


def test_learning_a_scale_lowers_the_error():
    """Gradient descent on the squared error from a bad scale comes near the best scale of a fine grid."""
    torch.manual_seed(1)
    x, uniform = torch.randn(2000), Uniform(bits=3, form="symmetric", clip=1.0, learned=True)

    def error(scale):
        return float((uniform.forward(x, {"scale": scale, "zero": 0}) - x).square().mean())

    scale = 1.5
    for _ in range(300):
        value = uniform.forward(x, {"scale": scale, "zero": 0})
        _, rest = uniform.gradient(x, {"scale": scale, "zero": 0}, 2 * (value - x) / len(x))
        scale -= 5.0 * float(rest["scale"])
    best = min(error(s / 200) for s in range(20, 400))
    assert error(scale) <= 1.02 * best < error(1.5)


def test_integer_layer_is_the_float_layer():
    """Codes times codes in int32, less the zero point's share, times both scales: what the quantized layer computes."""
    torch.manual_seed(2)
    layer, x = nn.Linear(64, 8, bias=False), torch.rand(5, 64) * 3 - 1
    uniform = Uniform(bits=8)
    numbers = uniform.observe(seen(-1.0, 2.0))
    scale, zero = numbers["scale"], numbers["zero"]
    step = 2.0**-7
    codes = torch.clamp(torch.round(layer.weight.detach() / step), -127, 127)
    value = uniform.forward(x, numbers)
    steps = torch.round(value / scale).to(torch.int32) + zero
    assert int(steps.min()) >= 0
    assert int(steps.max()) <= 255
    whole = steps.long() @ codes.long().T - zero * codes.long().sum(1)
    assert torch.allclose(
        whole.double() * (scale * step), (value.double() @ (codes.double() * step).T), rtol=1e-9, atol=1e-7
    )


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"bits": 0}, "bits"),
        ({"bits": 17}, "bits"),
        ({"bits": 1, "form": "symmetric"}, "bits"),
        ({"form": "odd"}, "form"),
        ({"range": "odd"}, "range"),
        ({"clip": -1.0}, "clip"),
        ({"range": "dynamic", "learned": True}, "dynamic"),
        ({"solver": "../x"}, "solver"),
    ],
)
def test_settings_out_of_range_are_refused(settings, word):
    with pytest.raises(MethodError, match=word):
        Uniform(**settings)


def test_an_unknown_solver_is_refused():
    with pytest.raises(MethodError, match="quantize/solvers/nonesuch"):
        Uniform(solver="nonesuch").observe(seen(0.0, 1.0))


def test_missing_numbers_are_one_clear_line():
    with pytest.raises(MethodError, match="'scale' is missing"):
        Uniform().forward(torch.zeros(2), {})


@pytest.mark.parametrize("solver", ["percentile:99.5", "mse", "kl", "kl_ncnn", "aciq:normal", "hqq"])
@pytest.mark.parametrize("form", ["symmetric", "affine"])
def test_a_solver_sees_the_histogram_as_it_would_see_the_values(solver, form):
    """Within what the width of a bin makes of it; and an outlier is clipped."""
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    values = values.relu() if form == "affine" else values
    values[7] = 12.0
    collected = HistogramOf()
    for batch in values.split(5000):
        collected.see(batch)
    method = Uniform(bits=4, form=form, solver=solver)
    found = method.observe(Stats({"histogram": collected.result()}))["scale"]
    grid = Grid(4, form == "symmetric")
    span = solvers_of(solver).range.span(values[None], grid)
    expected = float(grid.step(*span)[0])
    assert found == pytest.approx(expected, rel=0.08)
    assert found < 0.8 * 12.0 / grid.highest


@pytest.mark.parametrize("solver", ["easy", "gptq", ""])
def test_solvers_that_find_no_range_of_activations(solver):
    with pytest.raises(MethodError, match="finds no range of activations; take minmax, kl or mse"):
        Uniform(solver=solver)
