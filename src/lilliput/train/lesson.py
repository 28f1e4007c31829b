"""`Lesson`: what a student learns from a teacher on one batch, as one loss; for `fit` or for a loop of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from lilliput.core.data import call, logits_of
from lilliput.core.errors import DataError, LilliputError, ModelError
from lilliput.core.method import path_of
from lilliput.distill.logits import Logits
from lilliput.observe.features import check_layers, features

INPUT = None
"""Stands for the input where a loss names no layer."""

Pairs = list[tuple[str | None, str | None]]


class Lesson:
    """Losses of distillation for a student and its teacher, summed.

    Called with a batch it runs the student as it is, the teacher in eval mode and without gradients, and returns the
    loss. Both models are otherwise left alone.

    Attributes:
        output: what the student gave in the last call.
        regressors: layers that some losses need beside the student (`distill/hints`); train `parameters()` with it.

    >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> lesson = Lesson(student, teacher, Logits(weight=0.5))
    >>> lesson(torch.ones(2, 4), torch.tensor([0, 1])).backward()
    >>> student.weight.grad is None, teacher.weight.grad is None
    (False, True)
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Callable[..., Any],
        losses: Any = None,
        *,
        example: Any = None,
        seed: int = 0,
    ) -> None:
        """Makes a lesson.

        Args:
            student: any module, with a recipe attached or without, or one in `DistributedDataParallel`.
            teacher: a module; or, for losses that ask none of its layers, anything that can be called with the
                inputs, such as a `CachedLogits`.
            losses: one of `distill/` or several, whose sum is taken; `Logits()` if None.
            example: one input, for losses with regressors.
            seed: of the regressors.

        Raises:
            ModelError: if a layer that a loss names isn't there, or the teacher is no module and its layers are asked.
            DataError: if layers don't fit one another, or an example is missing.
        """
        self.student, self.teacher = student, teacher
        self.inner: nn.Module = student.module if isinstance(student, DistributedDataParallel) else student
        self.losses: tuple[Any, ...] = listed(Logits() if losses is None else losses)
        self.pairs: list[Pairs] = [_pairs(loss) for loss in self.losses]
        self.names = _named(own for pairs in self.pairs for own, _ in pairs)
        self.teacher_names = _named(theirs for pairs in self.pairs for _, theirs in pairs)
        self.slopes = any(getattr(loss, "slopes", False) for loss in self.losses)
        check_layers(self.inner, self.names, "student")
        asked = any(pairs and not _is_mirrored(loss) for loss, pairs in zip(self.losses, self.pairs))
        if asked and not isinstance(teacher, nn.Module):
            raise ModelError("losses on layers need a teacher that is a module, not only a function or cached logits")
        if isinstance(teacher, nn.Module):
            check_layers(teacher, self.teacher_names, "teacher")
        self.output: Any = None
        self.regressors = nn.ModuleDict()
        if needs_example(self.losses):
            self._build(example, seed)
        self._regress: nn.Module = _Regress(self.regressors)
        if isinstance(student, DistributedDataParallel) and self.parameters():
            self._regress = DistributedDataParallel(self._regress)

    def parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the regressors, for the optimizer."""
        return list(self.regressors.parameters())

    def __call__(self, inputs: Any, target: Tensor | None = None) -> Tensor:
        """Returns the loss of a batch, a scalar.

        Args:
            inputs: a tensor, tuple or dict, as the models take it.
            target: class numbers, where a loss needs them.

        Raises:
            DataError: if the teacher can't take the inputs, or its outputs don't fit the student's.
        """
        if self.slopes and any(own is INPUT for pairs in self.pairs for own, _ in pairs):
            if not isinstance(inputs, Tensor) or not inputs.dtype.is_floating_point:
                raise DataError("the gradient with respect to the input needs one floating-point tensor as input")
            inputs = inputs.detach().requires_grad_(True)
        with features(self.inner, self.names) as own:
            self.output = call(self.student, inputs)
        taught, theirs, their_slopes = self._taught(inputs, target)
        slopes = self._slopes(self.output, inputs, own, self._sloped(0), target) if self.slopes else {}
        total: Any = 0.0
        mirrored = self._mirrored(inputs, target) if any(map(_is_mirrored, self.losses)) else None
        waiting: dict[str, Tensor] = {}
        for number, loss in enumerate(self.losses):
            if not self.pairs[number]:
                total = total + loss.loss(logits_of(self.output), taught, target)
                continue
            for at, (mine, other) in enumerate(self.pairs[number]):
                if _is_mirrored(loss):
                    total = total + loss.between(slopes[mine], mirrored)
                elif getattr(loss, "slopes", False):
                    total = total + loss.between(slopes[mine], their_slopes[other])
                elif hasattr(loss, "regressor"):
                    waiting[f"{number}_{at}"] = own[str(mine)]
                else:
                    total = total + loss.between(own[str(mine)], theirs[str(other)])
        for key, value in (self._regress(waiting) if waiting else {}).items():
            number, at = map(int, key.split("_"))
            total = total + self.losses[number].between(value, theirs[str(self.pairs[number][at][1])])
        result: Tensor = total
        return result

    def _taught(self, inputs: Any, target: Any) -> tuple[Any, dict[str, Tensor], dict[Any, Tensor]]:
        """The teacher's logits, its layers' outputs, and gradients with respect to these."""
        model = self.teacher if isinstance(self.teacher, nn.Module) else nn.Module()
        if self.slopes:
            inputs = inputs.detach().requires_grad_(True) if isinstance(inputs, Tensor) else inputs
        with torch.set_grad_enabled(self.slopes), _evaluating(model), features(model, self.teacher_names) as theirs:
            try:
                output = call(self.teacher, inputs)  # type: ignore[arg-type]
            except LilliputError:
                raise
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
                line = (str(error).splitlines() or [type(error).__name__])[0]
                raise DataError(f"the teacher can't take the student's inputs ({shape}): {line[:200]}") from error
            slopes = self._slopes(output, inputs, theirs, self._sloped(1), target) if self.slopes else {}
        needed = any(not pairs for pairs in self.pairs)
        return logits_of(output).detach() if needed else None, theirs, {k: v.detach() for k, v in slopes.items()}

    def _sloped(self, side: int) -> list[str | None]:
        """The layers with respect to whose outputs gradients are taken; None is the input."""
        found = [
            pairs
            for loss, pairs in zip(self.losses, self.pairs)
            if getattr(loss, "slopes", False) and not (side and _is_mirrored(loss))
        ]
        return list(dict.fromkeys(pair[side] for pairs in found for pair in pairs))

    def _slopes(
        self, output: Any, inputs: Any, found: dict[str, Tensor], names: list[str | None], target: Any
    ) -> dict[Any, Tensor]:
        """Gradients of each example's cross-entropy; they can be differentiated again."""
        if target is None:
            raise DataError("attention by gradients needs targets: give (inputs, targets)")
        cost = functional.cross_entropy(logits_of(output), target, reduction="sum")
        values = [inputs if name is INPUT else found[name] for name in names]
        if not values:
            return {}
        return dict(zip(names, torch.autograd.grad(cost, values, create_graph=True)))

    def _mirrored(self, inputs: Tensor, target: Any) -> Tensor:
        """The gradient with respect to inputs that are flipped along their last axis, flipped back."""
        turned = inputs.detach().flip(-1).requires_grad_(True)
        return self._slopes(call(self.student, turned), turned, {}, [INPUT], target)[INPUT].flip(-1)

    def _build(self, example: Any, seed: int) -> None:
        """Makes the regressors from the shapes that the layers give on an example."""
        if example is None:
            raise DataError("a loss with regressors needs the shapes of the layers: give example=, one input")
        with torch.no_grad(), _evaluating(self.inner), features(self.inner, self.names) as own:
            call(self.inner, example)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, theirs, _ = self._shapes_of_teacher(example)
            for number, (loss, pairs) in enumerate(zip(self.losses, self.pairs)):
                for at, (mine, other) in enumerate(pairs if hasattr(loss, "regressor") else []):
                    shapes = tuple(own[str(mine)].shape), tuple(theirs[str(other)].shape)
                    self.regressors[f"{number}_{at}"] = loss.regressor(*shapes)
        device = next((p.device for p in self.inner.parameters()), torch.device("cpu"))
        self.regressors.to(device)

    def _shapes_of_teacher(self, example: Any) -> tuple[Any, dict[str, Tensor], dict[Any, Tensor]]:
        kept, self.slopes = self.slopes, False
        try:
            return self._taught(example, None)
        finally:
            self.slopes = kept


