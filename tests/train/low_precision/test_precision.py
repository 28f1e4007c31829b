"""Trainings in low precision: formulas, unbiased noise, known courses of Autoflex, loss scaling."""

import math

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError, ModelError
from lilliput.testing.precision import batch, network, sgd, train
from lilliput.testing.spread import gaussian
from lilliput.train.fit import fit
from lilliput.train.low_precision.dorefa import Dorefa
from lilliput.train.low_precision.flexpoint import Flexpoint
from lilliput.train.low_precision.float16 import Float16
from lilliput.train.low_precision.qnn import Qnn
from lilliput.train.low_precision.session import Precision, Session


def rounded(method, g):
    return method.error(Session(), "", g)


# --- DoReFa


def test_dorefa_by_the_formula():
    g, top = gaussian(4, 3, 5), 2**3 - 1
    found = rounded(Dorefa(bits=3, noise=False), g)
    for example, own in zip(g, found):
        m = float(example.abs().max())
        for x, y in zip(example.flatten().tolist(), own.flatten().tolist()):
            assert y == pytest.approx(2 * m * (round(top * (x / (2 * m) + 0.5)) / top - 0.5), abs=1e-6)
        assert float(own.abs().max()) == pytest.approx(m, rel=1e-6)
    assert len(torch.unique(rounded(Dorefa(bits=3), gaussian(1, 4000)))) <= 8


def test_dorefa_is_unbiased_inside():
    """Within half a step of the largest the noise is cut off; everywhere else the mean is the gradient."""
    torch.manual_seed(0)
    g = torch.cat([torch.linspace(-0.85, 0.85, 30), torch.tensor([1.0])])[None]
    times, step = 1000, 2 / 7
    found = torch.stack([rounded(Dorefa(bits=3), g)[0] for _ in range(times)]).mean(0)
    # The variance of rounding a uniform noise is at most a quarter of a squared step.
    assert bool(((found - g[0])[:30].abs() <= 5 * step / 2 / times**0.5).all())
    assert float(rounded(Dorefa(bits=3, noise=False), g)[0, 3] - g[0, 3]) != pytest.approx(0, abs=1e-3)


def test_dorefa_leaves_the_first_and_the_last_layer():
    model = network()
    assert list(Dorefa().layers(model, "*")) == ["2"]
    assert list(Dorefa(ends=True).layers(model, "*")) == ["0", "2", "5"]
    plain, x = network(), batch(0)[0]
    model(x).square().sum().backward()
    with Dorefa(bits=2).on(plain):
        plain(x).square().sum().backward()
    assert torch.equal(model[5].weight.grad, plain[5].weight.grad)
    assert not torch.equal(model[2].weight.grad, plain[2].weight.grad)
    assert not torch.equal(model[0].weight.grad, plain[0].weight.grad)


# --- QNN


def test_qnn_gives_powers_of_two_within_its_bounds():
    g = gaussian(4000)
    found = rounded(Qnn(bits=8), g)
    assert bool((found.abs().log2() % 1 == 0).all())
    ratio = found / g
    assert float(ratio.min()) >= 2**-0.5 - 1e-6
    assert float(ratio.max()) <= 2**0.5 + 1e-6
    assert float(ratio.min()) < 0.72
    assert float(ratio.max()) > 1.40


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_qnn_has_as_many_powers_as_its_bits_say(bits):
    g = torch.logspace(0, -14, 4001, base=10)
    found = rounded(Qnn(bits=bits), g)
    assert len(torch.unique(found[found > 0])) == 2 ** (bits - 1) - 1
    assert float(found.max()) == 1.0
    least = float(found[found > 0].min())
    assert not found[g < 0.70 * least].any()


# --- Flexpoint


@pytest.mark.parametrize(("value", "mantissa"), [(1.0, 8192), (1.9, 15565), (3.3, 13517)])
def test_flexpoint_settles(value, mantissa):
    session, method = Session(), Flexpoint()
    for _ in range(40):
        method.value(session, "a", torch.tensor([value, -0.1]), True)
    assert session.overflows == 0
    assert round(value / session.memory["value a"][0]) == mantissa


def test_flexpoint_overflows_once_when_a_tensor_jumps_and_never_when_it_drifts():
    session, method = Session(), Flexpoint()
    for value in [1.0] * 40 + [8.0] * 40:
        found = method.value(session, "a", torch.tensor([value]), True)
    assert session.overflows == 1
    assert float(found) == 8.0
    drift = Session()
    for t in range(400):
        method.error(drift, "a", torch.tensor([math.exp(0.02 * t)]))
    assert drift.overflows == 0


def test_flexpoint_is_wrong_by_half_a_step_at_most():
    session, method = Session(), Flexpoint(bits=12)
    for seed in range(5):
        x = gaussian(200, seed=seed)
        scale = session.memory["weight a"][0] if seed else None
        found = method.weight(session, "a", x)
        if scale:
            assert float((found - x).abs().max()) <= scale / 2 * (1 + 1e-6)
            assert bool(((found / scale) % 1 == 0).all())


