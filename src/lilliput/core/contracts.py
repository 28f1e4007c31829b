"""The contracts of losses on layers, of networks and of graph passes; those of other kinds are in `method.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

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


class GraphPass(Protocol):
    """What is done to a whole network before or after its weights are packed; a frozen dataclass in `quantize/passes/`.

    It changes numbers only, in place: parameters keep their names and shapes, so that a file fills the user's class.

    Attributes:
        when: `"before"`: the plain network is changed, and calibrated as it is then; `"after"`: the quantized one.
        needs_data: whether it can't do without.
    """

    when: ClassVar[Literal["before", "after"]]
    needs_data: ClassVar[bool]

    def rewrite(self, model: nn.Module, graph: Any, data: Any = None, reference: nn.Module | None = None) -> list[str]:
        """Changes parameters in place; returns lines on what was done.

        Args:
            model: in eval mode; plain, or with packed weights and quantizers if `when` is `"after"`.
            graph: its `graph.ir.Graph`.
            data: batches, which may be gone through more than once, or None.
            reference: the network before it was packed, if `when` is `"after"`.
        """
        ...
