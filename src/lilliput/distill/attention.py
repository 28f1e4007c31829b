"""Attention transfer: where a student looks is pulled to where its teacher looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.core.contracts import FeatureLoss
from lilliput.core.errors import DataError, MethodError

NAME = "distill/attention"
FORMS = ("activation", "gradient", "symmetric")
MAPS = ("sum", "max")


@dataclass(frozen=True)
class Attention(FeatureLoss):
    """The distance of attention maps; Zagoruyko and Komodakis 2017 (arXiv 1612.03928).

    `activation`: the map of A (channels, places) is F = sum_c |A_c|^p or max_c |A_c|^p, and Q = F / |F|. The loss is
    weight * mean (Q_student - Q_teacher)^2 over batch and places, summed over the pairs of layers: the authors' code.
    The paper's beta, of a sum over places, is weight times two over the number of places. Take the ends of the three
    groups of a residual network. A student's map of another size is resized to the teacher's.

    `gradient`: J is the gradient of an example's cross-entropy with respect to the layer's output, or to the input if
    no layers are named. The loss is weight / 2 * |J_student - J_teacher|, averaged over the batch; training it
    differentiates twice.

    `symmetric`: weight / 2 * |J(x) - flip J(flip x)| of the student alone, flipped along the last axis, J the gradient
    with respect to the input: where it looks is to turn with the picture. It takes a second pass through the student,
    which BatchNorm's running statistics see too.

    Attributes:
        layers: of the student, by name, such as `("layer1", "layer2", "layer3")`.
        teacher_layers: of the teacher, as many; the same names if none are given.
        form: `"activation"`, `"gradient"` or `"symmetric"`, the last without layers.
        weight: above or equal to 0.
        power: p, above 0; even p = 1 differs only in what it stresses.
        map: `"sum"` or `"max"` over the channels.

    >>> a = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    >>> float(Attention(("x",), weight=1.0).between(a, a.flip(2)))
    1.0
    """

    layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    form: Literal["activation", "gradient", "symmetric"] = "activation"
    weight: float = 1e3
    power: float = 2.0
    map: Literal["sum", "max"] = "sum"

    def __post_init__(self) -> None:
        check_range(NAME, "weight", self.weight, 0, 1e9)
        check_range(NAME, "power", self.power, 0.1, 16)
        if self.form not in FORMS or self.map not in MAPS:
            raise MethodError(
                f"{NAME}: form = {self.form!r} and map = {self.map!r} must be of {', '.join(FORMS)} and of sum, max"
            )
        if self.form == "symmetric" and (self.layers or self.teacher_layers):
            raise MethodError(f"{NAME}: form = 'symmetric' is about the input's gradient; name no layers")

    @property
    def slopes(self) -> bool:
        """Whether `between` takes gradients with respect to the layers' outputs, not these."""
        return self.form != "activation"

    @property
    def mirrored(self) -> bool:
        """Whether `between` compares the student with itself on flipped inputs, not with the teacher."""
        return self.form == "symmetric"

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the loss of one pair of layers, a scalar, `weight` included.

        Args:
            student: what a layer gives, (batch, channels, places ...), or its gradient.
            teacher: likewise; the channels may differ, for gradients nothing may. No gradient flows to it, but for
                `symmetric`, where it is the student's on flipped inputs, flipped back.

        Raises:
            DataError: if these aren't maps, or don't fit one another.
        """
        teacher = teacher if self.mirrored else teacher.detach()
        if self.slopes:
            if student.shape != teacher.shape:
                raise DataError(
                    f"{NAME}: gradients of shape {tuple(student.shape)} and, the teacher's, {tuple(teacher.shape)}; "
                    "choose layers of equal shape, or none for the input"
                )
            distance: Tensor = torch.linalg.vector_norm((student - teacher).flatten(1), dim=1)
            return self.weight / 2 * distance.mean()
        own, theirs = self.attended(student), self.attended(teacher)
        if len(own) != len(theirs) or own.ndim != theirs.ndim:
            raise DataError(f"{NAME}: maps of {tuple(student.shape)} and, the teacher's, {tuple(teacher.shape)}")
        if own.shape != theirs.shape:
            mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[own.ndim]
            own = functional.interpolate(own, theirs.shape[2:], mode=mode, align_corners=False)
        difference = functional.normalize(own.flatten(1)) - functional.normalize(theirs.flatten(1))
        return self.weight * difference.square().mean()

    def attended(self, activation: Tensor) -> Tensor:
        """Returns the map F of an activation, (batch, 1, places ...), not normalised."""
        if not 3 <= activation.ndim <= 5:
            raise DataError(
                f"{NAME}: a layer gives {tuple(activation.shape)}, which is no map (batch, channels, places ...)"
            )
        powers = activation.square() if self.power == 2 else activation.abs().pow(self.power)
        return powers.sum(1, keepdim=True) if self.map == "sum" else powers.amax(1, keepdim=True)
