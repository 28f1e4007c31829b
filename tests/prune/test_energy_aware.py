"""Restoring against brute force; the fit's normal equations; better outputs than magnitude; layers by their energy."""

import itertools

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe
from lilliput.hardware.assess import assess
from lilliput.hardware.device import Device
from lilliput.observe.collect import collect
from lilliput.prune.energy_aware import EnergyAware
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.sparse import mask_of
from lilliput.search.layers import by_energy, layers_of
from lilliput.solve.restoration import restored


def problem(layer, seed=0, shape=(200, 12)):
    torch.manual_seed(seed)
    layer = layer.double()
    layer.weight.data = torch.randn_like(layer.weight)
    value = torch.randn(*shape, dtype=torch.float64)
    if len(shape) == 4:  # neighbours and channels are alike, as in pictures
        value = value + value.roll(1, 2) + value.roll(1, 3) + 0.5 * value.roll(1, 1)
    else:
        value = value @ (torch.eye(shape[1]) + 0.5 * torch.randn(shape[1], shape[1])).double() * torch.rand(shape[1])
    stats = collect(layer, {"weight": EnergyAware.needs}, [value])["weight"]
    return layer.weight.detach().clone(), value, stats


def gain(weight, samples, kept, extra, power):
    """What a set of weights repairs, by the definition."""
    before = (samples @ (weight * ~kept)).abs().pow(power).sum()
    after = samples @ (weight * ~(kept | extra))
    return float(before - after.abs().pow(power).sum())


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_one_at_a_time_is_the_greedy_choice(seed, power):
    source = torch.Generator().manual_seed(seed)
    weight = torch.randn(9, generator=source, dtype=torch.float64)
    samples = torch.randn(20, 9, generator=source, dtype=torch.float64) * torch.rand(9, generator=source)
    start = weight.abs() > 1
    kept = start.clone()
    steps = min(3, int((~kept).sum()))
    for _ in range(steps):
        single = [(j, torch.arange(9) == j) for j in range(9) if not kept[j]]
        best = max(single, key=lambda pair: gain(weight, samples, kept, pair[1], power))[1]
        kept = kept | best
    found = restored(weight[None], samples, start[None], torch.tensor([steps]), power=power, rounds=steps)
    assert torch.equal(found[0], kept)


@pytest.mark.parametrize("seed", range(6))
def test_restoring_is_between_magnitude_and_the_best_set(seed):
    weight, value, _ = problem(nn.Linear(9, 1, bias=False), seed, (60, 9))
    row, count = weight[0], 4

    def error(mask):
        return float((value @ (row * ~mask)).square().sum())

    by_size = row.abs() >= row.abs().sort(descending=True).values[count - 1]
    start = torch.zeros(1, 9, dtype=torch.bool)
    found = restored(weight, value, start, torch.tensor([count]), power=2, rounds=count)[0]
    sets = [torch.isin(torch.arange(9), torch.tensor(s)) for s in itertools.combinations(range(9), count)]
    assert int(found.sum()) == count
    assert error(found) >= min(map(error, sets)) - 1e-9
    assert error(found) <= sorted(map(error, sets))[len(sets) // 4]
    assert error(found) <= error(by_size) + 1e-9


def test_counts_of_each_row_and_zeros_that_stay():
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 4.0]])
    kept = restored(weight, torch.eye(4), torch.zeros(2, 4, dtype=torch.bool), torch.tensor([2, 3]), rounds=2)
    assert kept.tolist() == [[False, False, True, True], [False, False, False, True]]


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_fit_is_least_squares(norm):
    weight, value, stats = problem(nn.Linear(12, 5, bias=False))
    method = EnergyAware(sparsity=0.5, per="filter", restore=0.4, norm=norm, damping=0.0)
    packed = method.pack(weight, stats)
    found, mask = unpack(packed), mask_of(packed)
    assert mask.sum(1).tolist() == [6] * 5
    for row, solved, kept in zip(weight, found, mask):
        inputs = value[:, kept]
        slope = inputs.T @ (value @ row - inputs @ solved[kept])
        assert float(slope.abs().max()) < 1e-5 * float((inputs.T @ (value @ row)).abs().max())
    plain = unpack(EnergyAware(sparsity=0.5, per="filter", restore=0.4, norm=norm, refit=0).pack(weight, stats))
    assert torch.equal(plain[mask], weight[mask])
    errors = [float((value @ (weight - other).T).square().sum()) for other in (found, plain)]
    assert errors[0] < errors[1]


