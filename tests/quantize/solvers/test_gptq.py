"""GPTQ and AdaRound: explicit re-inversion, exact losses, brute force, and what they refuse; through the surface."""

import itertools

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import LilliputError, MethodError
from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.core.stats import Stats
from lilliput.observe.inputs import Gram
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.solvers.adaround import AdaRound
from lilliput.quantize.solvers.gptq import GPTQ
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans
from lilliput.solve.grid import Grid
from lilliput.solve.inverse_hessian import descend, feedback, inverse_factor
from lilliput.solve.inverse_hessians import inverse_factors
from lilliput.solve.least_squares import error
from lilliput.solve.levels import CodebookLevels, GridLevels

PUBLISHED = GPTQ(damping=0, order=False, passes=0)


def problem(rows=10, columns=24, seed=0, samples=200):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    inputs = torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ (mixing + torch.eye(columns))
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), inputs


def stats_of(inputs):
    return Stats({"gram": Gram((inputs.T @ inputs / len(inputs))[None], len(inputs))})


def levels_for(weight, bits=3):
    scale = (weight.abs().amax(1, keepdim=True) / Grid(bits).highest).expand(weight.shape)
    return GridLevels(Grid(bits), scale, torch.zeros_like(scale))


def near(weight, bits=3):
    return levels_for(weight, bits).near(weight, slice(None), slice(None))


def surgeon(weight, gram, levels):
    """OBQ with a fixed order: the inverse of what is left is computed anew each time."""
    work = weight.clone()
    for i in range(weight.shape[1]):
        inverse = gram[i:, i:].inverse()
        placed = levels.near(work[:, i], slice(None), i)
        work[:, i:] -= ((work[:, i] - placed) / inverse[0, 0])[:, None] * inverse[0]
        work[:, i] = placed
    return work


@pytest.mark.parametrize("block", [1, 5, 128])
def test_it_is_the_surgeon_with_a_fixed_order(block):
    weight, inputs = problem()
    levels = levels_for(weight)
    expected = surgeon(weight, inputs.T @ inputs, levels)
    found = GPTQ(damping=0, order=False, passes=0, block=block).settle(weight, levels, stats_of(inputs))
    torch.testing.assert_close(found, expected)


def test_the_sum_of_squared_errors_is_the_loss_exactly():
    weight, inputs = problem()
    gram = inputs.T @ inputs
    upper, levels, loss = inverse_factor(gram, 0), levels_for(weight), []

    def place(values, column):
        placed = levels.near(values, slice(None), column)
        loss.append(((values - placed) / upper[column, column]).square().sum())
        return placed

    found = feedback(weight, upper, place, 7)
    assert float(sum(loss)) == pytest.approx(float(((weight - found) @ inputs.T).square().sum()), rel=1e-11)


@pytest.mark.parametrize("seed", range(4))
def test_published_order_and_descent_each_help_in_turn(seed):
    weight, inputs = problem(40, 32, seed)
    gram = inputs.T @ inputs / len(inputs)
    plain = error(weight - near(weight), gram)
    levels, stats = levels_for(weight), stats_of(inputs)
    published, descended = (error(weight - GPTQ(damping=0, order=False, passes=p).settle(weight, levels, stats), gram)
                            for p in (0, 3))  # fmt: skip
    assert descended < published < 0.7 * plain


def test_descent_never_makes_the_error_larger():
    weight, inputs = problem()
    gram, levels, found = inputs.T @ inputs, levels_for(weight, 2), near(weight, 2)
    errors = [error(weight - found, gram)]
    for _ in range(6):
        found = descend(weight, gram, found, lambda values, i: levels.near(values, slice(None), i), 5)
        errors.append(error(weight - found, gram))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("solver", [PUBLISHED, GPTQ(damping=0), AdaRound()])
def test_near_the_best_of_all_roundings(solver):
    """Brute force over all 2^7 ways to round one row down or up; GPTQ may use further levels and so be better."""
    ratios = []
    for seed in range(6):
        weight, inputs = problem(1, 7, seed)
        gram, levels = inputs.T @ inputs, levels_for(weight)
        below, above = levels.around(weight, slice(None), slice(None))
        best = min(
            error(weight - torch.where(torch.tensor(up), above, below), gram)
            for up in itertools.product([False, True], repeat=7)
        )
        own = error(weight - solver.settle(weight, levels, stats_of(inputs)), gram)
        assert own <= error(weight - near(weight), gram) * (1 + 1e-9) or solver is PUBLISHED
        ratios.append(own / best)
    assert sorted(ratios)[3] < (1.6 if solver is PUBLISHED else 1.15), ratios


