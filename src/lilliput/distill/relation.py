"""Relational distillation: how the examples of a batch lie to one another is taken over from the teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.core.contracts import FeatureLoss
from lilliput.core.errors import DataError

NAME = "distill/relation"


@dataclass(frozen=True)
class Relation(FeatureLoss):
    """weight * (distance * L_D + angle * L_A); Park, Kim, Lu and Cho 2019 (arXiv 1904.05068).

    L_D is the mean Huber loss, over pairs of different examples, of their distances, each model's in parts of its own
    mean. L_A is that over triples of the cosines of the angles at the middle one. Neither changes when one model's
    features are turned, moved or scaled, and the two models' features may be of different lengths.

    Attributes:
        layers: of the student, by name; `""` is the whole model, that is its logits.
        teacher_layers: of the teacher, as many; the same names if none are given.
        weight: above or equal to 0.
        distance: part of the distances.
        angle: part of the angles, twice that of the distances in the paper.

    >>> x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    >>> float(Relation().between(5 * x + 1, x)) < 1e-12
    True
    """

    layers: tuple[str, ...] = ("",)
    teacher_layers: tuple[str, ...] = ()
    weight: float = 1.0
    distance: float = 1.0
    angle: float = 2.0

    def __post_init__(self) -> None:
        for name in ("weight", "distance", "angle"):
            check_range(NAME, name, getattr(self, name), 0, 1e9)

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the loss of one pair of layers, a scalar; 0 for a batch too small to have pairs or triples.

        Args:
            student: features, (batch, ...); all axes but the first count as one.
            teacher: likewise, as many examples; no gradient flows to it.

        Raises:
            DataError: if the numbers of examples differ.
        """
        if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
            raise DataError(f"{NAME}: features of {tuple(student.shape)} and, the teacher's, {tuple(teacher.shape)}")
        own, theirs = _differences(student), _differences(teacher.detach())
        apart = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
        total = 0 * student.sum()  # so that a batch without pairs can be differentiated, too
        if self.distance and len(student) > 1:
            total = total + self.distance * functional.huber_loss(_lengths(own, apart), _lengths(theirs, apart))
        if self.angle and len(student) > 2:
            triples = apart[:, :, None] & apart[:, None, :] & apart[None, :, :]
            total = total + self.angle * functional.huber_loss(_cosines(own)[triples], _cosines(theirs)[triples])
        return self.weight * total


def _differences(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return flat[None, :, :] - flat[:, None, :]


def _lengths(differences: Tensor, apart: Tensor) -> Tensor:
    """Distances of different examples in parts of their mean; all zero if all examples are the same."""
    lengths = torch.linalg.vector_norm(differences, dim=2)[apart]
    parts: Tensor = lengths / lengths.mean().clamp(min=torch.finfo(lengths.dtype).tiny)
    return parts


def _cosines(differences: Tensor) -> Tensor:
    """[j, i, k]: the cosine of the angle at example j between i and k; 0 where two coincide."""
    units = functional.normalize(differences, dim=2)
    return units @ units.transpose(1, 2)
