"""Relations of examples: brute force, and what they don't depend on."""

import itertools
import math

import pytest
import torch

from lilliput.core.errors import DataError, MethodError
from lilliput.distill.relation import Relation


def points(seed, count=5, size=4):
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def huber(x):
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def brute_force(x, y, distance, angle):
    n = len(x)
    pairs = list(itertools.permutations(range(n), 2))
    lengths = [{p: math.dist(z[p[0]], z[p[1]]) for p in pairs} for z in (x.tolist(), y.tolist())]
    means = [sum(table.values()) / len(pairs) for table in lengths]
    far = sum(huber(lengths[0][p] / means[0] - lengths[1][p] / means[1]) for p in pairs) / len(pairs)
    triples = list(itertools.permutations(range(n), 3))

    def cosine(z, i, j, k):
        return float(torch.dot(z[i] - z[j], z[k] - z[j]) / ((z[i] - z[j]).norm() * (z[k] - z[j]).norm()))

    bent = sum(huber(cosine(x, *t) - cosine(y, *t)) for t in triples) / len(triples)
    return distance * far + angle * bent


@pytest.mark.parametrize(("distance", "angle"), [(1.0, 0.0), (0.0, 1.0), (1.0, 2.0)])
def test_against_loops_over_pairs_and_triples(distance, angle):
    x, y = points(0), 3 * points(1, size=7)
    found = float(Relation(distance=distance, angle=angle).between(x, y))
    assert found == pytest.approx(brute_force(x, y, distance, angle))


def test_turned_moved_and_scaled_features_cost_nothing():
    x = points(0)
    turn, _ = torch.linalg.qr(points(3, 4, 4))
    assert float(Relation().between(0.3 * x @ turn + 5, x)) < 1e-12
    longer = torch.cat([x, torch.zeros(5, 3, dtype=torch.float64)], 1)
    assert float(Relation().between(longer, x)) < 1e-12


def test_gradient():
    x, y = points(0, 4, 3).requires_grad_(), points(1, 4, 5)
    assert torch.autograd.gradcheck(lambda z: Relation().between(z, y), x)


def test_examples_that_coincide_and_batches_too_small():
    x = points(0)
    x[1] = x[0]
    x.requires_grad_()
    loss = Relation().between(x, points(1))
    loss.backward()
    assert bool(torch.isfinite(x.grad).all())
    for count in (1, 2):
        small = points(0, count).requires_grad_()
        loss = Relation().between(small, points(1, count))
        loss.backward()
        assert loss.item() == 0
    assert bool(torch.isfinite(Relation().between(torch.ones(3, 2), torch.ones(3, 2))))


def test_maps_count_as_vectors():
    x, y = torch.rand(4, 2, 3, 3), torch.rand(4, 5)
    assert torch.equal(Relation().between(x, y), Relation().between(x.flatten(1), y))


def test_bad_input():
    with pytest.raises(DataError, match="distill/relation"):
        Relation().between(torch.rand(3, 2), torch.rand(4, 2))
    with pytest.raises(MethodError, match="angle"):
        Relation(angle=-1.0)
