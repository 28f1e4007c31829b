"""Gradient hooks by formula, each in a group of one process: unbiased codes, variances, momentum, conservation."""

import math

import pytest
import torch

from lilliput.core.errors import MethodError, ModelError
from lilliput.solve import dynamic_tree
from lilliput.solve.digits import pack_digits, packed_length, unpack_digits
from lilliput.testing.gradient_hook import Steps, alone, gradients
from lilliput.testing.spread import gaussian
from lilliput.train.gradients.deep_gradient_compression import DeepGradientCompression, packed, unpacked
from lilliput.train.gradients.eight_bit import EightBit
from lilliput.train.gradients.qsgd import Levels, Qsgd
from lilliput.train.gradients.terngrad import TernGrad, clipped, ternary
from lilliput.train.pipeline import coded, decoded


@pytest.fixture(autouse=True)
def group():
    with alone():
        yield


# --- codes


@pytest.mark.parametrize("base", [2, 3, 4, 5, 7, 9, 15, 17, 33, 255, 256, 65536])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 7, 8, 41, 1000])
def test_digits_come_back(base, count):
    digits = torch.randint(base, (count,), generator=torch.Generator().manual_seed(base))
    data = pack_digits(digits, base)
    assert len(data) == packed_length(count, base)
    assert torch.equal(unpack_digits(data, base, count), digits)
    top = torch.full((count,), base - 1)
    assert torch.equal(unpack_digits(pack_digits(top, base), base, count), top)


def test_digits_take_little_more_than_their_information():
    for base in (3, 5, 9, 15):
        assert packed_length(10_000, base) * 8 / 10_000 < 1.07 * float(torch.tensor(base).log2())


def test_the_dynamic_tree_by_its_bits():
    """Every magnitude by the construction: e zeros, then 6 - e bits that count in two halves of a decade."""
    values = dynamic_tree.magnitudes()
    for code in range(126):
        zeros = next(e for e in range(6) if code >= sum(2 ** (6 - f) for f in range(e + 1, 6)))
        rank = code - sum(2 ** (6 - f) for f in range(zeros + 1, 6))
        half = 2 ** (5 - zeros)
        low, width = (0.1, 0.35) if rank < half else (0.45, 0.55)
        expected = (low + width * (rank % half + 0.5) / half) * 10.0**-zeros
        assert float(values[code]) == pytest.approx(expected, rel=1e-6)
    assert (float(values[126]), float(values[127])) == (0.0, 1.0)
    assert bool((values[1:126] > values[:125]).all())
    for code, value in ((62, 0.10546875), (125, 0.99140614), (0, 2.75e-6), (1, 7.25e-6)):
        assert float(values[code]) == pytest.approx(value, rel=1e-6)


def test_all_256_codes_come_back():
    codes = torch.arange(256).to(torch.uint8)
    back = dynamic_tree.encode(dynamic_tree.decode(codes))
    assert torch.equal(back[codes != 254], codes[codes != 254])
    assert int(back[254]) == 126  # -0 is 0


def test_the_tree_gives_the_nearest_value():
    x = torch.cat([torch.logspace(-5, 0, 20_001, dtype=torch.float64), torch.tensor([1.0])]).float()
    values = dynamic_tree.magnitudes().double()
    nearest = (x.double()[:, None] - values).abs().min(1).values
    found = (dynamic_tree.decode(dynamic_tree.encode(x)).double() - x.double()).abs()
    assert torch.allclose(found, nearest, rtol=1e-4, atol=1e-12)
    assert dynamic_tree.encode(torch.tensor([1.49e-6, 1.51e-6, 0.9957, 0.99571, 7.0, -7.0])).tolist() == [
        *(126, 0, 125, 127, 127, 255)
    ]


def test_precision_falls_with_the_decade():
    """Largest and mean relative error in %, for e = 0 .. 4, of values spread evenly in their logarithm."""
    expected = [(4.93, 1.14), (8.97, 2.24), (15.2, 4.42), (25.0, 8.54), (44.2, 16.6)]
    for zeros, (largest, mean) in enumerate(expected):
        x = torch.logspace(-1, 0, 200_001, dtype=torch.float64)[:-1] * 10.0**-zeros
        error = (dynamic_tree.decode(dynamic_tree.encode(x)).double() - x).abs() / x
        assert 100 * float(error.max()) == pytest.approx(largest, rel=0.02)
        assert 100 * float(error.mean()) == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 100, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("sent", [1, 5, 3000])
