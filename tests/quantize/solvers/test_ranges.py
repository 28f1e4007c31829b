"""Range solvers: closed forms, brute force, the published constants and the orderings that each one claims."""

import math

import numpy as np
import pytest
import torch

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.core.stats import Stats
from lilliput.observe.inputs import Gram
from lilliput.observe.ranges import HistogramOf
from lilliput.quantize.solvers.aciq import ACIQ, FROM_PEAK, clip
from lilliput.quantize.solvers.easy import Easy, matched
from lilliput.quantize.solvers.hqq import HQQ
from lilliput.quantize.solvers.minmax import MinMax
from lilliput.quantize.solvers.mse import MSE
from lilliput.quantize.solvers.percentile import Percentile
from lilliput.quantize.solvers.rate import Rate
from lilliput.quantize.uniform import Uniform
from lilliput.solve.grid import Grid
from lilliput.testing.spread import gaussian

BOTH = pytest.mark.parametrize("symmetric", [True, False])


def laplace(rows, columns, seed=0):
    uniform = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.49999))


def cost(values, grid, ends, power=2.0):
    scale, zero = grid.step(*ends)
    return (values - grid.near(values, scale[:, None], zero[:, None])).abs().pow(power).sum(1)


@BOTH
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_minmax_is_what_uniform_always_did(bits, symmetric):
    weight = gaussian(8, 24)
    one = Uniform(bits=bits, symmetric=symmetric).pack(weight)
    low, high = MinMax().span(weight, Grid(bits, symmetric))
    scale, zero = Grid(bits, symmetric).step(low, high)
    assert torch.equal(one.parts["scale"], scale)
    assert symmetric or torch.equal(one.parts["zero"], zero.to(torch.uint8))


@pytest.mark.parametrize("percent", [60.0, 90.0, 99.0, 100.0])
def test_percentile_is_the_quantile_of_what_was_seen(percent):
    values = gaussian(3, 500)
    high = Percentile(percent).span(values, Grid(8))[1]
    expected = np.quantile(values.abs().numpy(), percent / 100, axis=1, method="inverted_cdf")
    assert np.allclose(high.numpy(), expected)
    low, high = Percentile(percent).span(values, Grid(8, symmetric=False))
    part = (100 + percent) / 200
    assert np.allclose(high.numpy(), np.quantile(values.numpy(), part, axis=1, method="inverted_cdf"))
    assert np.allclose(-low.numpy(), np.quantile(-values.numpy(), part, axis=1, method="inverted_cdf"))


def test_all_percent_is_minmax():
    for grid in (Grid(4), Grid(4, symmetric=False)):
        for one, other in zip(Percentile(100).span(gaussian(3, 50), grid), MinMax().span(gaussian(3, 50), grid)):
            assert torch.equal(one, other)


@BOTH
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mse_is_near_the_best_of_a_dense_search(bits, symmetric):
    values, grid = laplace(3, 300), Grid(bits, symmetric)
    own = cost(values, grid, MSE().span(values, grid))
    largest = values.abs().amax(1)
    ends = values.aminmax(dim=1)
    assert bool((own <= cost(values, grid, MinMax().span(values, grid))).all())
    tried = [0.02 * i for i in range(1, 51)]
    best = torch.full((3,), torch.inf)
    for upper in tried:
        for lower in [upper] if symmetric else tried:
            pair = (-largest * upper, largest * upper) if symmetric else (ends[0] * lower, ends[1] * upper)
            best = torch.minimum(best, cost(values, grid, pair))
    assert bool((own <= best * 1.05).all()), own / best


def test_a_large_power_clips_less():
    values = laplace(4, 400)
    ends = [MSE(power=power).span(values, Grid(3))[1] for power in (1.0, 2.0, 4.0)]
    assert bool((ends[0] <= ends[1]).all())
    assert bool((ends[1] <= ends[2]).all())


def test_the_published_constants_of_aciq():
    found = [clip("gaussian", bits) for bits in range(2, 9)]
    assert found == pytest.approx([1.7106, 2.1516, 2.5591, 2.9362, 3.2869, 3.6151, 3.9240], abs=5e-5)
    assert [clip("laplace", bits) for bits in (2, 3, 4)] == pytest.approx([2.83, 3.90, 5.03], abs=5e-3)
    assert clip("laplace", 8) == pytest.approx(9.90, abs=5e-3)


