"""Filter norms: scores, greedy and independent, the counts of the paper's tables, and the order of criteria."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.observe.collect import collect
from lilliput.prune.filter_norm import FilterNorm
from lilliput.prune.sparse import mask_of
from lilliput.testing.spread import gaussian
from lilliput.train.compress import compress


def rows(packed):
    return unpack(packed).flatten(1).any(1)


@pytest.mark.parametrize("norm", [1, 2])
def test_filters_of_largest_norm_stay_whole(norm):
    weight = gaussian(10, 4, 3, 3) * torch.linspace(0.5, 2, 10)[torch.randperm(10)][:, None, None, None]
    kept = rows(FilterNorm(sparsity=0.35, norm=norm).pack(weight))
    norms = weight.flatten(1).norm(p=norm, dim=1)
    assert int(kept.sum()) == 6  # ceil(3.5) are removed
    assert float(norms[kept].min()) >= float(norms[~kept].max())


@pytest.mark.parametrize(
    ("filters", "ratio", "left"),
    [(64, 0.5, 32), (512, 0.5, 256), (16, 0.1, 14), (16, 0.6, 6), (32, 0.3, 22), (1, 0.9, 1)],
)
def test_the_number_removed_is_rounded_up_as_in_the_papers_tables(filters, ratio, left):
    assert int(rows(FilterNorm(sparsity=ratio).pack(gaussian(filters, 2, 3, 3))).sum()) == left


def test_another_order_of_filters_is_another_order_of_scores():
    weight, order = gaussian(8, 4, 3, 3), torch.randperm(8)
    assert torch.equal(FilterNorm().score(weight)[order], FilterNorm().score(weight[order]))


def chain():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 6, 3, bias=False), nn.Flatten(), nn.Linear(54, 5)
    )
    with torch.no_grad():
        model[0].weight.mul_(torch.tensor([1.0, 0.01, 1.0, 0.01])[:, None, None, None])
        # Filter 0 is large only in what reads the filters that go.
        model[1].weight[0] = 0.001
        model[1].weight[0, 1] = 5.0
    return model


def test_greedy_leaves_out_what_reads_lost_filters():
    def kept(greedy):
        rule = Rule(layers="conv2d", steps=(FilterNorm(sparsity=0.5, greedy=greedy),))
        artifact = compress(chain(), Recipe((rule,)), torch.rand(1, 3, 7, 7), remove_dead=False)
        return [rows(artifact.weights[f"{i}.weight"]).tolist() for i in range(2)]

    alone, greedy = kept(False), kept(True)
    assert alone[0] == greedy[0] == [True, False, True, False]
    assert alone[1][0]
    assert not greedy[1][0]
    assert sum(greedy[1]) == 3


def greedily(model, data, sparsity=0.5):
    """The steps that a greedy rule for all layers gives each of them."""
    method = FilterNorm(sparsity=sparsity, greedy=True)
    values = {name: value.detach() for name, value in model.named_parameters() if value.ndim > 1}
    return method.allot(values, collect(model, dict.fromkeys(values, method.needs), [data]))


def gone(weight, step):
    return [i for i, kept in enumerate(rows(step.pack(weight)).tolist()) if not kept]


def test_greedy_counts_each_map_after_flattening():
    model = chain()
    steps = greedily(model, torch.rand(1, 3, 7, 7))
    lost = gone(model[1].weight, steps["1.weight"])
    assert steps["0.weight"].lost == ()
    assert steps["1.weight"].lost == (1, 3)
    assert steps["3.weight"].lost == tuple(i for channel in lost for i in range(9 * channel, 9 * channel + 9))


class Disordered(nn.Module):
    """Written down from the last layer to the first; two layers read one, a sum of two is read by another."""

    def __init__(self):
        super().__init__()
        self.head, self.after = nn.Linear(24, 4), nn.Conv2d(6, 6, 1)
        self.right, self.left = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.norm, self.stem = nn.BatchNorm2d(8), nn.Conv2d(2, 8, 3)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norm(self.stem(x))), 2)
        x = functional.adaptive_avg_pool2d(self.after(self.left(x) + self.right(x)).relu(), 2)
        return self.head(x.flatten(1))


def test_greedy_goes_the_way_of_the_data_not_of_the_rule():
    torch.manual_seed(0)
    model = Disordered().eval()
    steps = greedily(model, torch.rand(2, 2, 8, 8))
    assert list(steps) == [name for name, value in model.named_parameters() if value.ndim > 1]
    lost = tuple(gone(model.stem.weight, steps["stem.weight"]))
    assert len(lost) == 4
    assert steps["left.weight"].lost == steps["right.weight"].lost == lost
    assert steps["stem.weight"].lost == steps["after.weight"].lost == ()
    channels = gone(model.after.weight, steps["after.weight"])
    assert steps["head.weight"].lost == tuple(i for channel in channels for i in range(4 * channel, 4 * channel + 4))


def test_greedy_knows_nothing_of_a_layer_that_is_called_with_several():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.shared(self.shared(self.first(x)))

    assert greedily(Twice(), torch.rand(2, 4))["shared.weight"].lost == ()


def test_greedy_goes_along_the_last_dimension_of_linear_layers():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 3))
    steps = greedily(model, torch.rand(2, 5, 4))
    assert steps["3.weight"].lost == tuple(gone(model[0].weight, steps["0.weight"]))


def test_greedy_needs_data():
    with pytest.raises(MethodError, match="needs"):
        compress(chain(), Recipe((Rule(layers="conv2d", steps=(FilterNorm(sparsity=0.5, greedy=True),)),)))


def test_a_single_layer_is_the_same_either_way():
    model = nn.Conv2d(4, 9, 3)
    step = greedily(model, torch.rand(1, 4, 5, 5), 0.4)["weight"]
    assert torch.equal(mask_of(step.pack(model.weight)), mask_of(FilterNorm(sparsity=0.4).pack(model.weight)))


@pytest.mark.parametrize("wrong", [{"norm": 3}, {"greedy": True, "scope": "global"}, {"sparsity": 1.0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(MethodError):
        FilterNorm(**wrong)


def test_the_smallest_harm_less_than_random_ones_and_those_less_than_the_largest():
    """Error of a layer's output on random inputs after half of the filters are gone, as a mean over twenty layers."""
    errors = torch.zeros(3)
    for seed in range(20):
        weight = gaussian(16, 8, seed=seed) * torch.linspace(0.2, 2, 16)[:, None]
        inputs = gaussian(64, 8, seed=seed + 50)
        scores = FilterNorm().score(weight)[:, 0]
        order = scores.argsort()
        shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        for place, gone in enumerate((order[:8], shuffled[:8], order[8:])):
            pruned = weight.clone()
            pruned[gone] = 0
            errors[place] += (inputs @ (weight - pruned).T).square().sum()
    assert errors[0] < 0.5 * errors[1]
    assert errors[1] < 0.8 * errors[2]
