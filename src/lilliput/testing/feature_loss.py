"""Conformance of losses on layers: scalars that pull the student's layers to the teacher's and leave those alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lilliput.testing.spread import generator


def layers(batch: int = 6) -> tuple[Tensor, Tensor]:
    """Returns what a student's and a teacher's layer give, (batch, 4, 5, 5), which both want gradients."""
    student = torch.randn(batch, 4, 5, 5, generator=generator(1)).requires_grad_()
    teacher = torch.randn(batch, 4, 5, 5, generator=generator(2)).requires_grad_()
    return student, teacher


def is_a_finite_scalar(cls: Any) -> None:
    """The loss is a scalar, finite and not negative, also of layers that are all zero."""
    student, teacher = layers()
    for own, theirs in ((student, teacher), (0 * student, teacher), (0 * student, 0 * teacher)):
        loss = cls().between(own, theirs)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.shape == (), f"a loss of shape {tuple(loss.shape)}"
        assert 0 <= float(loss.detach()) < float("inf"), f"the loss is {float(loss.detach())}"
        assert bool(torch.isfinite(gradient).all()), "the student's gradient isn't finite"


def equal_layers_cost_nothing(cls: Any) -> None:
    """The loss of a layer and itself is zero."""
    student, _ = layers()
    loss = float(cls().between(student, student.detach().clone()).detach())
    assert loss < 1e-6, f"a layer beside itself costs {loss}"


def teaches_the_student_alone(cls: Any) -> None:
    """The student gets a gradient other than zero, the teacher none."""
    student, teacher = layers()
    cls().between(student, teacher).backward()
    assert student.grad is not None, "no gradient reaches the student"
    assert bool(student.grad.any()), "the student's gradient is zero"
    assert teacher.grad is None, "a gradient reaches the teacher"


def order_of_the_batch_is_free(cls: Any) -> None:
    """Examples in another order give the same loss."""
    student, teacher = (value.detach() for value in layers())
    loss, turned = cls().between(student, teacher), cls().between(student.flip(0), teacher.flip(0))
    assert torch.allclose(loss, turned, rtol=1e-5), f"{float(loss)}, in another order {float(turned)}"


def a_step_helps(cls: Any) -> None:
    """A small step against the gradient makes the loss smaller."""
    student, teacher = layers()
    loss = cls().between(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    after = cls().between(student - 1e-2 / float(gradient.norm()) * gradient, teacher).detach()
    assert float(after) < float(loss.detach()), f"{float(loss.detach())} before a step, {float(after)} after it"


LAWS = (
    is_a_finite_scalar,
    equal_layers_cost_nothing,
    teaches_the_student_alone,
    order_of_the_batch_is_free,
    a_step_helps,
)


def check(cls: Any) -> None:
    """Runs all laws on the class of a loss on layers.

    Raises:
        AssertionError: says what is wrong.

    >>> from lilliput.distill.hints import Hints
    >>> check(Hints)
    """
    for law in LAWS:
        law(cls)