@pytest.mark.parametrize("bits", [32, 16, 8])
def test_sparse_values_come_back(count, sent, bits):
    sent = min(sent, count)
    places = torch.randperm(count, generator=torch.Generator().manual_seed(count))[:sent].sort().values
    data = packed(places, gaussian(sent), count, bits)
    low = max(0, int(math.log2(count / sent)))
    numbers = -(-min(count, sent * (1 + low) + (count >> low) + 1) // 8)
    assert len(data) == numbers + bits // 8 * sent + (4 if bits < 32 else 0)
    assert 8 * numbers <= sent * (3 + math.log2(count / sent)) + 8, "Elias and Fano: 2 + log2 of the mean gap"
    back = unpacked(data, count, sent, sent, bits)
    assert torch.equal(back[0], places)
    limit = {32: 0.0, 16: 5e-4, 8: 0.01}[bits] * float(gaussian(sent).abs().max())
    assert float((back[1] - gaussian(sent)).abs().max()) <= limit


def test_activations_come_back_within_the_tree():
    x = gaussian(5, 7, 3) * 100
    back = decoded(coded(x), (5, 7, 3))
    assert float(((back - x).abs() / x.abs().max()).max()) < 0.01
    assert bool(decoded(coded(torch.tensor([1.0, torch.nan])), (2,)).isnan().any())
    assert torch.equal(decoded(coded(torch.zeros(3)), (3,)), torch.zeros(3))
    assert decoded(coded(torch.zeros(0, 4)), (0, 4)).shape == (0, 4)


# --- unbiased


def test_ternary_is_unbiased_with_the_stated_variance():
    """E = g within five standard errors, E |Q|^2 = s |g|_1."""
    g = gaussian(40).clone()
    s, draws = g.abs().max(), torch.Generator().manual_seed(0)
    times = 5_000
    found = torch.stack([ternary(g, s.expand(40), draws) for _ in range(times)]) * s
    deviation = ((s * g.abs() - g.square()) / times).sqrt()
    assert bool(((found.mean(0) - g).abs() <= 5 * deviation + 1e-6).all())
    assert float(found.square().sum(1).mean()) == pytest.approx(float(s * g.abs().sum()), rel=0.02)


def test_the_largest_is_always_sent():
    g = torch.tensor([0.5, -2.0, 0.0])
    draws = torch.Generator().manual_seed(1)
    found = torch.stack([ternary(g, torch.full((3,), 2.0), draws) for _ in range(200)])
    assert found[:, 1].tolist() == [-1.0] * 200
    assert not found[:, 2].any()


def test_clipping_is_by_the_standard_deviation():
    g = gaussian(1000) + 3
    most = 0.5 * float(((g - g.mean()) ** 2).mean().sqrt())
    assert torch.allclose(clipped(g, 0.5), g.clamp(-most, most))


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("levels", [1, 4])
def test_qsgd_is_unbiased_and_its_variance_bounded(norm, levels):
    v = gaussian(50)
    codec = Levels(Qsgd(levels=levels, run=32, norm=norm), torch.Generator().manual_seed(0))
    times = 1000
    found = torch.stack([codec.decode(codec.encode(v, 0), 0, 50) for _ in range(times)])
    for part, drawn in zip(torch.split(v, 32), torch.split(found, 32, 1)):
        height, d = torch.linalg.vector_norm(part, 2 if norm == "l2" else torch.inf), len(part)
        step = height / levels
        p = part.abs() / step - (part.abs() / step).floor()
        # Five standard errors; an event of small chance may also come a few times too often.
        most = 5 * step * (p * (1 - p) / times).sqrt() + 5 * step / times
        assert bool(((drawn.mean(0) - part).abs() <= most).all())
        exact = float((step**2 * p * (1 - p)).sum())
        assert float((drawn - part).square().sum(1).mean()) == pytest.approx(exact, rel=0.1)
        if norm == "l2":
            assert exact <= min(d / levels**2, d**0.5 / levels) * float(part.square().sum()) * (1 + 1e-5)


# --- hooks


@pytest.mark.parametrize("method", [TernGrad(clip=0.0), Qsgd(levels=3, run=16), EightBit()], ids=repr)
def test_the_mean_over_steps_is_the_gradient(method):
    steps, one = Steps(method), gradients(4)
    wanted = torch.cat([g.flatten() for g in one])
    found = torch.stack([steps.step(one) for _ in range(400)])
    deviation = found.std(0) / 400**0.5
    # With feedback the sum is right but for what waits: at most one step of the code, a 400th here. Values that are
    # seldom drawn may seem not to vary at all.
    most = 5 * torch.maximum(deviation, deviation.median()) + 1e-3
    assert bool(((found.mean(0) - wanted).abs() <= most).all())


@pytest.mark.parametrize("method", [EightBit(), Qsgd(feedback=True, norm="max"), TernGrad(feedback=True)], ids=repr)
def test_what_was_sent_and_what_waits_is_all_there_was(method):
    steps = Steps(method)
    total, sent = torch.zeros(72), torch.zeros(72)
    for seed in range(20):
        one = gradients(seed)
        total += torch.cat([g.flatten() for g in one])
        sent += steps.step(one)
    rest = torch.cat([steps.state.memory["residual"][name] for name in ("weight", "bias", "empty")])
    assert torch.allclose(sent + rest, total, atol=1e-5)
    assert float(rest.abs().max()) > 0


def test_dgc_of_everything_is_sgd_with_momentum():
    for nesterov in (False, True):
        steps = Steps(DeepGradientCompression(density=1.0, momentum=0.9, nesterov=nesterov))
        own, plain = torch.zeros(72), torch.nn.Parameter(torch.zeros(72))
        optimizer = torch.optim.SGD([plain], 0.1, momentum=0.9, nesterov=nesterov)
        for seed in range(12):
            one = gradients(seed)
            own -= 0.1 * steps.step(one)
            plain.grad = torch.cat([g.flatten() for g in one])
            optimizer.step()
        assert torch.allclose(own, plain.detach(), atol=1e-5)


def test_dgc_step_by_step_as_written():
    """u = m u + g, v = v + u, the largest |v| are sent, u and v are zero there; in plain loops."""
    steps = Steps(DeepGradientCompression(density=0.1, momentum=0.9, clip=5.0, whole=0))
    u, v = [0.0] * 60, [0.0] * 60
    for seed in range(10):
        one = gradients(seed)
        found = steps.step(one)[:60].tolist()
        norm = float(one[0].norm())
        g = [x * min(1.0, 5.0 / norm) for x in one[0].flatten().tolist()]
        u = [0.9 * a + b for a, b in zip(u, g)]
        v = [a + b for a, b in zip(v, u)]
        largest = sorted(range(60), key=lambda i: -abs(v[i]))[:6]
        expected = [v[i] if i in largest else 0.0 for i in range(60)]
        assert found == pytest.approx(expected, abs=1e-5)
        for i in largest:
            u[i] = v[i] = 0.0


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_without_momentum_dgc_loses_nothing(bits):
    """With m = 0: all that was sent and all that waits is the sum of the gradients."""
    steps = Steps(DeepGradientCompression(density=0.05, momentum=0.0, bits=bits, whole=0))
    total, sent = torch.zeros(72), torch.zeros(72)
    for seed in range(30):
        one = gradients(seed)
        total += torch.cat([g.flatten() for g in one])
        found = steps.step(one)
        assert int((found != 0).sum()) <= 3 + 1
        sent += found
    waiting = torch.cat([steps.state.memory["waiting"][name] for name in ("weight", "bias", "empty")])
    assert torch.allclose(sent + waiting, total, atol=1e-5)


@pytest.mark.parametrize("bits", [32, 8])
def test_small_parameters_are_sent_whole_with_momentum(bits):
    """12 biases are; of 60 weights 3 are, and both wait for what 8 bits leave out."""
    steps = Steps(DeepGradientCompression(density=0.05, momentum=0.9, bits=bits, whole=12))
    momentum, total, sent = torch.zeros(12), torch.zeros(12), torch.zeros(12)
    for seed in range(8):
        one = gradients(seed)
        found = steps.step(one)
        momentum = 0.9 * momentum + one[1]
        total += momentum
        sent += found[60:72]
        assert int((found[:60] != 0).sum()) == 3
        assert bool((found[60:72] != 0).all())
    assert torch.allclose(sent + steps.state.memory["waiting"]["bias"], total, atol=1e-5)
    assert bits == 8 or torch.allclose(sent, total, atol=1e-5)


def test_the_warm_up_sends_less_and_less():
    method = DeepGradientCompression(density=0.02, warm_up=8, whole=0)
    steps = Steps(method)
    sent = [int((steps.step(gradients(seed))[:60] != 0).sum()) for seed in range(10)]
    assert sent == [15, 15, 4, 4, 1, 1, 1, 1, 1, 1]


def test_states_of_others_are_refused():
    steps = Steps(EightBit())
    steps.step(gradients(0))
    saved = steps.state.state_dict()
    with pytest.raises(ModelError, match="2 processes"):
        steps.state.load_state_dict({**saved, "size": 2})
    with pytest.raises(ModelError, match="'residual'"):
        Steps(EightBit()).state.load_state_dict({**saved, "memory": {"residual/residual": torch.zeros(3)}})
    with pytest.raises(ModelError, match="doesn't know"):
        steps.state.name(torch.zeros(3))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (TernGrad, {"clip": -1}),
        (Qsgd, {"levels": 0}),
        (Qsgd, {"norm": "l1"}),
        (DeepGradientCompression, {"density": 0}),
        (DeepGradientCompression, {"bits": 4}),
    ],
)
def test_bad_settings(method, settings):
    with pytest.raises(MethodError):
        method(**settings)
