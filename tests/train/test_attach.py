"""attach, detach and pack on every kind of layer, in the user's own loop."""

import copy
import sys
import types
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from lilliput.core import method
from lilliput.core.errors import LilliputError, MethodError, ModelError, RecipeError
from lilliput.core.layers import weights
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.train.attach import advance, attach, attached, attachment, detach, new_parameters, packed_weights

STEPS = {
    "uniform": '[{method = "quantize/uniform", bits = 4}]',
    "prune": '[{method = "prune/magnitude", sparsity = 0.6}]',
    "share": '[{method = "share/kmeans", bits = 2}]',
    "prune_share": '[{method = "prune/magnitude", sparsity = 0.6}, {method = "share/kmeans", bits = 2}]',
    "prune_uniform": '[{method = "prune/magnitude", sparsity = 0.6}, {method = "quantize/uniform", bits = 3}]',
    "svd": '[{method = "factorize/svd", rank = 2, force = true}]',
    "svd_uniform": '[{method = "factorize/svd", rank = 2, force = true}, {method = "quantize/uniform", bits = 6}]',
    "float16": '[{method = "quantize/float16"}]',
}


def recipe(steps, match="*", schedule=""):
    return Recipe.loads(f'[[rule]]\nmatch = "{match}"\nsteps = {STEPS.get(steps, steps)}\n{schedule}')


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(8, 6, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.layer(x)[0]


class Tied(nn.Module):
    """Embedding and output share one weight, as in language models."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.out = nn.Linear(8, 12, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.embedding(x))


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x).relu())


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)), (5, 8)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(8, 6, 3), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=2)), (2, 8, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)), (2, 3, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), (2, 3, 5, 5)),
    "embedding": (lambda: nn.Embedding(12, 8), "tokens"),
    "attention": (Attention, (2, 5, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM), (2, 5, 8)),
    "gru": (lambda: Recurrent(nn.GRU), (2, 5, 8)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (2, 5, 8)),
    "tied": (Tied, "tokens"),
    "twice": (Twice, (5, 8)),
}


def make(name, seed=0):
    torch.manual_seed(seed)
    build, shape = MODELS[name]
    inputs = torch.randint(12, (3, 4)) if shape == "tokens" else torch.randn(shape)
    return build(), inputs


def train(model, inputs, optimizer, steps=2):
    """The user's own loop."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", MODELS)
def test_the_users_own_loop(name, steps):
    model, inputs = make(name)
    model.train()
    cls, keys = type(model), list(model.state_dict())
    own = dict(model.named_parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    attach(model, recipe(steps))
    assert isinstance(model, cls)
    assert {id(w.parameter) for w in weights(model)} == {id(p) for p in own.values()}
    added = new_parameters(model)
    assert bool(added) == (steps in {"share", "prune_share", "svd", "svd_uniform"})
    if added:
        optimizer.add_param_group({"params": added})
    nodes = {w.name: w for w, _ in attached(model)}
    assert set(nodes) == {w.name for w in weights(model) if w.kind != "vector"}
    before = {n: unpack(p).clone() for n, p in packed_weights(model).items() if n in nodes}
    train(model, inputs, optimizer)
    model.eval()
    after = packed_weights(model)
    assert all(not torch.equal(unpack(after[n]), before[n]) for n in nodes), "a weight wasn't trained"
    with torch.no_grad():
        output = model(inputs)
    detach(model)
    assert list(model.state_dict()) == keys
    assert {n: id(p) for n, p in model.named_parameters()} == {n: id(p) for n, p in own.items()}
    assert all(p.requires_grad for p in model.parameters())
    assert attachment(model) is None
    state = model.state_dict()
    for weight in nodes:
        assert torch.equal(state[weight], unpack(after[weight])), "what was trained isn't what is packed"
    with torch.no_grad():
        # The weights are equal; a recurrent kernel may round otherwise where they lie otherwise in memory.
        assert torch.allclose(model(inputs), output, atol=1e-6)


@pytest.mark.parametrize("steps", ["prune_share", "svd_uniform", "uniform"])
@pytest.mark.parametrize("name", MODELS)
def test_deepcopy_and_detach_of_one_leaves_the_other(name, steps):
    model, inputs = make(name)
    attach(model.eval(), recipe(steps))
    model(inputs)
    twin = copy.deepcopy(model)
    output = model(inputs).detach()
    detach(model)
    assert torch.equal(twin(inputs), output)
    twin(inputs).square().mean().backward()
    assert [w.name for w, _ in attached(twin)]
    detach(twin)
    assert torch.equal(twin(inputs), output)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", MODELS)
def test_state_dict_into_a_freshly_attached_model(name, steps):
    model, inputs = make(name)
    attach(model, recipe(steps))
    train(model, inputs, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01))
    fresh, _ = make(name, seed=5)
    attach(fresh, recipe(steps))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(inputs), model.eval()(inputs))