def test_inputs_that_are_always_zero_get_the_nearest_level():
    weight, inputs = problem()
    inputs[:, 5] = 0
    found = GPTQ().settle(weight, levels_for(weight), stats_of(inputs))
    assert torch.equal(found[:, 5], near(weight)[:, 5])
    whole = GPTQ().settle(weight[:, :5], levels_for(weight[:, :5]), stats_of(inputs[:, :5]))
    assert bool(whole.isfinite().all())


def test_each_group_of_a_convolution_has_its_own_inputs():
    weight, inputs = problem(8, 12)
    other = problem(8, 12, 5)[1]
    both = Stats({"gram": Gram(torch.stack([x.T @ x / 200 for x in (inputs, other)]), 200)})
    levels = levels_for(weight)
    found = GPTQ().settle(weight, levels, both)
    for half, own in ((slice(0, 4), inputs), (slice(4, 8), other)):
        alone = GPTQ().settle(weight[half], levels_for(weight[half]), stats_of(own))
        torch.testing.assert_close(found[half], alone)


@pytest.mark.parametrize("solver", [GPTQ(), PUBLISHED, GPTQ(order=False, passes=3)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_many_small_groups_together_are_each_alone(solver, symmetric):
    """Groups of a depthwise convolution: one without inputs, one with a column of zeros, weights that are zero."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(6, 40, 9, generator=generator, dtype=torch.float64).cumsum(2)
    inputs[1], inputs[2, :, 4] = 0, 0
    weight = torch.randn(12, 9, generator=generator, dtype=torch.float64)
    weight[6:8, ::2] = 0
    grams = inputs.mT @ inputs / 40
    grams /= grams.diagonal(dim1=1, dim2=2).amax()
    low, high = weight.aminmax(dim=1, keepdim=True)
    scale, zero = Grid(3, symmetric).step(low, torch.maximum(high, -low) if symmetric else high)
    levels = GridLevels(Grid(3, symmetric), scale.expand(12, 9), zero.expand(12, 9))
    found = solver.settle(weight, levels, Stats({"gram": Gram(grams, 40)}))
    for group, gram in enumerate(grams):
        rows = slice(2 * group, 2 * group + 2)
        alone = solver._alone(weight[rows], levels, rows, gram.clone())
        torch.testing.assert_close(found[rows], alone)
    assert not bool(found[6:8, ::2].any())


def test_small_hessians_at_once_are_each_inverted():
    inputs = torch.randn(5, 30, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs[3, :, 2] = inputs[3, :, 1]  # without an inverse: damped as `inverse_factor` does
    grams = inputs.mT @ inputs
    for gram, upper in zip(grams, inverse_factors(grams)):
        torch.testing.assert_close(upper, inverse_factor(gram, 0.0))
    with pytest.raises(ValueError, match="not finite"):
        inverse_factors(grams * torch.nan)


def test_scales_of_groups_follow_their_columns_in_any_order():
    weight, inputs = (part.float() for part in problem(6, 24))
    inputs = inputs * torch.linspace(3, 0.1, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(1))]
    method = Uniform(bits=4, per="group", group=8, solver="gptq")
    packed = method.pack(weight, stats_of(inputs))
    scale = packed.parts["scale"].reshape(6, 3).repeat_interleave(8, 1)
    assert torch.equal(packed.parts["scale"], Uniform(bits=4, per="group", group=8).pack(weight).parts["scale"])
    torch.testing.assert_close(unpack(packed), packed.parts["codes"] * scale)
    plain = Uniform(bits=4, per="group", group=8).pack(weight)
    gram = inputs.T @ inputs
    assert error(weight - unpack(packed), gram) < 0.7 * error(weight - unpack(plain), gram)


@pytest.mark.parametrize("solver", ["gptq", "mse+gptq", "adaround:iterations=200", "hqq+gptq", "rate:2.5+gptq"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_less_error_than_the_nearest_codes_of_the_same_grid(solver, symmetric):
    weight, inputs = (part.float() for part in problem(16, 24))
    ranges = solver.split("+", maxsplit=1)[0] if "+" in solver else "minmax"
    own, plain = (
        unpack(Uniform(bits=4, symmetric=symmetric, solver=s).pack(weight, stats_of(inputs))) for s in (solver, ranges)
    )
    gram = inputs.T @ inputs
    assert error(weight - own, gram) < 0.92 * error(weight - plain, gram)


def test_a_pruned_weight_keeps_its_zeros_and_the_rest_makes_up():
    weight, inputs = (part.float() for part in problem(16, 24))
    packed = lilliput.compress(
        _linear(weight),
        Recipe((Rule(steps=(Magnitude(sparsity=0.5), Uniform(bits=3, solver="gptq"))),)),
        [inputs],
    ).weights["weight"]
    kept = unpack(Magnitude(sparsity=0.5).pack(weight))
    own, plain = unpack(packed), unpack(Uniform(bits=3).pack(kept))
    assert not bool(own[kept == 0].any())
    gram = inputs.T @ inputs
    assert error(kept - own, gram) < 0.92 * error(kept - plain, gram)


@pytest.mark.parametrize("solver", ["gptq", "adaround:iterations=300"])
def test_codebooks_have_error_feedback_too(solver):
    weight, inputs = (part.float() for part in problem(16, 24))
    plain, own = (KMeans(bits=2, solver=s).pack(weight, stats_of(inputs)) for s in ("", solver))
    assert torch.equal(own.parts["codebook"], plain.parts["codebook"])
    gram = inputs.T @ inputs
    assert error(weight - unpack(own), gram) < 0.8 * error(weight - unpack(plain), gram)
    levels = CodebookLevels(plain.parts["codebook"])
    expected = lilliput.find("quantize/solvers", solver.partition(":")[0])
    assert expected is GPTQ or expected is AdaRound
    assert torch.equal(levels.near(unpack(own), slice(None), 0), unpack(own))


def test_a_codebook_with_zeros_under_error_feedback():
    weight, inputs = (part.float() for part in problem(8, 24))
    weight[:, ::3] = 0
    packed = KMeans(bits=2, solver="gptq").pack(weight, stats_of(inputs))
    assert torch.equal(unpack(packed) == 0, weight == 0)
    with pytest.raises(MethodError, match="share/kmeans: 'mse' finds ranges, which a codebook hasn't"):
        KMeans(solver="mse")


def _linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.clone())
    return layer


class Twice(nn.Module):
    """Two layers, of which only the first is ever called."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, value):
        return self.first(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"first.weight \(linear, \(8, 8\)\): .*gptq: needs data: give data="),
        ([torch.zeros(4, 8)], r"first.weight .*: all that the data puts into this layer is zero; calibrate on other"),
        ([torch.full((4, 8), torch.nan)], "what goes into layer 'first' is NaN or infinite; check the data"),
        ([torch.randn(4, 8)], r"second.weight .*: no batch of the data reached this layer"),
        ([], "the data is empty"),
    ],
)
def test_bad_calibration_is_one_clear_line(data, message):
    recipe = Recipe((Rule(steps=(Uniform(bits=4, solver="gptq"),)),))
    with pytest.raises(LilliputError, match=message) as raised:
        lilliput.compress(Twice(), recipe, data)
    assert "\n" not in str(raised.value)


