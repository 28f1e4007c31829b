"""FitNets' hints: a layer of the student, through a trained regressor, is pulled to a layer of the teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range
from lilliput.core.contracts import FeatureLoss
from lilliput.core.errors import DataError

NAME = "distill/hints"
LARGEST = 9
"""Largest kernel of a regressor; maps further apart in size are no hint for one another."""


@dataclass(frozen=True)
class Hints(FeatureLoss):
    """weight / 2 * mean (u - r(v))^2 over batch and elements, u the teacher's layer, v the student's, r a regressor.

    Romero et al. 2015 (arXiv 1412.6550), who sum over elements and average over the batch. r is a convolution without
    padding that takes the student's channels and size to the teacher's, or a linear layer; it is trained beside the
    student and not part of it. As in the paper, train with hints alone first (what lies behind the student's layer
    stays), then with `Logits`; or with both at once.

    Attributes:
        layers: of the student, by name.
        teacher_layers: of the teacher, as many; the same names if none are given.
        weight: above or equal to 0.

    >>> float(Hints(("x",)).between(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])))
    1.0
    """

    layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_range(NAME, "weight", self.weight, 0, 1e9)

    def regressor(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
        """Returns the layer that takes the student's shape to the teacher's, not trained.

        Args:
            student: shape of what the layer gives, with the batch: (batch, channels, sizes ...) for convolutions, else
                (batch, ..., features).
            teacher: likewise.

        Raises:
            DataError: if there is none.
        """
        sizes = [own - theirs + 1 for own, theirs in zip(student[2:], teacher[2:])]
        if len(student) == len(teacher) and len(student) in {4, 5}:
            if any(not 1 <= kernel <= LARGEST for kernel in sizes):
                raise DataError(
                    f"{NAME}: the student's map of {student[2:]} can't be taken to the teacher's of {teacher[2:]}: "
                    f"it must be as large, or up to {LARGEST - 1} larger; choose other layers"
                )
            kind = nn.Conv2d if len(student) == 4 else nn.Conv3d
            return kind(student[1], teacher[1], tuple(sizes))  # type: ignore[arg-type]
        if len(student) != len(teacher) or len(student) < 2 or student[1:-1] != teacher[1:-1]:
            raise DataError(f"{NAME}: layers of {student} and, the teacher's, {teacher} don't fit one another")
        return nn.Linear(student[-1], teacher[-1])

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the loss of one pair of layers, a scalar, `weight` included.

        Args:
            student: what the regressor gives.
            teacher: of the same shape; no gradient flows to it.

        Raises:
            DataError: if the shapes differ.
        """
        if student.shape != teacher.shape:
            raise DataError(f"{NAME}: {tuple(student.shape)} and, the teacher's, {tuple(teacher.shape)} must be equal")
        return self.weight / 2 * torch.mean((student - teacher.detach()).square())
