import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.method import find
from lilliput.core.packed import Packed, pack_steps, unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.float16 import Float16
from lilliput.share.kmeans import KMeans
from lilliput.solve import kmeans1d
from lilliput.train.attach import attach, packed_weights

STAND_IN = torch.tensor([[1.2, 1.3, 6.1], [0.9, 0.7, 6.9], [-1.0, -0.9, 1.0]])
INITS = ("optimal", "forgy", "density", "linear")


def weight_of(*shape, seed=0, pruned=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * 0.1
    return torch.where(torch.rand(shape, generator=generator) < pruned, 0.0, weight).to(dtype)


def error(method, weight):
    return float((unpack(method.pack(weight)).double() - weight.double()).square().sum())


def bits_of(packed):
    """What a plain file of whole-bit codes and 32-bit values takes, in bits."""
    symbols = len(packed.parts["codebook"]) + packed.settings["zero"]
    return packed.parts["codes"].numel() * math.ceil(math.log2(symbols)) + 32 * len(packed.parts["codebook"])


def test_it_is_found_by_its_name():
    assert find("share", "kmeans") is KMeans


def test_the_example_of_the_survey():
    packed = KMeans(k=3).pack(STAND_IN)
    assert torch.allclose(packed.parts["codebook"], torch.tensor([-0.95, 1.02, 6.5]))
    assert packed.parts["codes"].tolist() == [[1, 1, 2], [1, 1, 2], [0, 0, 1]]
    assert packed.settings == {"zero": False}
    # Two whole bits a code and three values: 288 / (18 + 96).
    assert 9 * 32 / bits_of(packed) == pytest.approx(2.526, abs=5e-4)


def test_the_compression_rate_of_the_paper():
    # 16 weights of 32 bits that share 4 values: 512 / (16 * 2 + 4 * 32) = 3.2.
    packed = KMeans(bits=2).pack(weight_of(4, 4))
    assert 16 * 32 / bits_of(packed) == 3.2


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("pruned", [0.0, 0.9])
def test_no_start_beats_the_optimum_and_zeros_stay(init, pruned):
    weight = weight_of(40, 50, pruned=pruned)
    method = KMeans(bits=3, init=init)
    packed = method.pack(weight)
    assert error(method, weight) >= error(KMeans(bits=3), weight) * (1 - 1e-6)
    assert torch.equal(unpack(packed) == 0, weight == 0)
    if pruned:
        assert torch.equal(packed.parts["codes"] == 0, weight == 0)
    assert len(packed.parts["codebook"]) == 8
    assert bool((packed.parts["codebook"].diff() > 0).all())
    assert not bool((packed.parts["codebook"] == 0).any())


@pytest.mark.parametrize("init", INITS)
def test_it_is_solve_kmeans1d_on_the_live_weights(init):
    weight = weight_of(30, 30, pruned=0.5)
    live = weight[weight != 0]
    if init == "optimal":
        centroids = kmeans1d.optimal(live, 5)
    else:
        centroids = kmeans1d.lloyd(live, kmeans1d.initial(live, 5, init, torch.Generator().manual_seed(7)))
    packed = KMeans(k=5, init=init, seed=7).pack(weight)
    assert torch.equal(packed.parts["codebook"], centroids.float())
    assert torch.equal(packed.parts["codes"][weight != 0], kmeans1d.assign(live, centroids) + 1)


def test_the_gradient_of_a_shared_value_is_the_sum_over_its_weights():
    weight = weight_of(20, 30, pruned=0.3)
    packed = KMeans(bits=2).pack(weight)
    codebook = packed.parts["codebook"].clone().requires_grad_()
    target, upstream = weight_of(20, 30, seed=1), weight_of(20, 30, seed=2)
    (unpack(packed.with_parts(codebook=codebook)) - target).square().mul(upstream).sum().backward()
    gradient = 2 * (unpack(packed) - target) * upstream
    for value in range(4):
        own = gradient[packed.parts["codes"] == value + 1]
        assert codebook.grad[value].item() == pytest.approx(float(own.double().sum()), rel=1e-5)


@pytest.mark.parametrize("init", INITS)
def test_as_many_values_as_different_weights_give_no_error(init):
    weight = torch.tensor([0.1, -0.3, 0.0, 7.7]).repeat(9).reshape(6, 6)
    for k in (3, 4, 300):
        assert torch.equal(unpack(KMeans(k=k, init=init).pack(weight)), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (7,), (4, 1, 3, 3)])