class _Regress(nn.Module):
    """The regressors as one module, which `DistributedDataParallel` can take."""

    def __init__(self, regressors: nn.ModuleDict) -> None:
        super().__init__()
        self.regressors = regressors

    def forward(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns what each regressor makes of its value."""
        return {key: self.regressors[key](value) for key, value in values.items()}


def listed(losses: Any) -> tuple[Any, ...]:
    """Returns one loss or several as a tuple.

    Raises:
        DataError: if there are none, or one is no loss of distillation.
    """
    found = tuple(losses) if isinstance(losses, list | tuple) else (losses,)
    if not found or not all(is_taught(loss) for loss in found):
        raise DataError("give losses of distillation, such as distill.logits.Logits(), one or a list")
    return found


def is_taught(losses: Any) -> bool:
    """Whether this is a loss that needs a teacher, or several."""
    if isinstance(losses, list | tuple):
        return bool(losses) and all(map(is_taught, losses))
    return hasattr(losses, "loss") or hasattr(losses, "between")


def needs_example(losses: Any) -> bool:
    """Whether a loss, or one of several, has regressors, which are made from an example."""
    return any(hasattr(loss, "regressor") for loss in (losses if isinstance(losses, list | tuple) else (losses,)))


def _pairs(loss: Any) -> Pairs:
    """The layers of student and teacher that a loss compares."""
    if not hasattr(loss, "between"):
        return []
    own, theirs = tuple(loss.layers), tuple(loss.teacher_layers) or tuple(loss.layers)
    if len(own) != len(theirs):
        raise ModelError(
            f"{path_of(loss)}: {len(own)} layers of the student and {len(theirs)} of the teacher; they go in pairs"
        )
    if not own and not getattr(loss, "slopes", False):
        raise ModelError(f"{path_of(loss)}: name the layers that are to be compared, layers=(...)")
    return list(zip(own, theirs)) or [(INPUT, INPUT)]


def _is_mirrored(loss: Any) -> bool:
    return bool(getattr(loss, "mirrored", False))


def _named(names: Iterable[str | None]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name is not INPUT]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a module into eval mode, and back again what was in training."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
