"""Attention maps and their distance; attention by gradients and its second derivative."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import DataError, MethodError
from lilliput.distill.attention import Attention
from lilliput.train.lesson import Lesson

AT = Attention(("x",))


def activation(seed, channels=6, side=5, batch=3):
    shape = (batch, channels, side, side)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def q(method, a):
    return functional.normalize(method.attended(a).flatten(1))


@pytest.mark.parametrize("form", [{}, {"power": 1.0}, {"power": 4.0}, {"map": "max"}])
def test_maps_have_length_one_and_ignore_scale_and_order_and_number_of_channels(form):
    method, a = Attention(("x",), **form), activation(0)
    found = q(method, a)
    assert torch.allclose(found.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(q(method, 7.5 * a), found)
    assert torch.allclose(q(method, a.flip(1)), found)
    assert torch.allclose(q(method, torch.cat([a, a], 1)), found)
    assert float(method.between(3 * torch.cat([a, a], 1), a)) < 1e-20


def test_the_map_by_hand():
    a = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]])
    assert AT.attended(a).flatten().tolist() == [10.0, 4.0]
    assert Attention(("x",), map="max").attended(a).flatten().tolist() == [9.0, 4.0]
    assert Attention(("x",), power=1.0).attended(a).flatten().tolist() == [4.0, 2.0]


def test_the_loss_by_hand():
    """weight * the mean over batch and places of (Q_S - Q_T)^2."""
    a, b = activation(0, 4), activation(1, 7)
    expected = 0.0
    for i in range(3):
        maps = [x[i].square().sum(0).flatten() for x in (a, b)]
        own, theirs = (m / m.square().sum().sqrt() for m in maps)
        expected += float(((own - theirs) ** 2).sum())
    assert float(AT.between(a, b)) == pytest.approx(1e3 * expected / (3 * 25))


def test_sums_over_places_lie_between_zero_and_two():
    """|Q_S - Q_T|^2 <= 4 for unit vectors, and <= 2 for those of maps, which aren't negative."""
    for seed in range(20):
        a, b = activation(seed, 1, 3, 1), activation(seed + 100, 2, 3, 1)
        assert 0 <= float(Attention(("x",), weight=9.0).between(a, b)) <= 2
    corners = torch.zeros(2, 1, 1, 2, dtype=torch.float64)
    corners[0, 0, 0, 0] = corners[1, 0, 0, 1] = 1
    assert float(Attention(("x",), weight=2.0).between(corners[:1], corners[1:])) == pytest.approx(2)


def test_gradient():
    teacher = activation(1, 2, 3, 2)
    student = activation(0, 3, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Attention(("x",), weight=1.0).between(x, teacher), student)


def test_another_size_is_resized_to_the_teacher_s():
    a = activation(0, 2, 8)
    small = functional.interpolate(AT.attended(a), (4, 4), mode="bilinear", align_corners=False).sqrt()
    assert float(AT.between(a, small)) < 1e-20
    assert float(AT.between(a, activation(1, 2, 4))) > 1


def test_maps_in_one_and_three_dimensions():
    for shape in ((2, 3, 8), (2, 3, 4, 4, 4)):
        a = torch.rand(shape)
        assert float(AT.between(a, a)) == 0
        assert float(AT.between(a[..., ::2], a)) > 0


def network(channels=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3), nn.Tanh(), nn.Conv2d(channels, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)
    ).double()


def test_attention_by_gradients_to_the_last_digit():
    """weight / 2 * mean |J_S - J_T|, J by example, and its gradient, by finite differences."""
    student, teacher = network(3), network(4, 1)
    x, y = torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    lesson = Lesson(student, teacher, Attention(form="gradient", weight=2.0))

    def slopes(model):
        rows = []
        for i in range(4):
            one = x[i : i + 1].clone().requires_grad_()
            rows.append(torch.autograd.grad(functional.cross_entropy(model(one), y[i : i + 1]), one)[0].flatten())
        return torch.stack(rows)

    expected = (slopes(student) - slopes(teacher)).norm(dim=1).mean()
    loss = lesson(x, y)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    weight = student[2].weight
    step = torch.zeros_like(weight)
    step[1, 2, 0, 1] = 1e-6
    weight.data += step
    above = lesson(x, y).item()
    weight.data -= 2 * step
    below = lesson(x, y).item()
    assert float(weight.grad[1, 2, 0, 1]) == pytest.approx((above - below) / 2e-6, rel=1e-5)


def test_attention_by_gradients_at_a_layer_and_at_equal_models():
    student, x, y = network(), torch.randn(2, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1])
    loss = Lesson(student, network(4, 1), Attention(("2",), form="gradient"))(x, y)
    loss.backward()
    assert student[0].weight.grad.abs().sum() > 0
    same = Lesson(student, network(), Attention(form="gradient"))(x, y)
    same.backward()
    assert same.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


class Even(nn.Module):
    """Sees a picture and its mirror image alike."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(x) + self.inner(x.flip(-1))


def test_the_symmetric_form_to_the_last_digit():
    """weight / 2 * mean |J(x) - flip J(flip x)| of the student alone, and its gradient, by finite differences."""
    student, teacher = network(3), network(4, 1)
    x, y = torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    lesson = Lesson(student, teacher, Attention(form="symmetric", weight=2.0))

    def slopes(pictures):
        pictures = pictures.clone().requires_grad_()
        loss = functional.cross_entropy(student(pictures), y, reduction="sum")
        return torch.autograd.grad(loss, pictures)[0]

    expected = (slopes(x) - slopes(x.flip(-1)).flip(-1)).flatten(1).norm(dim=1).mean()
    loss = lesson(x, y)
    assert loss.item() == pytest.approx(expected.item())
    assert torch.equal(lesson.output, student(x))
    loss.backward()
    weight = student[2].weight
    step = torch.zeros_like(weight)
    step[1, 2, 0, 1] = 1e-6
    weight.data += step
    above = lesson(x, y).item()
    weight.data -= 2 * step
    below = lesson(x, y).item()
    assert float(weight.grad[1, 2, 0, 1]) == pytest.approx((above - below) / 2e-6, rel=1e-5)


def test_the_symmetric_form_costs_nothing_where_pictures_and_mirror_images_are_alike():
    x, y = torch.randn(2, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1])
    student = Even()
    both = Lesson(student, network(4, 1), [Attention(form="symmetric"), Attention(form="gradient", weight=0.0)])
    both(x, y).backward()
    assert both(x, y).item() < 1e-9
    assert Lesson(student.inner, lambda x: torch.zeros(2, 3), Attention(form="symmetric"))(x, y).item() > 1e-3


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="which is no map"):
        AT.between(torch.rand(2, 3), torch.rand(2, 3))
    with pytest.raises(DataError, match="the teacher's"):
        AT.between(torch.rand(2, 3, 4), torch.rand(3, 3, 4))
    with pytest.raises(DataError, match="of equal shape"):
        Attention(form="gradient").between(torch.rand(2, 3), torch.rand(2, 4))
    with pytest.raises(MethodError, match="name no layers"):
        Attention(("x",), form="symmetric")
    for wrong in ({"form": "map"}, {"map": "mean"}, {"power": 0.0}, {"weight": -1.0}):
        with pytest.raises(MethodError, match="distill/attention"):
            Attention(("x",), **wrong)
