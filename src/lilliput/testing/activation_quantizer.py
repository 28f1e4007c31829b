"""Conformance of activation quantizers: few levels, and what training saw is what the file computes, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.activations import Quantized
from lilliput.core.errors import DataError
from lilliput.core.recipe import Recipe, Rule
from lilliput.core.stats import Stats
from lilliput.file.artifact import Artifact
from lilliput.file.read import loads
from lilliput.file.write import dumps
from lilliput.observe.ranges import HistogramOf, RangeOf
from lilliput.run.load import load
from lilliput.testing.spread import gaussian, same, settings_of, tried
from lilliput.train.attach import attach, detach, new_parameters
from lilliput.train.compress import compress, pack

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def small_net() -> nn.Module:
    """Returns two convolutions and a linear layer, in eval mode, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.Flatten(), nn.Linear(64, 5)
        ).eval()


def batches() -> list[Tensor]:
    """Returns what the net is calibrated on."""
    return [gaussian(8, 2, 6, 6, seed=seed) for seed in (1, 2)]


def recipe_of(setting: Any) -> Recipe:
    """Returns the recipe that quantizes what goes into every layer."""
    return Recipe((Rule(activations=setting),))


def stats_of(x: Tensor) -> Stats:
    """Returns what calibration on one tensor collects."""
    values = {}
    for name, observer in (("range", RangeOf()), ("histogram", HistogramOf())):
        observer.see(x)
        values[name] = observer.result()
    return Stats(values)


def inputs() -> dict[str, Tensor]:
    """Returns what a layer may meet: signed, positive, of one value, tiny, huge, without batch, and not contiguous."""
    x = gaussian(6, 4, 5, 5, seed=3)
    return {
        "signed": x,
        "positive": x.relu(),
        "constant": torch.full((3, 4), 0.7),
        "negative": -x.abs(),
        "tiny": x * 1e-20,
        "huge": x * 1e20,
        "single": x[0, 0, 0, :1],
        "turned": x.transpose(1, 3),
    }


def ends(cls: Any) -> tuple[Any, ...]:
    """Returns the coarsest and the finest setting: to trace, write and read takes a second each."""
    settings = settings_of(cls)
    return settings[:1] if len(settings) == 1 else (settings[0], settings[-1])


def few_levels(cls: Any) -> None:
    """At most `levels` values come out, of the same shape and dtype, finite; the input is left alone."""
    for setting in settings_of(cls):
        for name, whole in inputs().items():
            for dtype in DTYPES:
                x = whole.to(dtype)
                if not bool(torch.isfinite(x).all()) or not bool(x.any()):
                    continue
                what, before = f"{setting} on {name} ({dtype})", x.clone()
                out = setting.forward(x, setting.observe(stats_of(x)))
                assert same(x, before), f"{what}: the input was changed"
                assert out.shape == x.shape, f"{what}: shape {tuple(out.shape)}"
                assert out.dtype == dtype, f"{what}: dtype {out.dtype}"
                assert bool(torch.isfinite(out).all()), f"{what}: not finite"
                count = len(torch.unique(out))
                assert count <= setting.levels, f"{what}: {count} values, not {setting.levels}"


def settled(cls: Any) -> None:
    """What is on its levels stays there."""
    for setting in settings_of(cls):
        for name, x in inputs().items():
            numbers = setting.observe(stats_of(x))
            if setting.needs and not numbers:
                continue
            out = setting.forward(x, numbers)
            again = setting.forward(out, numbers)
            near = torch.allclose(again, out, rtol=1e-5, atol=0)
            assert near, f"{setting} on {name}: a second time other values come out"


def finer_is_no_worse(cls: Any) -> None:
    """From the coarsest to the finest of `choices()` the mean squared error falls, signed and positive inputs alike."""
    for x in (gaussian(64, 64, seed=8) / 3, (gaussian(64, 64, seed=9) / 3).relu()):
        errors = [
            float((setting.forward(x, setting.observe(stats_of(x))) - x).square().mean()) for setting in cls.choices()
        ]
        assert errors == sorted(errors, reverse=True), f"{cls.__name__}: errors {errors}"


def gradients(cls: Any) -> None:
    """Gradients are finite, of the input's shape, no larger than what came, and reach every trained number."""
    for setting in settings_of(cls):
        for name, x in inputs().items():
            numbers = setting.observe(stats_of(x))
            grad = gaussian(*x.shape, seed=4)
            own, rest = setting.gradient(x, numbers, grad)
            assert own.shape == x.shape, f"{setting} on {name}: gradient of shape {tuple(own.shape)}"
            assert bool((own.abs() <= grad.abs() * 1.0001).all()), f"{setting} on {name}: the gradient grew"
            assert rest.keys() == set(setting.trained), f"{setting} on {name}: gradients of {sorted(rest)}"
            for value in rest.values():
                assert bool(torch.isfinite(torch.as_tensor(value))), f"{setting} on {name}: not finite"


