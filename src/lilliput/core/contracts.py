"""The contracts of losses on layers and of networks; those of other kinds are in `method.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class FeatureLoss(Protocol):
    """A distillation loss on layers of student and teacher, which `train.lesson.Lesson` collects.

    It may have a method `regressor(student_shape, teacher_shape) -> nn.Module` for a layer that is trained beside the
    student, through which the student's output goes first.

    Attributes:
        layers: of the student, by their names in `named_modules`.
        teacher_layers: of the teacher, as many; none for the same names.
    """

    layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]

    @property
    def slopes(self) -> bool:
        """Whether `between` takes gradients of the cross-entropy with respect to the outputs instead of these."""
        return False

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the loss of one pair of layers, a scalar to be minimised; no gradient flows to the teacher."""
        ...


class Network(Protocol):
    """A network: a file in `nets/` with a frozen dataclass of its settings, the defaults those of the paper.

    Attributes:
        num_classes: outputs.
        channels: of the pictures.
        size: height and width of the pictures, in pixels.
    """

    num_classes: int
    channels: int
    size: int

    def build(self) -> nn.Module:
        """Returns the module, not trained; its first weights come from torch's global generator."""
        ...

    @classmethod
    def choices(cls) -> tuple[Network, ...]:
        """The settings of the paper, which `lilliput list` counts."""
        return ()

    @classmethod
    def tiny(cls) -> Network:
        """A setting small enough for tests: ten classes of 28 x 28 pictures with one channel."""
        ...
