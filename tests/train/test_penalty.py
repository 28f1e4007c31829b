"""Penalties in the user's own loop and in `fit`: sparse solutions, exact zeros, resume, and what isn't touched."""

import os

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import MethodError, RecipeError
from lilliput.core.recipe import Recipe, Rule
from lilliput.prune.gradual import Gradual
from lilliput.prune.group_lasso import GroupLasso
from lilliput.prune.lasso import Lasso
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.slimming import Slimming
from lilliput.prune.surgery import Surgery
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans
from lilliput.train.attach import attach, detach
from lilliput.train.compress import compress, pack
from lilliput.train.fit import FitOptions, fit


def regression(seed=0, count=60, inputs=12, outputs=4):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    truth = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    truth[:, inputs // 2 :] = 0
    return X, X @ truth.T + 0.1 * torch.randn(count, outputs, generator=generator, dtype=torch.float64)


def trained(penalty, steps=4000, rate=0.1):
    """Proximal gradient descent by the public calls alone, on a mean of squares that has one optimum."""
    X, Y = regression()
    model = nn.Linear(12, 4, bias=False).double()
    attach(model, Recipe((Rule(penalty=penalty),)))
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (model(X) - Y).square().sum() / len(X)).backward()
        optimizer.step()
        lilliput.shrink(model, rate)
    weight = model.weight.detach()
    return weight, X.T @ (X @ weight.T - Y) / len(X)


@pytest.mark.parametrize("strength", [0.02, 0.2])
def test_lasso_meets_the_conditions_of_its_optimum(strength):
    """|gradient| <= lambda where w = 0, gradient = -lambda sign(w) elsewhere."""
    weight, gradient = trained(Lasso(strength))
    gradient = gradient.T
    assert bool((gradient[weight == 0].abs() <= strength + 1e-8).all())
    assert torch.allclose(gradient[weight != 0], -strength * weight[weight != 0].sign(), atol=1e-6)
    assert int((weight == 0).sum()) >= 10


@pytest.mark.parametrize("strength", [0.05, 0.5])
def test_group_lasso_meets_the_conditions_of_its_optimum(strength):
    """|gradient_g| <= lambda for zero groups, gradient_g = -lambda w_g / |w_g| for others (Wen et al., by KKT)."""
    weight, gradient = trained(GroupLasso("channel", strength))
    gradient = gradient.T
    zero = (weight == 0).all(0)
    assert bool((gradient[:, zero].norm(dim=0) <= strength + 1e-8).all())
    alive = weight[:, ~zero]
    assert torch.allclose(gradient[:, ~zero], -strength * alive / alive.norm(dim=0), atol=1e-6)
    assert bool(zero[6:].all())
    assert not bool(((weight == 0) & ~zero).any())


def test_from_a_certain_strength_on_all_is_zero():
    X, Y = regression()
    most = float((X.T @ Y / len(X)).abs().max())
    assert not bool(trained(Lasso(1.0001 * most), steps=300)[0].any())
    assert bool(trained(Lasso(0.98 * most), steps=300)[0].any())


def test_as_a_term_of_the_loss_the_gradient_is_the_same():
    model = attach(nn.Linear(6, 5), Recipe((Rule(penalty=Lasso(0.3)), Rule(layers="vector", penalty=Lasso(0.1)))))
    total = lilliput.penalty(model)
    total.backward()
    assert float(total.detach()) == pytest.approx(
        float((0.3 * model.weight.abs().sum() + 0.1 * model.bias.abs().sum()).detach()), rel=1e-6
    )
    assert torch.allclose(model.weight.grad, 0.3 * model.weight.detach().sign())
    assert float(lilliput.penalty(nn.Linear(2, 2))) == 0


def test_what_is_not_trained_is_not_shrunk():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.requires_grad_(False)
    attach(model, Recipe((Rule("1.weight", (KMeans(bits=1),), penalty=Lasso(10.0)), Rule(penalty=Lasso(10.0)))))
    before = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    lilliput.shrink(model, 1.0)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    with pytest.raises(RecipeError, match="negative"):
        lilliput.shrink(model, -1.0)