def test_shapes_and_dtypes(shape, dtype):
    for weight in (weight_of(*shape, dtype=dtype), torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)):
        packed = KMeans(bits=2).pack(weight)
        out = unpack(packed)
        assert out.shape == weight.shape
        assert out.dtype == dtype
        assert packed.parts["codes"].shape == weight.shape
        assert torch.equal(out == 0, weight == 0)
        if weight.numel() <= 4:
            assert torch.equal(out, weight)


def test_negative_zeros_are_zeros():
    weight = torch.tensor([-0.0, 0.0, 0.5])
    packed = KMeans().pack(weight)
    assert packed.parts["codes"].tolist() == [0, 0, 1]
    assert not torch.signbit(unpack(packed)).any()


def test_the_code_type_follows_the_number_of_symbols():
    dense, pruned = weight_of(60, 60), weight_of(60, 60, pruned=0.1)
    assert KMeans(bits=8).pack(dense).parts["codes"].dtype == torch.uint8
    assert KMeans(k=255).pack(pruned).parts["codes"].dtype == torch.uint8
    wide = KMeans(bits=8).pack(pruned).parts["codes"]
    assert wide.dtype == torch.int16
    assert wide.max() == 256
    assert KMeans(k=1024).pack(dense).parts["codes"].max() == 1023


def test_a_finer_setting_is_never_worse():
    for weight in (weight_of(50, 60), weight_of(50, 60, pruned=0.8), weight_of(50, 60, dtype=torch.bfloat16)):
        errors = [error(method, weight) for method in KMeans.choices()]
        assert len(errors) == 7
        assert all(fine <= coarse for coarse, fine in itertools.pairwise(errors))


def test_forgy_depends_on_its_seed_alone():
    weight = weight_of(50, 60, pruned=0.5)
    first, again, other = (KMeans(init="forgy", seed=seed).pack(weight) for seed in (3, 3, 4))
    assert torch.equal(first.parts["codebook"], again.parts["codebook"])
    assert not torch.equal(first.parts["codebook"], other.parts["codebook"])


def test_a_prior_keeps_codes_and_trained_values():
    weight = weight_of(20, 20, pruned=0.5)
    before = KMeans(bits=3).pack(weight)
    trained = before.with_parts(codebook=before.parts["codebook"] * 1.5 + 0.01)
    after = KMeans(bits=3).pack(unpack(trained), prior=trained)
    assert torch.equal(after.parts["codes"], before.parts["codes"])
    assert torch.equal(after.parts["codebook"], trained.parts["codebook"])
    assert torch.equal(unpack(after), unpack(trained))
    # Codes are kept even where the weight they came from has moved on.
    assert torch.equal(KMeans(bits=3).pack(weight * 2, prior=trained).parts["codes"], before.parts["codes"])
    fewer = KMeans(bits=2).pack(unpack(trained), prior=trained)
    assert len(fewer.parts["codebook"]) == 4


@pytest.mark.parametrize("pruned", [0.0, 0.2])
def test_weights_pruned_since_the_prior_become_zero(pruned):
    weight = weight_of(20, 20, pruned=pruned)
    before = KMeans(bits=8).pack(weight)
    further = torch.where(weight.abs() < 0.05, 0.0, unpack(before))
    after = KMeans(bits=8).pack(further, prior=before)
    assert torch.equal(unpack(after), further)
    assert torch.equal(after.parts["codebook"], before.parts["codebook"])


