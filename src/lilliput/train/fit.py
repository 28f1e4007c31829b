"""`fit`: a plain training loop, for models with or without a recipe attached."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.optim import AdamW, Optimizer

from lilliput.core.data import call, inputs_of, logits_of, peeked, target_of
from lilliput.core.errors import DataError, ModelError
from lilliput.train import checkpoint
from lilliput.train.attach import advance, attachment, new_parameters
from lilliput.train.gradients.state import HookState
from lilliput.train.lesson import Lesson, is_taught, needs_example
from lilliput.train.lost import lost
from lilliput.train.penalty import penalized
from lilliput.train.randomness import preserved, seed_step

WARM_UP = 0.05
"""Part of the training in which the default learning rate rises to its peak."""


@dataclass(frozen=True)
class FitOptions:
    """Settings of `fit` that most trainings leave as they are.

    Attributes:
        learning_rate: peak of the default optimizer's rate.
        shared_rate: what shared values (a codebook) are trained at, in parts of `learning_rate`: one step moves
            thousands of weights the same way.
        weight_decay: of the default optimizer, on matrices only.
        clip: largest norm of the gradient; None for any.
        seed: of everything random in the training: order of a shuffling loader, dropout.
        checkpoint: file that the state is written to, and gone on from if it is there.
        every: optimizer steps from one checkpoint to the next; 0 for the ends of epochs alone.
        hook: state of the communication hook that is on the model in `DistributedDataParallel`; each process saves its
            own beside the checkpoint, under `<checkpoint>.<rank>`.
        progress: a progress bar on stderr; None if it is a terminal.
        log: called after each step with `{"loss", "epoch", "learning_rate"}` and the number of the step.
    """

    learning_rate: float = 1e-3
    shared_rate: float = 0.3
    weight_decay: float = 0.01
    clip: float | None = None
    seed: int = 0
    checkpoint: str | PathLike[str] | None = None
    every: int = 0
    hook: HookState | None = None
    progress: bool | None = None
    log: Callable[[dict[str, float], int], None] | None = None


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        epoch: epochs that are over.
        batch: batches of this epoch that are over.
        step: optimizer steps that are over.
        length: batches in an epoch; 0 until it is known.
        total: sum of this epoch's losses.
        losses: mean loss of each epoch that is over.
    """

    epoch: int
    batch: int
    step: int
    length: int
    total: float
    losses: list[float]

    def progress(self, epochs: int) -> float:
        """Returns the part of the training that is over, 0 to 1: 1 in the last step, if that can be known."""
        if not self.length:
            return self.epoch / epochs
        return min((self.epoch * self.length + self.batch) / max(epochs * self.length - 1, 1), 1.0)


def fit(
    model: nn.Module,
    data: Iterable[Any],
    *,
    epochs: int = 1,
    loss: Any = None,
    optimizer: Optimizer | None = None,
    teacher: Callable[..., Any] | None = None,
    options: FitOptions | None = None,
) -> list[float]:
    """Trains a model in place.

    With a recipe attached the schedules of its rules move along, weights are those that `pack` would save, and after
    each step of the optimizer comes the proximal step of the rules' penalties. By default AdamW takes every
    parameter, those that `attach` added too, with a rate that rises in the first twentieth and falls by a cosine to 0.
    After a kill the same call goes on from the checkpoint to the same numbers, bit for bit on the same machine,
    provided that `data` yields the same batches for the same seeds.

    Args:
        model: with or without a recipe attached; may be in `DistributedDataParallel`: then rank 0 writes and shows.
        data: iterable anew for each epoch, of (inputs, targets) or dicts.
        epochs: how often to go through the data.
        loss: `loss(output, target)`; by default cross-entropy, or for dicts the model's own `.loss`. With a teacher
            one or a list of distillation losses, whose sum is taken; by default `distill.logits.Logits()`.
        optimizer: the user's; its learning rate is left alone, parameters that `attach` added are added if missing.
        teacher: a trained model, called in eval mode on the same inputs; for losses on logits anything that can be
            called, such as `CachedLogits`. See `Lesson`.
        options: everything else.

    Returns:
        The mean loss of each epoch.

    Raises:
        DataError: if an epoch has no batch, or a batch no targets.
        ModelError: if the loss becomes NaN or infinite, or the checkpoint is of another model.
        FileError: if the checkpoint can't be read or written.
        ExchangeError: in `DistributedDataParallel`, if another process is gone; says which step is in the checkpoint.

    >>> data = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))]
    >>> losses = fit(nn.Linear(2, 2), data, epochs=3)
    >>> losses[-1] < losses[0]
    True
    """
    options = options or FitOptions()
    if (teacher is not None) != is_taught(loss) and loss is not None:
        raise DataError("a teacher and a distillation loss, such as distill.logits.Logits(), need one another")
    if epochs < 1:
        raise DataError(f"epochs = {epochs} must be at least 1")
    lesson = None
    if teacher is not None:
        example = None
        if needs_example(loss):
            batch, data = peeked(data)
            example = _moved(inputs_of(batch), _device(model))
        lesson = Lesson(model, teacher, loss, example=example, seed=options.seed)
    training = _Training(model, epochs, loss, optimizer, lesson, options)
    with preserved(model):
        training.run(data)
    return training.position.losses


