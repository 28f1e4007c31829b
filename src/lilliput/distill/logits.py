"""Knowledge distillation from a teacher's softened outputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.core.errors import DataError


@dataclass(frozen=True)
class Logits:
    """(1 - a) CE(y, softmax(z)) + a T^2 KL(softmax(v / T) || softmax(z / T)), averaged over the batch.

    Hinton, Vinyals and Dean 2015 (arXiv 1503.02531). The factor T^2 keeps the size of the gradient when the
    temperature changes: the gradient of the soft term is T (softmax(z / T) - softmax(v / T)) per example, and
    (z - v) / N for zero-mean logits of N classes as T grows.

    Attributes:
        temperature: T > 0.
        weight: a, the part of the teacher's term, 0 to 1.

    >>> import torch
    >>> z = torch.tensor([[1.0, 2.0]])
    >>> float(Logits(weight=1.0).loss(z, z, None))
    0.0
    """

    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self) -> None:
        check_range("distill/logits", "temperature", self.temperature, 1e-6, 1e6)
        check_range("distill/logits", "weight", self.weight, 0, 1)

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Returns the loss, a scalar.

        Args:
            student: logits z, (batch, classes) or (batch, classes, ...).
            teacher: logits v of the same shape; no gradient flows to them.
            target: class indices, (batch, ...); may be None when `weight` is 1.

        Raises:
            DataError: if the shapes differ, the batch is empty, or the target is missing.
        """
        if student.shape != teacher.shape:
            raise DataError(
                f"student gives {tuple(student.shape)}, teacher {tuple(teacher.shape)}: the logits must match"
            )
        if student.ndim < 2 or not student.numel():
            raise DataError(
                f"logits of shape {tuple(student.shape)}: they must be (batch, classes, ...), none of them 0"
            )
        if target is None and self.weight < 1:
            raise DataError("distillation with weight < 1 needs targets besides the teacher's logits")
        soft = student.new_zeros(())
        if self.weight:
            t = self.temperature
            log_q = functional.log_softmax(student / t, 1)
            p = functional.log_softmax(teacher.detach() / t, 1)
            examples = student.numel() // student.shape[1]
            soft = functional.kl_div(log_q, p, reduction="sum", log_target=True) * (t * t / examples)
        if target is None or self.weight == 1:
            return soft
        return (1 - self.weight) * functional.cross_entropy(student, target) + self.weight * soft
