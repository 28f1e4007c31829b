"""Proximal steps against numeric minimisers, penalties against finite differences, and how many groups there are."""

import pytest
import torch

from lilliput.prune.group_lasso import GroupLasso
from lilliput.prune.lasso import Lasso
from lilliput.testing.spread import gaussian

UNITS = {"filter": 5, "channel": 3, "kernel": 15, "shape": 12, "depth": 1}


@pytest.mark.parametrize("groups", [*UNITS, "filter+channel"])
def test_the_gradient_of_a_penalty_is_that_of_finite_differences(groups):
    penalty, weight = GroupLasso(groups, 0.7, single=0.2), gaussian(5, 3, 2, 2).double().requires_grad_()
    (slope,) = torch.autograd.grad(penalty.penalty(weight), weight)
    step = 1e-6
    for place in range(0, 60, 7):
        moved = torch.zeros(60, dtype=torch.float64).index_fill_(0, torch.tensor(place), step).reshape(5, 3, 2, 2)
        rise = penalty.penalty(weight.detach() + moved) - penalty.penalty(weight.detach() - moved)
        assert float(slope.flatten()[place]) == pytest.approx(float(rise) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(("groups", "count"), UNITS.items())
def test_there_are_as_many_groups(groups, count):
    """Of ones: the sum of the norms is count * sqrt(size of a group); the paper has no factor for the size."""
    found = float(GroupLasso(groups, 1.0).penalty(torch.ones(5, 3, 2, 2)))
    assert found == pytest.approx(count * (60 / count) ** 0.5)


@pytest.mark.parametrize("strength", [0.1, 0.6, 5.0])
@pytest.mark.parametrize("single", [0.0, 0.3])
def test_the_proximal_step_is_the_minimiser(strength, single):
    """Of |w - v|^2 / 2 + strength |w| + single |w|_1 over one filter, found by many small random steps."""
    value = torch.tensor([[0.9, -0.4, 0.25, -1.2]], dtype=torch.float64)
    found = GroupLasso("filter", strength, single=single).shrink(value, 1.0)

    def cost(w):
        return (w - value).square().sum(-1) / 2 + strength * w.norm(dim=-1) + single * w.abs().sum(-1)

    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 0.1, 1e-2, 1e-3, 1e-4):
        others = found + scale * torch.randn(2000, 4, generator=generator, dtype=torch.float64)
        assert float(cost(found)[0]) <= float(cost(others).min()) + 1e-12
    assert bool((found == 0).all()) == (strength >= (value.abs() - single).clamp(min=0).norm())


@pytest.mark.parametrize("kind", ["single", "channel"])
def test_more_strength_has_more_zeros(kind):
    weight = gaussian(20, 30)
    sizes = weight.abs().flatten() if kind == "single" else weight.norm(dim=0)
    zeros = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        strength = 1.001 * float(sizes.quantile(part))
        penalty = Lasso(strength) if kind == "single" else GroupLasso("channel", strength)
        zeros.append(int((penalty.shrink(weight, 1.0) == 0).sum()))
    assert all(one < two for one, two in zip(zeros, zeros[1:]))  # noqa: RUF007
    assert zeros[-1] == 600


def test_what_is_zero_in_the_lowered_matrix_can_be_left_out():
    """Rows are filters, columns are shapes: without the zero ones the matrix product gives the same."""
    weight = GroupLasso("filter+shape", 1.0).shrink(
        gaussian(6, 4, 3, 3) * torch.linspace(0.1, 1, 6)[:, None, None, None], 0.05
    )
    matrix, columns = weight.flatten(1), torch.nn.functional.unfold(gaussian(1, 4, 7, 7), 3)[0]
    rows, shapes = matrix.any(1), matrix.any(0)
    assert 0 < int(rows.sum()) < 6 or 0 < int(shapes.sum()) < 36
    smaller = torch.zeros(6, columns.shape[1])
    smaller[rows] = matrix[rows][:, shapes] @ columns[shapes]
    torch.testing.assert_close(smaller, matrix @ columns)