def test_groups_that_do_not_divide_and_vectors():
    weight, inputs = (part.float() for part in problem(4, 24))
    with pytest.raises(MethodError, match="groups of 7 don't divide rows of 24 weights"):
        Uniform(per="group", group=7, solver="gptq").pack(weight, stats_of(inputs))
    with pytest.raises(MethodError, match=r"calibrated for 1 x 24 inputs, which isn't this weight of \(4, 23\)"):
        Uniform(solver="gptq").pack(weight[:, 1:], stats_of(inputs))
    with pytest.raises(MethodError, match="cell_mean is for weights that go to the nearest level"):
        Uniform(cell_mean=True, solver="gptq")


@pytest.mark.parametrize(
    ("solver", "values"),
    [(GPTQ, {"damping": -1.0}), (GPTQ, {"passes": -1}), (GPTQ, {"block": 0}), (AdaRound, {"iterations": 0})],
)
def test_settings_out_of_range(solver, values):
    with pytest.raises(MethodError, match="quantize/solvers/"):
        solver(**values)


def test_a_small_network_through_a_file(tmp_path):
    """Error feedback in a convolution, grouped too, and a linear layer: outputs nearer than without it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).eval()
    data = [torch.rand(16, 3, 8, 8) + torch.rand(16, 1, 8, 8) for _ in range(4)]
    errors = {}
    for solver in ("minmax", "gptq", "adaround:iterations=200"):
        recipe = Recipe((Rule(steps=(Uniform(bits=3, solver=solver),)),))
        lilliput.compress(model, recipe, data).save(tmp_path / "net.safetensors")
        with torch.no_grad():
            found = lilliput.load(tmp_path / "net.safetensors")(data[0])
            errors[solver] = float((found - model(data[0])).square().mean())
    assert errors["gptq"] < 0.7 * errors["minmax"]
    assert errors["adaround:iterations=200"] < 0.95 * errors["minmax"]


def test_training_sees_what_the_file_holds():
    weight, inputs = (part.float() for part in problem(4, 12))
    model = _linear(weight)
    lilliput.attach(model, Recipe((Rule(steps=(Uniform(bits=3, solver="gptq"),)),)), [inputs])
    model(inputs).square().mean().backward()
    assert bool(model.parametrizations.weight.original.grad.any())
    seen = model.eval().weight.detach().clone()
    assert torch.equal(unpack(lilliput.pack(model).weights["weight"]), seen)
