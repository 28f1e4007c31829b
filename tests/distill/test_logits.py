"""Hinton's distillation loss: its zero, its gradient, its limits."""

import pytest
import torch
from torch.nn import functional

from lilliput.core.errors import DataError, MethodError
from lilliput.distill.logits import Logits


def logits(seed, batch=7, classes=5):
    return torch.randn(batch, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


def gradient(method, student, teacher, target=None):
    student = student.clone().requires_grad_()
    method.loss(student, teacher, target).backward()
    return student.grad


TARGET = torch.tensor([0, 1, 2, 3, 4, 0, 1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 100.0])
def test_equal_logits_give_zero_loss_and_gradient(temperature):
    z = logits(0)
    method = Logits(temperature=temperature, weight=1.0)
    assert float(method.loss(z, z, None)) == pytest.approx(0, abs=1e-10)
    assert float(gradient(method, z, z).abs().max()) < 1e-10
    # A shift of all logits of an example changes no softmax.
    assert float(method.loss(z, z + 3, None)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_gradient_of_the_soft_term(temperature):
    """T (softmax(z / T) - softmax(v / T)) for each example, over the batch."""
    z, v, t = logits(0), logits(1), temperature
    expected = t * (functional.softmax(z / t, 1) - functional.softmax(v / t, 1)) / len(z)
    assert torch.allclose(gradient(Logits(temperature=t, weight=1.0), z, v), expected, atol=1e-12)


def test_the_square_of_the_temperature_keeps_the_size_of_the_gradient():
    z, v = logits(0), logits(1)
    sizes = [float(gradient(Logits(temperature=t, weight=1.0), z, v).norm()) for t in (50.0, 100.0)]
    assert sizes[0] / sizes[1] == pytest.approx(1, abs=0.05)


def test_high_temperature_matches_logits():
    """(z - v) / N for each example of zero-mean logits, closer as T grows."""
    z, v = (x - x.mean(1, keepdim=True) for x in (logits(0), logits(1)))
    matching = (z - v) / 5 / len(z)
    deviations = [
        float((gradient(Logits(temperature=t, weight=1.0), z, v) - matching).abs().max()) for t in (1.0, 20.0, 1000.0)
    ]
    assert deviations == sorted(deviations, reverse=True)
    assert deviations[-1] < 1e-3
    assert deviations[-1] < 0.05 * deviations[1]


def test_weight_zero_is_cross_entropy():
    z, v = logits(0), logits(1)
    assert torch.equal(Logits(weight=0.0).loss(z, v, TARGET), functional.cross_entropy(z, TARGET))


@pytest.mark.parametrize("weight", [0.3, 0.9])
def test_both_terms_by_hand(weight):
    z, v, t = logits(0), logits(1), 4.0
    p, q = functional.softmax(v / t, 1), functional.softmax(z / t, 1)
    soft = (p * (p / q).log()).sum(1).mean() * t * t
    hard = -functional.softmax(z, 1)[range(7), TARGET].log().mean()
    expected = (1 - weight) * hard + weight * soft
    assert float(Logits(temperature=t, weight=weight).loss(z, v, TARGET)) == pytest.approx(float(expected))


def test_the_size_of_the_batch_does_not_matter():
    z, v = logits(0), logits(1)
    once = Logits().loss(z, v, TARGET)
    assert torch.allclose(Logits().loss(z.repeat(3, 1), v.repeat(3, 1), TARGET.repeat(3)), once)
    each = [Logits().loss(z[i : i + 1], v[i : i + 1], TARGET[i : i + 1]) for i in range(7)]
    assert torch.allclose(torch.stack(each).mean(), once)


def test_pixels_count_as_examples():
    """(batch, classes, height) is the mean over batch and height."""
    z, v = logits(0, 12), logits(1, 12)
    target = torch.arange(12) % 5
    flat = Logits().loss(z, v, target)
    spatial = [x.reshape(3, 4, 5).transpose(1, 2) for x in (z, v)]
    assert torch.allclose(Logits().loss(*spatial, target.reshape(3, 4)), flat)


def test_no_gradient_reaches_the_teacher():
    teacher = logits(1).requires_grad_()
    Logits().loss(logits(0).requires_grad_(), teacher, TARGET).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher", "target", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), None, "must match"),
        (torch.zeros(2, 3), torch.zeros(2, 3), None, "needs targets"),
        (torch.zeros(3), torch.zeros(3), None, "batch, classes"),
        (torch.zeros(0, 3), torch.zeros(0, 3), None, "batch, classes"),
    ],
)
def test_what_does_not_fit_is_refused(student, teacher, target, message):
    with pytest.raises(DataError, match=message):
        Logits().loss(student, teacher, target)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"temperature": float("nan")}, {"weight": 1.1}])
def test_settings_out_of_range(wrong):
    with pytest.raises(MethodError, match="distill/logits"):
        Logits(**wrong)
