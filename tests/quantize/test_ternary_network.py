"""TNN: thresholds and neurons against brute force, and a student that agrees with its teacher, through the file."""

import itertools

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import DataError, MethodError, ModelError
from lilliput.core.recipe import Recipe, Rule
from lilliput.quantize.activations.ternary import Ternary
from lilliput.quantize.ternary_network import TernaryNetwork, _thirds, neuron, thresholds
from lilliput.train.student import student


def voted(samples, seed):
    """A teacher's votes: sgn(r) with probability |r|, else 0."""
    rho = torch.rand(samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return torch.stack([(-rho).clamp(min=0), 1 - rho.abs(), rho.clamp(min=0)], 1)


def agreement(y, low, high, votes):
    place = torch.where(y > high, 2, torch.where(y < low, 0, 1))
    return float(votes.gather(1, place[:, None]).sum())


@pytest.mark.parametrize("seed", range(4))
def test_prefix_sums_find_what_a_double_loop_finds(seed):
    torch.manual_seed(seed)
    y, votes = torch.randint(-6, 7, (40, 3)), voted(40, seed)
    low, high, found = thresholds(y, votes)
    for column in range(3):
        best = max(agreement(y[:, column], one, two, votes) for one in range(-8, 9) for two in range(one, 9))
        assert float(found[column]) == pytest.approx(best, abs=1e-9)
        assert agreement(y[:, column], int(low[column]), int(high[column]), votes) == pytest.approx(best, abs=1e-9)
        assert low[column] <= high[column]


@pytest.mark.parametrize("seed", range(4))
def test_exhaustive_is_the_best_of_the_family(seed):
    """All (p, q) of the sorted prefixes, all thresholds; and never above the mean of the largest probabilities."""
    torch.manual_seed(10 + seed)
    weights, votes = torch.randn(7), voted(30, seed)
    inputs = torch.randint(-1, 2, (30, 7)).float()
    found = neuron(weights, inputs, votes, "exhaustive")
    order = weights.argsort(descending=True)
    up, down = [i for i in order.tolist() if weights[i] > 0], [i for i in order.flip(0).tolist() if weights[i] < 0]
    best = 0.0
    for p, q in itertools.product(range(1, len(up) + 1), range(1, len(down) + 1)):
        chosen = torch.zeros(7)
        chosen[up[:p]], chosen[down[:q]] = 1, -1
        y = (inputs @ chosen).long()
        best = max(best, *(agreement(y, one, two, votes) for one in range(-8, 9) for two in range(one, 9)))
    assert found.agreement * 30 == pytest.approx(best, abs=1e-9)
    assert found.agreement <= float(votes.amax(1).mean()) + 1e-12
    y = (inputs @ found.weights).long()
    assert agreement(y, found.low, found.high, votes) == pytest.approx(best, abs=1e-9)
    assert neuron(weights, inputs, votes, "grid").agreement <= found.agreement + 1e-12


def test_the_grid_and_thirds_are_near_to_exhaustive():
    torch.manual_seed(3)
    weights, inputs = torch.randn(60), torch.randint(-1, 2, (400, 60)).float()
    rho = (inputs @ weights / 6).clamp(-1, 1).double()
    votes = torch.stack([(-rho).clamp(min=0), 1 - rho.abs(), rho.clamp(min=0)], 1)
    one, two, most = (neuron(weights, inputs, votes, by).agreement for by in ("grid", "dichotomic", "exhaustive"))
    assert most - 0.01 <= one <= most
    assert most - 0.01 <= two <= most


def test_thirds_find_the_summit_and_try_few_places():
    """A score with one summit: found wherever it is, by about 2 log_1.5 n tries."""
    for top in (1, 2, 37, 99, 100):
        tried = []

        def score(place, top=top, tried=tried):
            tried.append(place)
            return -abs(place - top), place, 0, 0

        assert _thirds(score, range(1, 101))[1] == top
        assert len(tried) == len(set(tried)) <= 26
    assert _thirds(lambda place: (0.0, place, 0, 0), range(1))[1] == 0


@pytest.mark.parametrize("search", ["grid", "dichotomic"])
@pytest.mark.parametrize("weights", [torch.ones(3), -torch.ones(3), torch.zeros(3), torch.tensor([1.0, -1.0, 0.0])])
def test_weights_of_one_sign_or_none(weights, search):
    inputs, votes = torch.tensor([[1.0, 0, -1], [1, 1, 1], [-1, -1, 0]]), voted(3, 1)
    found = neuron(weights, inputs, votes, search)
    assert found.agreement == neuron(weights, inputs, votes, "exhaustive").agreement
    assert torch.equal(found.weights, weights * found.weights.abs())


def test_a_planted_neuron_is_found_again():
    torch.manual_seed(4)
    planted = torch.tensor([1.0, 1, 1, 0, 0, -1, -1, 0])
    weights = planted + torch.randn(8) * 0.05
    inputs = torch.randint(-1, 2, (500, 8)).float()
    y = inputs @ planted
    votes = torch.stack([y < -1, (y >= -1) & (y <= 2), y > 2], 1).double()
    found = neuron(weights, inputs, votes, "exhaustive")
    assert torch.equal(found.weights, planted)
    assert found.agreement == 1
    assert (found.low, found.high) == (-1, 2)


def test_bad_input_is_one_line():
    votes = voted(3, 0)
    with pytest.raises(MethodError, match="whole numbers"):
        neuron(torch.ones(2), torch.rand(3, 2), votes)
    with pytest.raises(MethodError, match="no search 'binary'"):
        neuron(torch.ones(2), torch.ones(3, 2), votes, "binary")
    with pytest.raises(MethodError, match="for 4 weights"):
        neuron(torch.ones(4), torch.ones(3, 2), votes)
    with pytest.raises(ModelError, match="no layer has a ternary quantizer"):
        student(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), [torch.ones(2, 2)])
    with pytest.raises(DataError, match="empty"):
        student(nn.Linear(2, 2), [])