def test_aciq_takes_the_deviation_from_the_largest_value():
    values = torch.linspace(-3, 3, 1000)[None]
    deviation = 2 * 3 * FROM_PEAK / math.sqrt(2 * math.log(1000))
    assert pytest.approx(0.5402, abs=5e-5) == FROM_PEAK
    assert float(ACIQ().span(values, Grid(4))[1]) == pytest.approx(clip("gaussian", 4) * deviation, rel=1e-5)


def test_aciq_counts_the_values_of_one_example():
    """However many pictures calibrate, the range is that of the values of one with the same extremes."""
    values = gaussian(8, 1000)
    spans = []
    for images in (values, values.repeat(50, 1)):
        seen = HistogramOf()
        seen.see(images)
        centres, counts = seen.result().points()
        spans.append(float(ACIQ().span(centres, Grid(8), counts, Stats({"histogram": seen.result()}))[1]))
    peak = float(centres.abs().max())
    assert spans[0] == spans[1]
    deviation = 2 * peak * FROM_PEAK / math.sqrt(2 * math.log(1000))
    assert spans[0] == pytest.approx(min(clip("gaussian", 8) * deviation, peak), rel=1e-3)


@pytest.mark.parametrize(("shape", "values"), [("normal", gaussian(1, 200_000)), ("laplace", laplace(1, 200_000))])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_on_its_own_distribution_aciq_is_nearly_the_best_clipping(shape, values, bits):
    grid = Grid(bits)
    own, best = (cost(values, grid, solver.span(values, grid)) for solver in (ACIQ(shape), MSE()))
    # The formula takes 2^bits levels, the symmetric grid has one fewer: of few levels that is too much.
    assert float(own) <= float(best) * 1.05


def test_gaussian_values_of_8_bits_are_clipped_at_392_deviations():
    values = gaussian(1, 100_000)
    assert float(ACIQ("normal").span(values, Grid(8))[1] / values.std()) == pytest.approx(3.924, rel=1e-3)


def test_values_of_one_sign_have_twice_the_levels():
    values = gaussian(1, 5000).abs()
    one = ACIQ("normal").span(values, Grid(4, symmetric=False))[1]
    other = ACIQ("normal").span(values, Grid(5))[1]
    assert torch.equal(one, other)


@pytest.mark.parametrize("shape", ["normal", "laplace"])
def test_zeros_of_a_relu_tell_aciq_nothing(shape):
    """Half of a distribution is as wide as the whole, however many of its values became zero."""
    values = laplace(1, 20_000).abs()
    sparse = torch.where(torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.2, values, 0)
    grid, ends = Grid(6, symmetric=False), []
    for x in (values, sparse):
        seen = HistogramOf()
        seen.see(x)
        centres, counts = seen.result().points()
        ends.append(float(ACIQ(shape).span(centres, grid, counts, Stats({"histogram": seen.result()}))[1]))
        assert ends[-1] == pytest.approx(float(ACIQ(shape).span(x, grid)[1]), rel=0.01)
    assert ends[1] == pytest.approx(ends[0], rel=0.03)


@BOTH
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_hqq_lowers_the_norm_that_it_minimises(bits, symmetric):
    values, grid = laplace(16, 64), Grid(bits, symmetric)
    own, plain = (cost(values, grid, solver.span(values, grid), 0.7) for solver in (HQQ(), MinMax()))
    assert bool((own <= plain * (1 + 1e-5)).all())
    assert float(own.sum()) < 0.97 * float(plain.sum())


@pytest.mark.parametrize("bits", [1.0, 2.5, 4.0])
def test_rate_meets_the_entropy(bits):
    weight = laplace(64, 64)
    packed = Uniform(per="tensor", solver=f"rate:{bits}").pack(weight)
    part = torch.bincount(packed.parts["codes"].flatten().long() + 128).double() / weight.numel()
    entropy = -float(torch.special.xlogy(part, part).sum()) / math.log(2)
    assert bits - 0.05 <= entropy <= bits
    assert float((unpack(packed) - weight).abs().max()) <= float(packed.parts["scale"]) * 0.5001


def test_rate_never_clips_where_codes_are_few():
    weight = laplace(64, 64)
    packed, plain = (Uniform(bits=3, per="tensor", solver=s).pack(weight) for s in ("rate:8", "minmax"))
    assert torch.equal(packed.parts["codes"], plain.parts["codes"])