def test_flexpoint_keeps_its_exponents_in_eval_mode():
    session, method = Session(), Flexpoint()
    method.value(session, "a", torch.ones(3), True)
    before = list(session.memory["value a"])
    method.value(session, "a", torch.full((3,), 100.0), False)
    assert session.memory["value a"] == before


def test_flexpoint_rounds_all_that_a_training_makes():
    model = network()
    optimizer = sgd(model)
    with Flexpoint().on(model, optimizer) as session:
        train(model, optimizer, range(3))
    sorts = {key.split()[0] for key in session.memory}
    assert sorts == {"value", "error", "slope", "weight"}
    for name, parameter in model.named_parameters():
        scale = session.memory[f"weight {name}"][0]
        assert bool((parameter / scale * 16 % 1 == 0).all()), name  # the next scale may be coarser
    with pytest.raises(ModelError, match="no number for"), Flexpoint().on(model, optimizer):
        model(torch.full((1, 1, 6, 6), torch.nan))


# --- float16


def test_small_gradients_vanish_without_a_loss_scale():
    """Errors of 1e-9 are below half precision's least number, 6e-8; scaled by 2^16 they aren't."""
    found = {}
    for scale in (0.0, 2.0**16):
        layer = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        with torch.no_grad():
            layer.weight.fill_(0.5)
        with Float16(scale=scale).on(layer, optimizer):
            (layer(torch.ones(1, 4)).sum() * 1e-9).backward()
        found[scale] = layer.weight.grad.clone()
    assert not found[0.0].any()
    assert torch.allclose(found[2.0**16], torch.full((3, 4), 1e-9), rtol=2e-3)


def test_an_infinite_gradient_skips_the_step_and_halves_the_scale():
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    with Float16(scale=2.0**16, growth=2).on(layer, optimizer) as session:
        before = layer.weight.detach().clone()
        (layer(torch.ones(1, 4)).sum() * 10).backward()  # 655,360 is infinite in half precision
        optimizer.step()
        assert torch.equal(layer.weight, before)
        assert (session.scale, session.skipped, session.clean) == (2.0**15, 1, 0)
        for expected in (2.0**15, 2.0**16):
            optimizer.zero_grad()
            (layer(torch.ones(1, 4)).sum() * 0.1).backward()
            optimizer.step()
            assert session.scale == expected
        assert not torch.equal(layer.weight, before)


def test_masters_gather_steps_that_half_precision_would_lose():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = torch.optim.SGD(layer.parameters(), 1e-4)
    with Float16(scale=2.0**10).on(layer, optimizer) as session:
        for _ in range(10):
            optimizer.zero_grad()
            layer(torch.ones(1, 1)).sum().backward()
            optimizer.step()
        assert float(session.masters["weight"]) == pytest.approx(1 - 1e-3, abs=1e-6)
        assert float(layer.weight.detach()) == float(torch.tensor(1 - 1e-3).half())
        assert torch.equal(layer.weight, layer.weight.half().float())


@pytest.mark.parametrize("form", ["half", "bfloat16"])
def test_mixed_precision_is_near_float32(form):
    plain, model = network(), network()
    expected = train(plain, sgd(plain), range(30))
    optimizer = sgd(model)
    with Float16(form).on(model, optimizer):
        losses = train(model, optimizer, range(30))
    assert losses == pytest.approx(expected, abs=0.05)
    assert losses != expected


def test_the_gradients_are_those_of_the_loss_by_any_output():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            y = self.layer(x)
            return {"a": (y, y * 2), "count": torch.tensor(3)}

    model, x = Two(), torch.ones(1, 3)
    with Float16(scale=2.0**10).on(model, sgd(model)):
        out = model(x)
        (out["a"][0].sum() + out["a"][1].sum()).backward()
    assert torch.equal(model.layer.weight.grad, torch.full((2, 3), 3.0))

    class Other(nn.Linear):
        def forward(self, x):
            return iter([super().forward(x)])

    odd = Other(3, 2)
    with pytest.raises(ModelError, match="can't follow"), Float16().on(odd, sgd(odd)):
        odd(x)


def test_fit_trains_in_low_precision():
    model = network()
    optimizer = sgd(model)
    with Float16().on(model, optimizer) as session:
        losses = fit(model, [batch(seed) for seed in range(4)], epochs=6, optimizer=optimizer)
    assert losses[-1] < losses[0]
    assert session.clean == 24 - session.skipped


def test_refusals():
    model = network()
    with pytest.raises(ModelError, match="give on"), Flexpoint().on(model):
        pass
    with pytest.raises(MethodError, match="bits"):
        Qnn(bits=1)
    with pytest.raises(MethodError, match="no form"):
        Float16("double")
    with (
        Float16().on(model, sgd(model)) as session,
        pytest.raises(ModelError, match="another model"),
    ):
        session.load_state_dict(Session().state_dict())
    assert Precision.weight is Dorefa.weight