def test_packing_is_exact_for_students():
    weight = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.equal(TernaryNetwork.unpack(TernaryNetwork().pack(weight)), weight)
    assert TernaryNetwork().pack(torch.tensor([0.5, 0.51])).parts["codes"].tolist() == [0, 1]


def taught():
    """A small teacher on two blobs of pictures, with stochastic ternary activations."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6),
        nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Linear(16, 2),
    )  # fmt: skip
    x = torch.randn(256, 1, 6, 6)
    target = (x[:, :, :3].mean((1, 2, 3)) > x[:, :, 3:].mean((1, 2, 3))).long()
    recipe = Recipe((Rule(activations=Ternary(stochastic=True), skip="first"),))
    lilliput.attach(model, recipe, example=x)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    lilliput.fit(
        model, [(x[i : i + 64], target[i : i + 64]) for i in range(0, 256, 64)], epochs=15, optimizer=optimizer
    )
    return model.eval(), x, target


def test_a_student_agrees_with_its_teacher_and_is_saved(tmp_path):
    teacher, x, target = taught()
    made, lines = student(teacher, [x], samples=600)
    assert [line.layer for line in lines] == ["2", "6"]
    for line in lines:
        assert 0.55 < line.agreement <= line.limit
        assert 0 < line.zeros < 1
    for path in ("2", "6"):
        assert set(made.get_submodule(path).weight.unique().tolist()) <= {-1.0, 0.0, 1.0}
    with torch.no_grad():
        scores = [float((net(x).argmax(1) == target).float().mean()) for net in (teacher, made)]
        assert scores[0] > 0.8
        assert scores[1] > scores[0] - 0.15
        recipe = Recipe((Rule("2.weight", (TernaryNetwork(),)), Rule("6.weight", (TernaryNetwork(),))))
        artifact = lilliput.compress(made, recipe, [x], fold=False)
        assert artifact.facts["error"] == {"2.weight": 0.0, "6.weight": 0.0}
        assert set(artifact.quantizers) == {"2", "6", "8"}
        assert torch.equal(lilliput.load(artifact, engine="dense")(x), made(x))


def test_batchnorm_holds_the_thresholds():
    """+1 above high, -1 below low, for every whole number that a sum may be."""
    teacher, x, _ = taught()
    made, _ = student(teacher, [x], samples=300)
    norm = made[7]
    y = torch.arange(-40, 41).float()[:, None].repeat(1, 16)
    with torch.no_grad():
        out = Ternary().forward(norm(y), {})
    middle = norm.running_mean
    half = (norm.eps + 1) ** 0.5 / norm.weight.detach() / 2
    low, high = torch.round(middle - half + 0.5), torch.round(middle + half - 0.5)
    expected = (y > high).float() - (y < low).float()
    assert torch.equal(out, expected)