def test_a_penalty_alone_leaves_the_weights_plain():
    model = nn.Linear(4, 4)
    keys = list(model.state_dict())
    attach(model, Recipe((Rule(penalty=Lasso()),)))
    assert list(model.state_dict()) == keys
    assert torch.equal(pack(model).weights["weight"], model.weight)
    detach(model)
    assert float(lilliput.penalty(model)) == 0


def test_one_that_does_not_suit_the_weight_is_refused_before_anything_is_changed():
    model = nn.Linear(4, 4)
    with pytest.raises(MethodError, match=r"weight \(linear, \(4, 4\)\): prune/slimming"):
        attach(model, Recipe((Rule(penalty=Slimming()),)))
    assert not hasattr(model, "parametrizations")
    with pytest.raises(RecipeError, match=r"rule\[0\].penalty: prune/magnitude is a criterion"):
        Recipe.loads("[[rule]]\npenalty = 'prune/magnitude'")
    with pytest.raises(MethodError, match="joined by"):
        GroupLasso("rows")


def classes(count=12):
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(count * 32, 1, 6, 6, generator=generator)
    target = (X[:, 0, :3].mean((1, 2)) > X[:, 0, 3:].mean((1, 2))).long()
    return list(zip(X.split(32), target.split(32)))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(192, 2)
    )


def test_groups_vanish_whole_where_single_weights_do_not():
    """At equal sparsity. With uncorrelated inputs the trained optimum is the proximal step from least squares."""
    solution = torch.randn(16, 40, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.3, 1, 40)

    def at_half(penalty):
        low, high = 0.0, 100.0
        for _ in range(40):
            rate = (low + high) / 2
            weight = penalty.shrink(solution, rate)
            low, high = (low, rate) if int((weight == 0).sum()) >= 320 else (rate, high)
        return int((penalty.shrink(solution, high) == 0).all(0).sum())

    assert at_half(GroupLasso("channel", 1.0)) == 20
    assert at_half(Lasso(1.0)) <= 1


def test_slimming_switches_channels_off_and_the_file_does_without_them(tmp_path):
    model = attach(network(), Recipe((Rule("1.weight", layers="vector", penalty=Slimming(0.3)),)))
    fit(model, classes(), epochs=40, options=FitOptions(learning_rate=2e-2))
    off = int((model[1].weight == 0).sum())
    assert 1 <= off < 12
    detach(model)
    one_threshold = Rule("1.weight", (Magnitude(sparsity=0.5, scope="global"),), layers="vector")
    model.eval()
    artifact = compress(detach(attach(model, Recipe((one_threshold,)))), Recipe(), example=classes()[0][0])
    removed = max(6, off)
    assert artifact.weights["0.weight"].shape[0] == 12 - removed
    path = tmp_path / "net.safetensors"
    artifact.save(path)
    inputs = classes()[0][0]
    with torch.no_grad():
        assert torch.allclose(lilliput.load(path)(inputs), model(inputs), atol=1e-4)


RECIPE = Recipe(
    (
        Rule("0.weight", (Surgery(deviations=-0.3, rounds=50, until=0.6),), penalty=GroupLasso("filter", 1e-3)),
        Rule("4.weight", (Magnitude(sparsity=0.8),), schedule=Gradual(rounds=5), penalty=Lasso(1e-2)),
        Rule("1.weight", layers="vector", penalty=Slimming(1e-2)),
    )
)


def test_resume_is_bit_equal(tmp_path):
    whole = attach(network(), RECIPE)
    fit(whole, classes(), epochs=4, options=FitOptions(learning_rate=1e-2))
    path = tmp_path / "training.safetensors"

    class StopError(RuntimeError):
        pass

    def stop(facts, step):
        if step == 20:
            raise StopError

    broken = attach(network(), RECIPE)
    options = FitOptions(learning_rate=1e-2, checkpoint=path, every=7, log=stop)
    with pytest.raises(StopError):
        fit(broken, classes(), epochs=4, options=options)
    again = attach(network(), RECIPE)
    fit(again, classes(), epochs=4, options=FitOptions(learning_rate=1e-2, checkpoint=path))
    assert os.path.exists(path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_recipe_of_all_of_it_survives_being_written():
    assert Recipe.loads(RECIPE.dumps()) == RECIPE
    mixed = Recipe((Rule(steps=(Uniform(bits=4),), penalty=Lasso(1e-5)),))
    assert Recipe.loads(mixed.dumps()) == mixed