def problem(rows=3, columns=20, samples=200):
    inputs = gaussian(samples, columns, seed=9) * torch.linspace(0.1, 3, columns)
    inputs = inputs + inputs.roll(1, 1)
    return laplace(rows, columns), inputs, Stats({"gram": Gram((inputs.T @ inputs / samples)[None], samples)})


def cosine(one, other):
    return float((one * other).sum() / (one.norm() * other.norm()))


@BOTH
def test_easy_is_the_best_cosine_of_the_outputs(symmetric):
    weight, inputs, stats = problem()
    grid = Grid(3, symmetric)
    low, high = Easy().span(weight, grid, stats=stats)
    first, last = MinMax().span(weight, grid)
    for row in range(len(weight)):
        wanted = inputs @ weight[row]

        def outputs(low, high, row=row):
            scale, zero = grid.step(low, high)
            return inputs @ grid.near(weight[row], scale, zero)

        own = cosine(wanted, outputs(low[row], high[row]))
        factors = [1.0, *torch.linspace(0.5, 2, 100).tolist()]
        best = max(cosine(wanted, outputs(first[row] / f, last[row] / f)) for f in factors)
        assert own == pytest.approx(best, abs=1e-6)


def test_easy_of_a_tensor_is_one_scale_for_all_rows():
    weight, inputs, stats = problem()
    packed = Uniform(bits=3, per="tensor", solver="easy").pack(weight, stats)
    assert packed.parts["scale"].shape == (1,)
    scales = packed.parts["scale"] * torch.linspace(0.6, 1.6, 30)
    wanted, found = inputs @ weight.T, cosine(inputs @ weight.T, inputs @ unpack(packed).T)
    others = [torch.round(weight / scale).clamp(-3, 3) * scale for scale in scales]
    assert found >= max(cosine(wanted, inputs @ other.T) for other in others) - 1e-3


def test_the_range_of_an_input_by_the_outputs():
    weight, inputs, _ = problem()
    low, high = matched(inputs[None], (weight.T @ weight)[None], Grid(4), together=True)
    assert low.shape == high.shape == (1,)

    def found(end):
        scale, zero = Grid(4).step(-end, end)
        return cosine(inputs @ weight.T, Grid(4).near(inputs, scale, zero) @ weight.T)

    assert found(high) >= max(found(inputs.abs().max() / f) for f in torch.linspace(0.5, 2, 100)) - 1e-6


def test_easy_says_what_it_needs():
    weight, _, stats = problem()
    with pytest.raises(MethodError, match="easy: needs data"):
        Uniform(solver="easy").pack(weight)
    with pytest.raises(MethodError, match="one scale a row or a tensor"):
        Uniform(solver="easy", per="group", group=4).pack(weight, stats)
    with pytest.raises(MethodError, match="a histogram doesn't tell; take kl or mse"):
        Easy().span(weight, Grid(8), torch.ones(20), stats)


@pytest.mark.parametrize(
    ("solver", "values"),
    [
        (Percentile, {"percent": 49.0}),
        (Percentile, {"percent": 101.0}),
        (MSE, {"steps": 1}),
        (MSE, {"power": 0.0}),
        (ACIQ, {"shape": "cauchy"}),
        (HQQ, {"p": 1.5}),
        (HQQ, {"iterations": 0}),
        (Rate, {"bits": -1.0}),
        (Easy, {"steps": 0}),
    ],
)
def test_settings_out_of_range(solver, values):
    with pytest.raises(MethodError, match="quantize/solvers/"):
        solver(**values)


@pytest.mark.parametrize("solver", ["percentile:95", "mse", "hqq", "aciq", "kl:256", "rate:3"])
@pytest.mark.parametrize("per", ["tensor", "row", "group"])
def test_zero_stays_exact_with_every_solver(solver, per):
    weight = gaussian(4, 24) + 0.05
    weight[::2, ::3] = 0
    for symmetric in (True, False):
        method = Uniform(bits=4, per=per, group=6, symmetric=symmetric, solver=solver)
        assert bool((unpack(method.pack(weight))[weight == 0] == 0).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clipping_by_mse_is_never_worse_than_the_whole_range(bits):
    weight = laplace(16, 48)
    for symmetric in (True, False):
        errors = [
            (unpack(Uniform(bits=bits, symmetric=symmetric, solver=s).pack(weight)) - weight).square().sum(1)
            for s in ("mse", "minmax")
        ]
        assert bool((errors[0] <= errors[1] * (1 + 1e-5)).all())
        assert float(errors[0].sum()) < 0.95 * float(errors[1].sum())