def test_a_prior_whose_codebook_is_packed_again():
    weight = weight_of(20, 20)
    steps = (KMeans(bits=3), Float16())
    packed = pack_steps(weight, steps)
    assert packed.parts["codebook"].method == "quantize/float16"
    again = pack_steps(unpack(packed), steps, prior=packed)
    assert torch.equal(unpack(again), unpack(packed))
    assert torch.equal(again.parts["codes"], packed.parts["codes"])


def test_the_weight_is_left_as_it_was():
    weight = weight_of(9, 9).requires_grad_()
    copy = weight.detach().clone()
    packed = KMeans().pack(weight)
    assert torch.equal(weight, copy)
    assert not packed.parts["codebook"].requires_grad


def test_training_tunes_the_shared_values_and_nothing_else():
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter, seed in zip(model.parameters(), range(4), strict=True):
            parameter.copy_(weight_of(*parameter.shape, seed=seed) * 4)
    rule = Rule(steps=(Magnitude(sparsity=0.5), KMeans(bits=2)))
    attach(model, Recipe((rule,)))
    before = packed_weights(model)["0.weight"].parts["values"]
    inputs, target = weight_of(64, 12, seed=8), weight_of(64, 3, seed=9)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append((model(inputs) - target).square().sum())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    packed = packed_weights(model)["0.weight"]
    after = packed.parts["values"]
    assert torch.equal(after.parts["codes"], before.parts["codes"])
    assert not bool((after.parts["codebook"] == before.parts["codebook"]).any())
    assert torch.equal(unpack(packed), model[0].weight)
    assert int((model[0].weight == 0).sum()) == 48
    attach(model, Recipe((rule,)))
    assert torch.equal(unpack(packed), model[0].weight)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1000, 1000, width=32), max_size=40), st.integers(1, 300), st.sampled_from(INITS))
def test_every_weight_gets_its_nearest_shared_value(numbers, k, init):
    weight = torch.tensor(numbers, dtype=torch.float32)
    packed = KMeans(k=k, init=init).pack(weight)
    live = weight[weight != 0].double()
    codebook = packed.parts["codebook"].double()
    assert len(codebook) <= min(k, live.unique().numel())
    chosen = (unpack(packed)[weight != 0].double() - live).abs()
    nearest = (live[:, None] - codebook).abs().amin(1) if len(live) else live
    assert torch.equal(chosen, nearest)


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"bits": 0}, "bits"), ({"bits": 9}, "bits"), ({"k": 1025}, "k = 1025"), ({"init": "best"}, "no init 'best'")],
)
def test_settings_out_of_range(setting, words):
    with pytest.raises(MethodError, match=words):
        KMeans(**setting)


def test_weights_that_are_refused():
    with pytest.raises(MethodError, match="NaN"):
        KMeans().pack(torch.tensor([1.0, float("nan")]))
    with pytest.raises(MethodError, match="floating-point"):
        KMeans().pack(torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("parts", "zero", "words"),
    [
        ({"codes": torch.tensor([0, 2], dtype=torch.uint8)}, False, "point outside"),
        ({"codes": torch.tensor([0, 3], dtype=torch.uint8)}, True, "point outside"),
        ({"codes": torch.tensor([-1, 0], dtype=torch.int16)}, True, "point outside"),
        ({"codes": torch.tensor([0, 1])}, False, "int64"),
        ({"codes": torch.tensor([0.0, 1.0])}, False, "dtype"),
        ({"codes": torch.tensor([0], dtype=torch.uint8)}, False, "shape"),
        ({"codebook": torch.zeros(1, 2)}, False, "codebook"),
        ({"codebook": torch.zeros(0)}, False, "point outside"),
        ({"codebook": torch.zeros(2, dtype=torch.int32)}, False, "dtype"),
        ({}, 1, "zero = 1"),
        ({}, None, "zero = None"),
    ],
)
def test_damaged_parts_are_refused(parts, zero, words):
    good = {"codes": torch.tensor([0, 1], dtype=torch.uint8), "codebook": torch.tensor([1.0, 2.0])}
    given_settings = {} if zero is None else {"zero": zero}
    with pytest.raises(MethodError, match=words):
        unpack(Packed("share/kmeans", (2,), torch.float32, {**good, **parts}, given_settings))
