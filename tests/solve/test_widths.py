"""Widths of groups: limits hold, and on small cases the brute-force optimum is found."""

import itertools

import numpy as np
import pytest

from lilliput.solve.widths import Limit, Term, widths


def chain(rng, groups):
    """A chain of layers of random widths and uses, each group the outputs of one and the inputs of the next."""
    sizes = rng.integers(3, 9, groups)
    terms, before = [], (3.0, ())
    for group, size in enumerate([*sizes, 5]):
        here = (float(size), ((group, 1.0),) if group < groups else ())
        terms.append(Term(float(rng.integers(1, 30)), (here, before)))
        before = here
    removals = [list(range(int(size))) for size in sizes]
    losses = [np.concatenate(([0.0], np.cumsum(rng.random(size - 1) ** 3))).tolist() for size in sizes]
    return tuple(terms), removals, losses


def brute(removals, losses, limits):
    best = None
    for places in itertools.product(*(range(len(r)) for r in removals)):
        gone = [r[p] for r, p in zip(removals, places)]
        if all(limit.cost(gone) <= limit.limit for limit in limits):
            loss = sum(v[p] for v, p in zip(losses, places))
            best = loss if best is None else min(best, loss)
    return best


@pytest.mark.parametrize("part", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("both", [False, True])
def test_within_the_limits_and_near_the_optimum(part, both):
    rng = np.random.default_rng(7)
    ratios = []
    for _ in range(12):
        terms, removals, losses = chain(rng, 3)
        whole = Limit(1.0, terms).cost([0, 0, 0])
        limits = [Limit(part * whole, terms)]
        if both:
            numbers = tuple(Term(1.0, term.axes) for term in terms)
            limits.append(Limit(0.6 * Limit(1.0, numbers).cost([0, 0, 0]), numbers))
        best, found = brute(removals, losses, limits), widths(removals, losses, limits)
        if best is None:
            assert found is None
            continue
        gone = [r[p] for r, p in zip(removals, found)]
        assert all(limit.cost(gone) <= limit.limit * (1 + 1e-9) for limit in limits)
        ratios.append((sum(v[p] for v, p in zip(losses, found)) + 1e-9) / (best + 1e-9))
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(np.array(ratios) < 1 + 1e-6) >= 0.75
    assert np.mean(ratios) < 1.1


def test_nothing_goes_where_everything_fits_and_none_where_nothing_helps():
    terms = (Term(2.0, ((4.0, ((0, 1.0),)), (5.0, ()))),)
    assert widths([[0, 1, 2, 3]], [[0.0, 1.0, 2.0, 3.0]], [Limit(40.0, terms)]) == (0,)
    assert widths([[0, 1, 2, 3]], [[0.0, 1.0, 2.0, 3.0]], [Limit(10.0, terms)]) == (3,)
    assert widths([[0, 1, 2, 3]], [[0.0, 1.0, 2.0, 3.0]], [Limit(9.9, terms)]) is None
    assert widths([[0, 1, 2, 3]], [[0.0, 1.0, 2.0, 3.0]], [Limit(10.0, terms, rest=1.0)]) is None


def test_a_loss_that_falls_at_once_is_taken_even_behind_one_that_rises():
    """Widths aren't convex: two channels may cost less than one."""
    terms = (Term(1.0, ((4.0, ((0, 1.0),)),)), Term(1.0, ((4.0, ((1, 1.0),)),)))
    assert widths([[0, 1, 2], [0, 1, 2]], [[0.0, 5.0, 0.5], [0.0, 2.0, 4.0]], [Limit(6.0, terms)]) == (2, 0)


def test_channels_on_several_axes_and_of_several_places():
    """A square weight that loses both rows and columns, and one that takes nine places for each channel."""
    square = Term(1.0, ((6.0, ((0, 1.0),)), (6.0, ((0, 1.0),))))
    flat = Term(2.0, ((5.0, ()), (54.0, ((0, 9.0),))))
    limit = Limit(1e9, (square, flat), rest=7.0)
    assert limit.cost([2]) == 4 * 4 + 2 * 5 * 36 + 7
    assert widths([[0, 1, 2, 3]], [[0, 1, 2, 3]], [Limit(383.0, (square, flat), rest=7.0)]) == (2,)
