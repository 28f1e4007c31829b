"""Conformance of distillation losses: scalars that pull the student to the teacher and leave the teacher alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lilliput.testing.spread import generator


def outputs(batch: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a student's and a teacher's logits, which both want gradients, and the targets."""
    student = torch.randn(batch, classes, generator=generator(1)).requires_grad_()
    teacher = torch.randn(batch, classes, generator=generator(2)).requires_grad_()
    return student, teacher, torch.randint(classes, (batch,), generator=generator(3))


def is_a_finite_scalar(cls: Any) -> None:
    """The loss is a scalar, finite and not negative."""
    student, teacher, target = outputs()
    loss = cls().loss(student, teacher, target).detach()
    assert loss.shape == (), f"a loss of shape {tuple(loss.shape)}"
    assert bool(torch.isfinite(loss)), f"the loss is {float(loss.detach())}"
    assert float(loss.detach()) >= 0, f"the loss is {float(loss.detach())}"


def teaches_the_student_alone(cls: Any) -> None:
    """The student gets a finite gradient other than zero, the teacher none."""
    student, teacher, target = outputs()
    cls().loss(student, teacher, target).backward()
    assert student.grad is not None, "no gradient reaches the student"
    assert bool(torch.isfinite(student.grad).all()), "the student's gradient isn't finite"
    assert bool(student.grad.any()), "the student's gradient is zero"
    assert teacher.grad is None, "a gradient reaches the teacher"


def order_of_the_batch_is_free(cls: Any) -> None:
    """Examples in another order, or the batch twice over, give the same loss."""
    student, teacher, target = outputs()
    loss = cls().loss(student, teacher, target)
    turned = cls().loss(student.flip(0), teacher.flip(0), target.flip(0))
    twice = cls().loss(torch.cat([student] * 2), torch.cat([teacher] * 2), torch.cat([target] * 2))
    assert torch.allclose(loss, turned, rtol=1e-5), f"{float(loss.detach())}, in another order {float(turned.detach())}"
    assert torch.allclose(loss, twice, rtol=1e-5), (
        f"{float(loss.detach())}, the batch twice over {float(twice.detach())}"
    )


def a_step_helps(cls: Any) -> None:
    """A small step against the gradient makes the loss smaller."""
    student, teacher, target = outputs()
    loss = cls().loss(student, teacher, target)
    (gradient,) = torch.autograd.grad(loss, student)
    after = cls().loss(student - 1e-2 * gradient, teacher, target)
    assert float(after.detach()) < float(loss.detach()), (
        f"{float(loss.detach())} before a step, {float(after.detach())} after it"
    )


LAWS = (is_a_finite_scalar, teaches_the_student_alone, order_of_the_batch_is_free, a_step_helps)


def check(cls: Any) -> None:
    """Runs all laws on the class of a loss on logits.

    Raises:
        AssertionError: says what is wrong.

    >>> from lilliput.distill.logits import Logits
    >>> check(Logits)
    """
    for law in LAWS:
        law(cls)
