"""Optimal brain compression: equal to explicit re-inversion, exact losses, least squares as the bound, orderings."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.core.stats import Stats
from lilliput.observe.collect import collect
from lilliput.observe.inputs import Gram
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.obc import OBC
from lilliput.prune.sparse import mask_of
from lilliput.solve.inverse_hessian import inverse_factor, invert_upper_, sweep_
from lilliput.solve.least_squares import error, refit


def problem(rows=12, columns=40, seed=0, samples=300):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    mixing += torch.eye(columns)
    inputs = torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ mixing
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), inputs.T @ inputs / samples


def stats_of(gram):
    return Stats({"gram": Gram(gram[None], 300)})


def following(mask):
    return lambda saliency, start, stop: mask[:, start:stop]


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_factor_is_that_of_the_inverse(damping):
    _, gram = problem()
    upper = inverse_factor(gram, damping)
    whole = gram + damping * gram.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(upper.T @ upper, whole.inverse())
    assert torch.equal(upper, upper.triu())
    for start in (0, 7, 39):
        inverse = whole[start:, start:].inverse()
        torch.testing.assert_close(upper[start, start] ** 2, inverse[0, 0])


@pytest.mark.parametrize("block", [1, 3, 40, 64])
def test_triangular_inverse_in_place(block):
    matrix = torch.randn(40, 40, dtype=torch.float64).triu() + 10 * torch.eye(40, dtype=torch.float64)
    inverse = matrix.inverse()
    torch.testing.assert_close(invert_upper_(matrix, block), inverse)


def test_a_singular_matrix_is_damped_until_it_can_be_factored():
    rows = torch.randn(5, 40, dtype=torch.float64)
    assert bool(inverse_factor(rows.T @ rows, 0).isfinite().all())
    with pytest.raises(ValueError, match="not finite, or not positive semidefinite"):
        inverse_factor(-torch.eye(3) * 1e9)


def explicit(weight, gram, mask):
    """Deletes column by column with the inverse of what is left computed anew each time; returns weights and loss."""
    work, loss = weight.clone(), 0.0
    for i in range(weight.shape[1]):
        inverse = gram[i:, i:].inverse()
        for row in range(len(weight)):
            if not mask[row, i]:
                loss += float(work[row, i] ** 2 / inverse[0, 0])
                work[row, i:] -= work[row, i] / inverse[0, 0] * inverse[:, 0]
    return work * mask, loss


@pytest.mark.parametrize("block", [1, 8, 40])
def test_sweep_is_explicit_reinversion_and_its_loss_is_exact(block):
    weight, gram = problem()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    found = sweep_(weight.clone(), inverse_factor(gram, 0), following(mask), [5] * 8, block)
    expected, loss = explicit(weight, gram, mask)
    torch.testing.assert_close(found, expected)
    assert loss == pytest.approx(error(weight - found, gram), rel=1e-9)


def test_nothing_removed_nothing_changed():
    weight, gram = problem()
    everything = torch.ones_like(weight, dtype=torch.bool)
    assert torch.equal(sweep_(weight.clone(), inverse_factor(gram), following(everything), [40]), weight)
    assert torch.equal(unpack(OBC().pack(weight, stats_of(gram))), weight)


def test_refit_is_least_squares_on_the_mask():
    weight, gram = problem()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    found = refit(weight, gram, mask, weight * mask, iterations=400)
    for row, kept, wanted in zip(found, mask, weight):
        inner = gram[kept][:, kept]
        torch.testing.assert_close(row[kept], torch.linalg.solve(inner, gram[kept] @ wanted), rtol=1e-4, atol=1e-4)
        assert not bool(row[~kept].any())


def test_refit_in_pieces_of_rows(monkeypatch):
    weight, gram = problem()
    mask = weight > 0
    whole = refit(weight, gram, mask, weight * mask)
    monkeypatch.setattr("lilliput.solve.least_squares.MOST", 200)
    torch.testing.assert_close(refit(weight, gram, mask, weight * mask), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_ordering_of_errors(seed):
    """Least squares on the same mask <= the published sweep < magnitude."""
    weight, gram = problem(seed=seed)
    found = {}
    for refits in (0, 200):
        packed = OBC(sparsity=0.5, damping=0, block=8, refit=refits).pack(weight, stats_of(gram))
        found[refits] = error(weight - unpack(packed), gram), mask_of(packed)
    assert torch.equal(found[0][1], found[200][1])
    magnitude = error(weight - unpack(Magnitude(sparsity=0.5).pack(weight)), gram)
    assert found[200][0] <= found[0][0] < 0.9 * magnitude


def test_no_correlation_makes_it_magnitude_in_each_block():
    weight, _ = problem()
    packed = OBC(sparsity=0.5, block=10).pack(weight, stats_of(torch.eye(40, dtype=torch.float64)))
    mask = mask_of(packed)
    for start in range(0, 40, 10):
        part = Magnitude(sparsity=0.5).pack(weight[:, start : start + 10])
        assert torch.equal(mask[:, start : start + 10], mask_of(part))
    torch.testing.assert_close(unpack(packed), weight * mask)


def test_greedy_is_near_the_best_support_of_one_row():
    """Brute force over all supports of eight weights: never better than the best, usually close."""
    ratios = []
    for seed in range(12):
        weight, gram = problem(1, 8, seed)
        packed = OBC(sparsity=0.5, damping=0, block=8, refit=100).pack(weight, stats_of(gram))
        own = error(weight - unpack(packed), gram)
        best = min(
            error(weight - refit(weight, gram, mask, weight * mask, iterations=100), gram)
            for kept in itertools.combinations(range(8), 4)
            for mask in [torch.zeros(1, 8, dtype=torch.bool).index_fill_(1, torch.tensor(kept), True)]
        )
        assert own >= best * (1 - 1e-6)
        ratios.append(own / best)
    assert sorted(ratios)[5] < 4


def test_dead_inputs_lose_their_weights_first():
    weight, gram = problem()
    gram[3] = gram[:, 3] = 0
    packed = OBC(sparsity=0.1).pack(weight, stats_of(gram))
    assert not bool(unpack(packed)[:, 3].any())
    assert bool(unpack(packed).isfinite().all())


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_another_round_keeps_the_count_exact_and_the_removed_removed(sparsity):
    weight, gram = problem()
    weight[:, 30:] *= torch.rand(12, 10, generator=torch.Generator().manual_seed(3)) < 0.3
    first = OBC(sparsity=sparsity, block=8).pack(weight, stats_of(gram))
    assert int(mask_of(first).sum()) == 480 - round(sparsity * 480)
    assert not bool((mask_of(first) & (weight == 0)).any())
    again = OBC(sparsity=0.95, block=8).pack(unpack(first), stats_of(gram), first)
    assert int(mask_of(again).sum()) == 480 - 456
    assert not bool((mask_of(again) & ~mask_of(first)).any())
    moved = torch.randn_like(weight)
    kept = OBC(sparsity=0.9, block=8).pack(moved, None, again)
    assert torch.equal(unpack(kept), moved * mask_of(again))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Conv1d(3, 5, 4, bias=False)], ids=str)
def test_convolutions_by_their_unfolded_inputs(layer):
    torch.manual_seed(0)
    layer.reset_parameters()
    shape = (16, layer.in_channels, *[8] * len(layer.kernel_size))
    inputs = torch.randn(shape) + 2 * torch.randn(16, 1, *shape[2:])
    stats = collect(layer, {"weight": OBC.needs}, [inputs])["weight"]
    weight, dense = layer.weight.detach().clone(), layer(inputs).detach()
    changes = []
    for packed in (OBC(sparsity=0.5).pack(weight, stats), Magnitude(sparsity=0.5).pack(weight)):
        layer.weight.data = unpack(packed)
        changes.append(float((layer(inputs).detach() - dense).square().mean()))
    assert changes[0] < 0.9 * changes[1]


def test_bad_input_is_refused():
    weight, gram = problem()
    with pytest.raises(MethodError, match="of another layer"):
        OBC(sparsity=0.5).pack(weight[:, :30], stats_of(gram))
    with pytest.raises(MethodError, match="damping"):
        OBC(damping=-1)
    with pytest.raises(MethodError, match="calibration data"):
        OBC(sparsity=0.5).pack(weight, stats_of(gram * float("nan")))


LARGE = """
import re, sys, torch
from lilliput.core.stats import Stats
from lilliput.observe.inputs import Gram
from lilliput.prune.obc import OBC

def resident(name):
    return 1024 * int(re.search(name + r":\\s*(\\d+)", open("/proc/self/status").read())[1])

pattern, rows, columns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
method = OBC(sparsity=0.5, pattern=pattern, refit=2)
method.pack(torch.randn(64, 300), Stats({"gram": Gram(torch.eye(300)[None], 300)}))
before = resident("VmRSS")
weight, gram = torch.randn(rows, columns), torch.eye(columns)
for _ in range(4):
    inputs = torch.randn(64, columns)
    gram.addmm_(inputs.T, inputs)
method.pack(weight, Stats({"gram": Gram(gram[None], 256)}))
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read off as Linux counts it")
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_memory_of_a_large_layer(pattern):
    """At most the layer and three Gram matrices, the weight and the Gram matrix that are given among them."""
    rows, columns = 256, 3072
    command = [sys.executable, "-c", LARGE, pattern, str(rows), str(columns)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 4 * (rows * columns + 3 * columns * columns)