def test_state_dict_carries_ranks_and_the_code_of_zero():
    """Another weight has another rank, and no zeros where the first had some."""
    torch.manual_seed(0)
    one, other = nn.Linear(20, 16), nn.Linear(20, 16)
    with torch.no_grad():
        one.weight.copy_(torch.outer(torch.randn(16), torch.randn(20)) + 0.001 * torch.randn(16, 20))
    svd = recipe('[{method = "factorize/svd", energy = 0.5}]')
    attach(one, svd), attach(other, svd)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.weight, other.weight)
    with_zeros, without = nn.Linear(20, 16), nn.Linear(20, 16)
    with torch.no_grad():
        with_zeros.weight[3] = 0
    attach(with_zeros, recipe("share")), attach(without, recipe("share"))
    without.load_state_dict(with_zeros.state_dict())
    assert torch.equal(without.weight, with_zeros.weight)
    assert torch.equal(unpack(packed_weights(without)["weight"]), with_zeros.weight)


def test_gradients_straight_through_and_by_mask():
    model, inputs = nn.Linear(8, 4), torch.randn(3, 8)
    weight = model.weight
    attach(model, recipe("uniform"))
    model(inputs).sum().backward()
    assert torch.allclose(weight.grad, inputs.sum(0).expand(4, 8))
    pruned = nn.Linear(8, 4)
    latent = pruned.weight
    attach(pruned, recipe("prune"))
    pruned(inputs).sum().backward()
    mask = pruned.weight != 0
    assert torch.allclose(latent.grad, inputs.sum(0).expand(4, 8) * mask)


def test_gradient_of_shared_values_is_the_sum_over_their_weights():
    model, inputs = nn.Linear(8, 4), torch.randn(3, 8)
    attach(model, recipe("share"))
    codes = packed_weights(model)["weight"].parts["codes"]
    (codebook,) = new_parameters(model)
    model(inputs).sum().backward()
    slope = inputs.sum(0).expand(4, 8)
    assert torch.allclose(
        codebook.grad, torch.stack([slope[codes == k].sum() for k in range(len(codebook))]), atol=1e-5
    )


def test_attach_again_goes_on_from_the_mask():
    torch.manual_seed(0)
    model = attach(nn.Linear(16, 8), recipe("prune"))
    mask = model.weight != 0
    with torch.no_grad():
        dict(model.named_parameters())["parametrizations.weight.original"].copy_(torch.randn(8, 16))
    attach(model, recipe("prune_share"))
    assert torch.equal(model.weight != 0, mask)
    assert len(model.weight.unique()) == 5
    assert int(mask.sum()) == 128 - round(0.6 * 128)
    attach(model, recipe('[{method = "prune/magnitude", sparsity = 0.8}, {method = "share/kmeans", bits = 2}]'))
    grown = model.weight != 0
    assert int(grown.sum()) == 128 - round(0.8 * 128)
    assert not bool((grown & ~mask).any())


@pytest.mark.parametrize("steps", ["share", "svd", "prune_share", "svd_uniform"])
def test_attach_again_keeps_what_was_trained_and_its_parameter_objects(steps):
    torch.manual_seed(0)
    model = attach(nn.Linear(16, 8), recipe(steps))
    with torch.no_grad():
        for parameter in new_parameters(model):
            parameter.mul_(1.5)
    value, parts = model.weight.detach().clone(), new_parameters(model)
    attach(model, recipe(steps))
    assert torch.equal(model.weight, value)
    assert list(map(id, new_parameters(model))) == list(map(id, parts))


def test_attach_again_keeps_the_rank():
    torch.manual_seed(0)
    steps = '[{method = "factorize/svd", energy = 0.7, force = true}]'
    model = attach(nn.Linear(16, 8), recipe(steps))
    rank = new_parameters(model)[0].shape
    for _ in range(3):
        attach(model, recipe(steps))
    assert new_parameters(model)[0].shape == rank


def test_attach_again_keeps_the_latent_weight():
    model = nn.Linear(16, 8)
    latent = model.weight.detach().clone()
    attach(model, recipe('[{method = "quantize/uniform", bits = 2}]'))
    attach(model, recipe('[{method = "quantize/uniform", bits = 8}]'))
    assert float((model.weight.detach() - latent).abs().max()) < 0.01


def test_attach_again_without_a_weight_leaves_it_compressed():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    attach(model, recipe("prune"))
    attach(model, recipe("uniform", match="1.*"))
    assert int((model[0].weight == 0).sum()) == round(0.6 * 64)
    assert [w.name for w, _ in attached(model)] == ["1.weight"]