def test_nothing_restored_is_magnitude():
    weight, _, stats = problem(nn.Conv2d(2, 6, 2, groups=2, bias=False), shape=(4, 2, 6, 6))
    whole = EnergyAware(sparsity=0.5, restore=0.0, refit=0).pack(weight, stats)
    assert torch.equal(mask_of(whole), mask_of(Magnitude(sparsity=0.5).pack(weight)))
    packed = EnergyAware(sparsity=0.5, per="filter", restore=0.0, refit=0).pack(weight, stats)
    rows = weight.flatten(1).abs()
    expected = rows >= rows.sort(dim=1, descending=True).values[:, 1:2]
    assert torch.equal(mask_of(packed).flatten(1), expected)


LAYERS = [nn.Linear(16, 6, False), nn.Conv2d(4, 6, 2, bias=False), nn.Conv2d(4, 6, 2, groups=2, bias=False)]


@pytest.mark.parametrize("layer", LAYERS)
def test_outputs_are_nearer_than_by_magnitude(layer):
    shape = (200, 16) if isinstance(layer, nn.Linear) else (12, 4, 7, 7)
    for seed in range(4):
        weight, value, stats = problem(layer, seed, shape)
        errors = []
        for method in (EnergyAware(sparsity=0.6), EnergyAware(sparsity=0.6, refit=0), Magnitude(sparsity=0.6)):
            changed = weight - unpack(method.pack(weight, stats))
            layer.weight.data = changed
            with torch.no_grad():
                errors.append(float(layer(value).norm()))
            layer.weight.data = weight
        assert errors[0] < errors[1]
        assert errors[0] < errors[2]


def test_layers_go_by_energy_and_in_turn():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 64), nn.ReLU(), nn.Linear(64, 3)
    )
    data = [torch.randn(16, 1, 8, 8)]
    device = Device.load("eyeriss")
    layers, _ = layers_of(model.eval(), lambda: model(data[0][:1]))
    order = by_energy(layers, device)
    energies = [assess(layer, device).energy.total for layer in sorted(layers, key=lambda each: order.index(each.name))]
    assert energies == sorted(energies, reverse=True)
    assert order[0] == "3"
    recipe = Recipe.loads('[[rule]]\nsteps = [{method = "prune/energy_aware", sparsity = 0.5}]')
    names = [f"{name}.weight" for name in order]
    assert list(lilliput.in_turn(model, recipe, data, order=names)) == names
    for place in (0, 3, 5):
        assert float((model[place].weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_bad_input():
    with pytest.raises(MethodError, match="pattern must be unstructured, not filter"):
        EnergyAware(sparsity=0.5, pattern="filter")
    with pytest.raises(MethodError, match="no norm 'l3'"):
        EnergyAware(norm="l3")
    with pytest.raises(MethodError, match="no per = 'net'"):
        EnergyAware(per="net")
    with pytest.raises(MethodError, match="restore = 2"):
        EnergyAware(restore=2.0)
    with pytest.raises(MethodError, match="needs data"):
        EnergyAware(sparsity=0.5).pack(torch.ones(2, 2))
    _, _, stats = problem(nn.Linear(12, 5, bias=False))
    with pytest.raises(MethodError, match="of another layer"):
        EnergyAware(sparsity=0.5).pack(torch.ones(5, 11), stats)