class _Training:
    """One call of `fit`: what its steps share."""

    def __init__(
        self,
        model: nn.Module,
        epochs: int,
        loss: Any,
        optimizer: Optimizer | None,
        lesson: Lesson | None,
        options: FitOptions,
    ) -> None:
        self.model, self.epochs, self.lesson, self.options = model, epochs, lesson, options
        self.inner: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.rank = torch.distributed.get_rank() if isinstance(model, DistributedDataParallel) else 0
        self.loss: Any = loss
        self.own_rate = optimizer is None
        self.optimizer = optimizer if optimizer is not None else default_optimizer(self.inner, options)
        self.device = _device(model)
        self.position = Position(0, 0, 0, 0, 0.0, [])
        self.saved: int | None = None
        holders = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        # A weight that the optimizer doesn't train isn't shrunk either.
        self.penalized = [(w, term, holders[id(w)]) for w, term in penalized(self.inner) if id(w) in holders]
        _follow(self.optimizer, [], new_parameters(self.inner) + (lesson.parameters() if lesson else []))

    def run(self, data: Iterable[Any]) -> None:
        """Trains from the checkpoint, if there is one, to the end."""
        self.model.train()
        self.resume()
        alone = not isinstance(self.model, DistributedDataParallel)
        with self.shown() as step_done, nullcontext() if alone else lost(self._where, self._advice):
            while self.position.epoch < self.epochs:
                for batch in self.batches(data):
                    self.step(batch)
                    step_done()
                self.end_epoch()
        advance(self.inner, 1.0)

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        path = self._path()
        if path is None or not path.exists():
            return
        saved = checkpoint.peek(path)
        if saved.pop("recipe") != self._recipe() or saved.pop("seed") != self.options.seed:
            raise ModelError(f"{path}: a checkpoint of another recipe or seed; delete it to start anew")
        self.position = Position(**saved)
        self.saved = self.position.step
        # What schedules had reached decides which parts there are to be loaded.
        self._advance(saved_progress(self.position, self.epochs))
        checkpoint.load(path, self.inner, self.optimizer, self._taught())
        if self.options.hook is not None:
            checkpoint.load_hook(self._beside(path), self.options.hook, self.position.step)

    def batches(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yields the batches of this epoch that aren't over yet."""
        position = self.position
        seed_step(self.options.seed, self.rank, position.epoch, 0, data)
        if not position.length:
            position.length = _length(data)
        skip, count = position.batch, 0
        iterator = iter(data)
        while True:
            seed_step(self.options.seed, self.rank, position.epoch, count + 1)
            try:
                batch = next(iterator)
            except StopIteration:
                break
            count += 1
            if count > skip:
                yield batch
        if not count:
            raise DataError(
                "the data is empty: give an iterable with at least one batch"
                if position.epoch == 0
                else f"the data has no batch left in epoch {position.epoch + 1}: give a list or a loader, no iterator"
            )
        position.length = count

    def step(self, batch: Any) -> None:
        """One optimizer step."""
        position = self.position
        progress = position.progress(self.epochs)
        self._advance(progress)
        if self.own_rate:
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate(progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(_moved(batch, self.device))
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        # After backward, where other processes would wait for this one.
        if not math.isfinite(value):
            raise ModelError(
                f"the loss is {value} in step {position.step + 1} (epoch {position.epoch + 1}): "
                "lower the learning rate, clip the gradient, or look for NaN in the data"
            )
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.inner.parameters(), self.options.clip)
        self.optimizer.step()
        self._shrink()
        position.step, position.batch, position.total = position.step + 1, position.batch + 1, position.total + value
        if self.options.log is not None:
            rates = self.optimizer.param_groups[0]["lr"]
            self.options.log({"loss": value, "epoch": position.epoch, "learning_rate": float(rates)}, position.step)
        if self.options.every and position.step % self.options.every == 0:
            self._save()

    def end_epoch(self) -> None:
        """Notes the mean loss, and saves."""
        position = self.position
        position.losses.append(position.total / max(position.batch, 1))
        position.epoch, position.batch, position.total = position.epoch + 1, 0, 0.0
        self._save()

    def shown(self) -> AbstractContextManager[Callable[[], None]]:
        """Returns a context that shows the progress and gives the function to be called after each step."""
        from lilliput.train.progress import bar

        return nullcontext(lambda: None) if self.rank else bar(self.position_now, self.options.progress)

    def position_now(self) -> tuple[int, int, float]:
        """Returns (steps that are over, all steps or 0, mean loss of this epoch)."""
        position = self.position
        return position.step, position.length * self.epochs, position.total / max(position.batch, 1)

    def _loss(self, batch: Any) -> Tensor:
        inputs, target = inputs_of(batch), target_of(batch)
        # Weights are computed once for each forward pass, however often a layer looks at them.
        with parametrize.cached():
            if self.lesson is not None:
                return self.lesson(inputs, target)
            if self.loss is None and isinstance(batch, Mapping) and _takes_labels(self.inner, batch):
                output = call(self.model, batch)
                own = getattr(output, "loss", None)
                if isinstance(own, Tensor):
                    return own
            else:
                output = call(self.model, inputs)
        if self.loss is not None:
            result: Tensor = self.loss(output, target)
            return result
        if target is None:
            raise DataError("the batches hold no targets: give (inputs, targets), or loss=, or a teacher")
        return functional.cross_entropy(logits_of(output), target)

    def _advance(self, progress: float) -> None:
        before = new_parameters(self.inner)
        if advance(self.inner, progress):
            added = _follow(self.optimizer, before, new_parameters(self.inner))
            if added and isinstance(self.model, DistributedDataParallel):
                raise ModelError(
                    "a schedule replaced trained parts, which DistributedDataParallel can't follow; "
                    "train without it, or attach those steps without a schedule"
                )

    def _shrink(self) -> None:
        """Takes the proximal step of the recipe's penalties, each weight's at the learning rate of its group."""
        with torch.no_grad():
            for weight, term, group in self.penalized:
                weight.copy_(term.shrink(weight, float(group["lr"])))

    def _path(self) -> Path | None:
        return None if self.options.checkpoint is None else Path(self.options.checkpoint)

    def _beside(self, path: Path) -> Path:
        return path.with_name(f"{path.name}.{self.rank}")

    def _recipe(self) -> str:
        state = attachment(self.inner)
        return "" if state is None else state.recipe.dumps()

    def _save(self) -> None:
        path = self._path()
        if path is not None and self.options.hook is not None:
            checkpoint.save_hook(self._beside(path), self.options.hook, self.position.step)
        if path is not None and self.rank == 0:
            position = {**vars(self.position), "recipe": self._recipe(), "seed": self.options.seed}
            checkpoint.save(path, self.inner, self.optimizer, position, self._taught())
        if path is not None:
            self.saved = self.position.step

    def _where(self) -> str:
        return f"process {self.rank} of {torch.distributed.get_world_size()}, in step {self.position.step + 1},"

    def _advice(self) -> str:
        path = self._path()
        if path is None:
            return "start all again, from the beginning, since no checkpoint was asked for"
        if self.saved is None:
            return f"start all again, from the beginning, since {path} has not been written yet"
        return f"start all again: {path} holds step {self.saved}"

    def _taught(self) -> nn.Module | None:
        """What is trained beside the model."""
        return self.lesson.regressors if self.lesson is not None else None


def saved_progress(position: Position, epochs: int) -> float:
    """Returns the progress of the step before this position: the one that schedules have seen."""
    if not position.step or not position.length:
        return Position(position.epoch, 0, 0, 0, 0.0, []).progress(epochs)
    return min((position.epoch * position.length + position.batch - 1) / max(epochs * position.length - 1, 1), 1.0)


def rate(progress: float) -> float:
    """Returns the default learning rate in parts of its peak: a linear rise, then half a cosine.

    >>> rate(WARM_UP), round(rate(1.0), 6)
    (1.0, 0.0)
    """
    if progress < WARM_UP:
        return (progress + 0.1 * WARM_UP) / (1.1 * WARM_UP)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def default_optimizer(model: nn.Module, options: FitOptions) -> AdamW:
    """Returns AdamW over every trained parameter, in groups: matrices, vectors, shared values.

    The gradient of a shared value is the sum over its weights, thousands of times a weight's own, so that plain SGD
    at a usual rate diverges; Adam's step doesn't depend on the gradient's size.
    """
    added = {id(parameter) for parameter in new_parameters(model)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shared = [p for p in trained if id(p) in added and p.ndim < 2]
    vectors = [p for p in trained if id(p) not in added and p.ndim < 2]
    matrices = [p for p in trained if p.ndim >= 2]
    if not trained:
        raise ModelError("the model has no parameter that is trained (requires_grad)")
    groups = [(matrices, 1.0, options.weight_decay), (vectors, 1.0, 0.0), (shared, options.shared_rate, 0.0)]
    return AdamW(
        [
            {"params": params, "lr": options.learning_rate * part, "weight_decay": decay}
            | {"initial_lr": options.learning_rate * part}
            for params, part, decay in groups
        ]
    )


def _follow(optimizer: Optimizer, before: list[nn.Parameter], after: list[nn.Parameter]) -> list[nn.Parameter]:
    """Makes the optimizer take up parameters that are new and let go of those that are gone; returns the new."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    gone = {id(p) for p in before} - {id(p) for p in after}
    added = [p for p in after if id(p) not in held]
    for group in optimizer.param_groups:
        for parameter in [p for p in group["params"] if id(p) in gone]:
            optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for parameter in added:
        # The last group is that of shared values in our own optimizer, the first that of matrices.
        optimizer.param_groups[-1 if parameter.ndim < 2 else 0]["params"].append(parameter)
    return added


def _takes_labels(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    names = inspect.signature(model.forward).parameters
    return "labels" in batch and "labels" in names


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _length(data: Iterable[Any]) -> int:
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return 0


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        return type(batch)(_moved(value, device) for value in batch)
    return batch