@pytest.mark.parametrize("steps", ["share", "uniform", "svd"])
def test_frozen_weights_stay_frozen(steps):
    model = nn.Linear(8, 8)
    model.weight.requires_grad_(False)
    attach(model, recipe(steps))
    assert not any(p.requires_grad for n, p in model.named_parameters() if n != "bias")
    attach(model, recipe(steps))
    assert new_parameters(model) == []
    detach(model)
    assert not model.weight.requires_grad
    assert model.bias.requires_grad


def test_latent_weight_without_a_say_wants_no_gradient():
    """Or DDP would wait for a gradient that never comes, also where the trained part lies behind a mask."""
    for steps in ("share", "prune_share", "svd"):
        model = attach(nn.Linear(8, 8), recipe(steps))
        assert not dict(model.named_parameters())["parametrizations.weight.original"].requires_grad
        model(torch.ones(1, 8)).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


GROUPS_OF_SEVEN = '{method = "quantize/uniform", per = "group", group = 7}'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[[rule]]\nmatch = "9.*"\nsteps = ["quantize/uniform"]', RecipeError),
        (f'[[rule]]\nmatch = "0.*"\nsteps = ["prune/magnitude"]\n[[rule]]\nsteps = [{GROUPS_OF_SEVEN}]', MethodError),
    ],
)
def test_a_failing_attach_leaves_the_model_untouched(text, error):
    for steps in (None, "prune"):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        if steps:
            attach(model, recipe(steps))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        before = attachment(model)
        with pytest.raises(error) as raised:
            attach(model, Recipe.loads(text))
        assert "\n" not in str(raised.value)
        assert attachment(model) is before
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_nan_names_the_layer_and_touches_nothing():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(MethodError, match=r"1\.weight \(linear, \(8, 8\)\)"):
        attach(model, recipe("uniform"))
    assert not any(parametrize.is_parametrized(m) for m in model.modules())


def test_somebody_elses_parametrization():
    model = nn.Sequential(nn.Linear(8, 8), nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)))
    with pytest.raises(ModelError, match=r"1\.weight has a parametrization of its own"):
        attach(model, recipe("uniform"))
    attach(model, recipe("uniform", match="0.*"))
    assert advance(model, 0.5) is False
    with pytest.raises(LilliputError, match=r"1\.weight has a parametrization of its own"):
        packed_weights(model)
    detach(model)
    assert not parametrize.is_parametrized(model[0])


def test_weights_worth_keeping_are_kept_and_noted():
    model = attach(nn.Linear(8, 8), recipe('[{method = "factorize/svd", rank = 8}]'))
    assert list(attached(model)) == []
    assert "rank 8 of a 8 x 8 matrix" in attachment(model).notes["weight"]