def computed(artifact: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what a file computes: its graph in plain PyTorch, to the bit, and the user's class filled from it."""
    read = loads(dumps(artifact))
    with torch.no_grad():
        return load(read, engine="dense")(x), load(read, into=small_net())(x)


def saved_as_seen(cls: Any) -> None:
    """Law 1: after training, the attached model in eval mode, the file's graph and `load(into=)` agree bit for bit.

    So do a deepcopy, and a model attached anew with the same `state_dict`; `detach` leaves a plain model.
    """
    for setting in ends(cls)[:1]:
        model, x = small_net(), gaussian(5, 2, 6, 6, seed=7)
        keys = set(model.state_dict())
        attach(model, recipe_of(setting), batches())
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for batch in batches():
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            for parameter in new_parameters(model):
                assert parameter.grad is not None, f"{setting}: no gradient reaches a trained number"
            optimizer.step()
        model.eval()
        fresh = attach(small_net(), recipe_of(setting), [batch * 3 for batch in batches()])
        fresh.load_state_dict(model.state_dict())
        with torch.no_grad():
            seen = model(x)
            for label, other in (("a deepcopy", copy.deepcopy(model)), ("state_dict", fresh.eval())):
                assert torch.equal(other(x), seen), f"{setting}: {label} computes something else"
        artifact = pack(model)
        assert artifact.graph is not None, f"{setting}: {artifact.facts.get('notes')}"
        assert artifact.graph.open.startswith("batch"), f"{setting}: the graph's batch is fixed"
        for label, value in zip(("its graph", "load(into=)"), computed(artifact, x)):
            assert torch.equal(value, seen), f"{setting}: training saw other outputs than {label} gives"
        assert set(detach(model).state_dict()) == keys, f"{setting}: detach leaves something behind"


def compressed(cls: Any) -> None:
    """After training: `compress` gives a file whose graph and whose `load(into=)` agree; the user's model is as before.

    It differs from the original, and each layer's quantizer is told of in the file.
    """
    for setting in ends(cls)[-1:]:
        model, x = small_net(), gaussian(5, 2, 6, 6, seed=7)
        before = copy.deepcopy(model.state_dict())
        artifact = compress(model, recipe_of(setting), batches())
        one, other = computed(artifact, x)
        assert torch.equal(one, other), f"{setting}: graph and load(into=) differ"
        with torch.no_grad():
            assert not torch.equal(one, model(x)), f"{setting}: nothing was quantized"
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "weights changed"
        assert artifact.quantizers.keys() == {"0", "2", "4"}, f"{setting}: quantizers of {list(artifact.quantizers)}"


def recipe_round_trip(cls: Any) -> None:
    """The recipe survives being written to TOML and read, and so do settings and numbers in the file."""
    for setting in settings_of(cls):
        recipe = recipe_of(setting)
        assert Recipe.loads(recipe.dumps()) == recipe, f"{setting} reads otherwise than it was written"
        held = {"0": Quantized(setting, setting.observe(stats_of(gaussian(50, seed=3))))}
        artifact = Artifact({"0.bias": torch.zeros(1)}, recipe, quantizers=held)
        assert loads(dumps(artifact)).quantizers == held, f"{setting}: other numbers in the file"


def refuses_nonsense(cls: Any) -> None:
    """Without the data that it needs, or with zeros only, a MethodError; NaN while training is a DataError."""
    for setting in settings_of(cls):
        if setting.needs:
            for stats in (None, stats_of(torch.zeros(3))):
                found = tried(lambda s=setting, held=stats: s.observe(held), f"{setting} without data")  # type: ignore[misc]
                assert found is None, f"{setting}: takes {stats}"
        model = attach(small_net(), recipe_of(setting), batches()).train()
        try:
            model(batches()[0] * torch.nan)
        except DataError:
            pass
        else:
            raise AssertionError(f"{setting}: NaN goes in while it trains, and nobody is told")


LAWS = (
    few_levels,
    settled,
    finer_is_no_worse,
    gradients,
    saved_as_seen,
    compressed,
    recipe_round_trip,
    refuses_nonsense,
)


def check(cls: Any) -> None:
    """Runs all laws on an activation quantizer's class.

    Raises:
        AssertionError: says what is wrong.
    """
    for law in LAWS:
        law(cls)
