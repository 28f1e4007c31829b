"""FitNets' hints: the loss, the regressor, and what can't be compared."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import DataError, MethodError
from lilliput.distill.hints import Hints


def test_the_loss_by_hand():
    a, b = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    assert float(Hints(weight=3.0).between(a, b)) == pytest.approx(1.5 * float(((a - b) ** 2).sum()) / 48, rel=1e-5)


def test_regressors_take_the_student_s_shape_to_the_teacher_s():
    for own, theirs in (
        ((2, 3, 7, 6), (2, 5, 5, 6)),
        ((2, 3, 4, 4, 4), (2, 5, 4, 3, 4)),
        ((2, 3), (2, 8)),
        ((2, 9, 3), (2, 9, 8)),
    ):
        layer = Hints().regressor(own, theirs)
        assert layer(torch.rand(own)).shape == theirs
    # The paper's kernel: the student's size less the teacher's, plus one.
    assert Hints().regressor((1, 3, 7, 6), (1, 5, 5, 6)).kernel_size == (3, 1)
    assert isinstance(Hints().regressor((2, 3), (2, 8)), nn.Linear)


@pytest.mark.parametrize(
    ("own", "theirs"),
    [((2, 3, 4, 4), (2, 3, 8, 8)), ((2, 3, 28, 28), (2, 3, 4, 4)), ((2, 3), (2, 3, 4, 4)), ((2,), (2,))],
)
def test_layers_that_are_no_hint_for_one_another(own, theirs):
    with pytest.raises(DataError, match="distill/hints"):
        Hints().regressor(own, theirs)


def test_bad_input():
    with pytest.raises(DataError, match="must be equal"):
        Hints().between(torch.rand(2, 3), torch.rand(2, 4))
    with pytest.raises(MethodError, match="weight"):
        Hints(weight=-1.0)