@pytest.mark.parametrize("steps", STEPS)
def test_autocast_sees_what_is_packed(steps):
    model, inputs = make("linear")
    attach(model, recipe(steps))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = model[0].weight
        loss = model(inputs).float().square().mean()
    assert torch.equal(weight, unpack(packed_weights(model)["0.weight"]))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("steps", ["svd", "prune_share", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_model_may_change_its_dtype(steps, dtype):
    model, inputs = make("linear")
    attach(model, recipe(steps)).to(dtype)
    output = model(inputs.to(dtype))
    assert output.dtype == dtype
    packed = packed_weights(model)["0.weight"]
    assert packed.dtype == dtype
    assert torch.equal(unpack(packed), model[0].weight)


@pytest.mark.parametrize("name", ["lstm", "gru", "tied", "attention"])
def test_cached_gives_the_same_outputs_and_gradients(name):
    """Also where a layer is called twice in one cached block: no gradient may be lost."""
    results = []
    for cached in (False, True):
        model, inputs = make(name)
        attach(model.train(), recipe("prune"))
        if cached:
            with parametrize.cached():
                loss = model(inputs).square().mean() + model(inputs + (0 if name == "tied" else 1)).square().mean()
        else:
            loss = model(inputs).square().mean() + model(inputs + (0 if name == "tied" else 1)).square().mean()
        loss.backward()
        results.append([loss.detach()] + [p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results))


def test_advance_moves_the_mask_and_keeps_trained_values():
    torch.manual_seed(0)
    schedule = 'schedule = {method = "prune/iterative", rounds = 2, until = 0.5}'
    model = attach(nn.Linear(16, 8), recipe("prune_share", schedule=schedule))
    (codebook,) = new_parameters(model)
    with torch.no_grad():
        codebook.mul_(-2)
    value = model.weight.detach().clone()
    assert advance(model, 0.3) is False
    assert advance(model, 0.5) is True
    kept = model.weight != 0
    assert int(kept.sum()) == 128 - round(0.6 * 128)
    assert torch.equal(model.weight[kept], value[kept])
    removed = (value != 0) & ~kept
    assert float(value[kept].abs().min()) >= float(value[removed].abs().max())
    assert new_parameters(model)[0] is codebook
    with pytest.raises(RecipeError, match="between 0 and 1"):
        advance(model, 1.5)


def test_advance_by_quality_grows_the_mask():
    torch.manual_seed(0)
    schedule = 'schedule = {method = "prune/iterative", rounds = 4, until = 1.0}'
    model = attach(nn.Linear(64, 64), recipe('[{method = "prune/magnitude", quality = 1.5}]', schedule=schedule))
    masks = [model.weight != 0]
    for progress in (0.4, 0.7, 1.0):
        assert advance(model, progress)
        masks.append(model.weight != 0)
    counts = [int(m.sum()) for m in masks]
    assert counts == sorted(set(counts), reverse=True)
    assert all(not bool((b & ~a).any()) for a, b in pairwise(masks))


def test_masked_weights_stay_zero_under_momentum_and_decay():
    """Han's invariants: no optimizer brings a pruned weight back into the effective weight."""
    model, inputs = make("linear")
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    train(model, inputs, optimizer)
    attach(model, recipe("prune"))
    mask = model[0].weight == 0
    assert int(mask.sum()) == round(0.6 * 96)
    for _ in range(5):
        train(model, inputs, optimizer, 1)
        assert torch.equal(model[0].weight == 0, mask)
    output = model(inputs)
    detach(model)
    assert torch.equal(model(inputs), output)
    assert torch.equal(model[0].weight == 0, mask)


def test_tied_weights_are_one():
    model, _ = make("tied")
    attach(model, recipe("share"))
    assert len(list(attached(model))) == 1
    assert torch.equal(model.out.weight, model.embedding.weight)
    assert set(packed_weights(model)) == {"embedding.weight"}
    detach(model)
    assert model.out.weight is model.embedding.weight


def test_functional_loss_reaches_the_input_too():
    model, inputs = make("conv2d")
    attach(model, recipe("uniform"))
    inputs.requires_grad_()
    functional.mse_loss(model(inputs), torch.zeros(2, 8, 5, 5)).backward()
    assert bool(inputs.grad.any())


class Clashing(WeightMethod):
    """A method whose parts bear names that nn.Module and the node use themselves."""

    training = "parts"
    frozen = ("training", "steps", "_parameters")
    trained = ("forward", "weight")

    def pack(self, weight, stats=None, prior=None):
        ones = torch.ones(2, dtype=torch.int8)
        parts = {"training": ones, "steps": ones, "_parameters": ones, "forward": weight / 2, "weight": weight / 2}
        return Packed("quantize/clashing", tuple(weight.shape), weight.dtype, parts)

    @staticmethod
    def unpack(packed):
        return packed.tensor("forward", shape=packed.shape) + packed.tensor("weight", shape=packed.shape)


def test_a_part_whose_factors_outgrow_it_in_training_stays_as_it_is():
    """The magnitudes of constant rows are of rank one; an optimizer's step makes them of full rank."""
    model = nn.Linear(5, 6, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.25)
    attach(model, recipe('[{method = "quantize/binary_bases"}, {method = "factorize/tensor_train", cores = 1}]'))
    assert isinstance(packed_weights(model)["weight"].parts["scale"], Packed)
    attach(model, recipe('[{method = "quantize/binary_bases"}, {method = "factorize/tensor_train"}]'))
    with torch.no_grad():
        model.parametrizations.weight.original.copy_(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    packed = packed_weights(model)["weight"]
    assert isinstance(packed.parts["scale"], torch.Tensor)
    assert torch.equal(model.weight, unpack(packed))


def test_parts_may_bear_any_name(monkeypatch):
    stub = types.ModuleType("lilliput.quantize.clashing")
    stub.Clashing = Clashing
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.setattr(Clashing, "__module__", stub.__name__)
    monkeypatch.setattr(method, "_own", lambda family: ("clashing",) if family == "quantize" else ())
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    attach(model, Recipe((Rule(steps=(Clashing(),)),)))
    model.train().eval()
    assert torch.allclose(model.weight, before)
    optimizer = torch.optim.SGD(new_parameters(model), lr=0.5)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert not torch.allclose(model.weight, before)
    packed = packed_weights(model)["weight"]
    assert set(packed.parts) == {"training", "steps", "_parameters", "forward", "weight"}
    assert torch.equal(unpack(packed), model.weight)
    again = attach(nn.Linear(4, 3), Recipe((Rule(steps=(Clashing(),)),)))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.weight, model.weight)
    method._found.cache_clear()
