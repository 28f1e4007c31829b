"""How low precision gets into a training: hooks on outputs, gradients and the optimizer, while a context lasts."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lilliput.core.errors import ModelError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(eq=False)
class Session:
    """What a training in low precision keeps from step to step.

    Attributes:
        masters: float32 copies of the parameters that the optimizer moves, by name.
        scale: what gradients are multiplied with on their way back through the model.
        clean: steps since the scale was changed.
        skipped: steps that were left out because a gradient wasn't finite.
        overflows: tensors in which a value was too large for its format.
        memory: what the method keeps, by place: plain numbers and lists.
    """

    masters: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0
    clean: int = 0
    skipped: int = 0
    overflows: int = 0
    memory: dict[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Returns all of it, for a checkpoint."""
        counts = {name: getattr(self, name) for name in ("scale", "clean", "skipped", "overflows")}
        masters = {name: tensor.clone() for name, tensor in self.masters.items()}
        return {**counts, "memory": {key: list(value) for key, value in self.memory.items()}, "masters": masters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            ModelError: if it is of another model.
        """
        if state["masters"].keys() != self.masters.keys():
            raise ModelError("this state of a training in low precision is of another model or method")
        for name in ("scale", "clean", "skipped", "overflows"):
            setattr(self, name, state[name])
        self.memory = {key: list(value) for key, value in state["memory"].items()}
        for name, tensor in state["masters"].items():
            self.masters[name].copy_(tensor)


class Precision(Protocol):
    """Numbers of a training, the contract of `train/low_precision/`: a frozen dataclass of its settings.

    Each of the four functions rounds one sort of tensor, and leaves it as it is by default. None changes its input.

    Attributes:
        everywhere: outputs and errors of all modules without children are rounded, not only those of layers.
        masters: the optimizer moves float32 copies of the rounded parameters.
        first_scale: loss scaling starts here; 0 for none.
    """

    everywhere: ClassVar[bool] = False
    masters: ClassVar[bool] = False

    @property
    def first_scale(self) -> float:
        """The first factor of loss scaling; 0 for none."""
        return 0.0

    def value(self, session: Session, place: str, output: Tensor, training: bool) -> Tensor:
        """Returns what a layer's output is in this precision; its gradient passes straight through."""
        return output

    def error(self, session: Session, place: str, gradient: Tensor) -> Tensor:
        """Returns what the gradient with respect to a layer's output is, from which all before it is computed."""
        return gradient

    def slope(self, session: Session, place: str, gradient: Tensor) -> Tensor:
        """Returns what the gradient of a parameter is."""
        return gradient

    def weight(self, session: Session, place: str, value: Tensor) -> Tensor:
        """Returns what a parameter is after a step of the optimizer."""
        return value

    def layers(self, model: nn.Module, match: str) -> dict[str, nn.Module]:
        """Returns the modules whose outputs and errors are rounded, by name."""
        found = {
            name: module
            for name, module in model.named_modules()
            if (not any(module.children()) if self.everywhere else isinstance(module, LAYERS))
        }
        return {name: module for name, module in found.items() if fnmatch.fnmatchcase(name, match)}

    @contextmanager
    def on(self, model: nn.Module, optimizer: Optimizer | None = None, match: str = "*") -> Iterator[Session]:
        """Trains in this precision for as long as the context lasts; your own loop stays as it is.

        Parameters keep what the last step rounded them to.

        Args:
            model: hooks are set on it, and removed in the end.
            optimizer: of the training; may be missing where neither parameters nor gradients' scale are changed.
            match: shell pattern for the names of the layers.

        Yields:
            The state, to be saved and loaded with a checkpoint.

        Raises:
            ModelError: if no layer fits, or an optimizer is needed.
        """
        layers = self.layers(model, match)
        moves = type(self).weight is not Precision.weight or self.masters or bool(self.first_scale)
        if not layers:
            raise ModelError(f"no layer of the model fits '{match}'")
        if moves and optimizer is None:
            raise ModelError(f"{type(self).__name__} changes what the optimizer does: give on(model, optimizer)")
        session = Session(scale=self.first_scale or 1.0)
        places = _Places(self, session, model)
        try:
            places.watch(layers)
            if optimizer is not None and moves:
                places.follow(optimizer)
            yield session
        finally:
            for handle in places.handles:
                handle.remove()


class _Rounded(torch.autograd.Function):
    """A tensor rounded on the way forward, its gradient on the way back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.back(grads[0]), None, None


class _Places:
    """The hooks of one context."""

    def __init__(self, method: Precision, session: Session, model: nn.Module) -> None:
        self.method, self.session, self.model = method, session, model
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
        self.handles: list[Any] = []

    def watch(self, layers: Mapping[str, nn.Module]) -> None:
        """Rounds outputs and errors of layers, and gradients of parameters."""
        for name, layer in layers.items():
            self.handles.append(layer.register_forward_hook(self._output_of(name)))
        if self.method.first_scale:
            self.handles.append(self.model.register_forward_hook(lambda module, inputs, output: self._scaled(output)))
        for name, parameter in self.parameters.items():
            self.handles.append(parameter.register_hook(self._slope_of(name)))  # type: ignore[no-untyped-call]

    def _output_of(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return output
            with torch.no_grad():
                value = self.method.value(self.session, name, output, module.training)
            return _Rounded.apply(output, value, lambda g: self.method.error(self.session, name, g))  # type: ignore[no-untyped-call]

        return hook

    def _slope_of(self, name: str) -> Callable[[Tensor], Tensor]:
        return lambda gradient: self.method.slope(self.session, name, gradient) / self.session.scale

    def _scaled(self, output: Any) -> Any:
        """Has the gradients of all tensors of an output multiplied by the scale."""
        if isinstance(output, Tensor):
            if not output.is_floating_point():
                return output
            return _Rounded.apply(output, output.detach(), lambda g: g * self.session.scale)  # type: ignore[no-untyped-call]
        if isinstance(output, Mapping):
            for key, value in output.items():
                output[key] = self._scaled(value)  # type: ignore[index]
            return output
        if isinstance(output, list | tuple) and not hasattr(output, "_fields"):
            return type(output)(self._scaled(value) for value in output)
        raise ModelError(f"loss scaling can't follow an output of type {type(output).__name__}")

    def follow(self, optimizer: Optimizer) -> None:
        """Rounds parameters before the first step and after each."""
        with torch.no_grad():
            if self.method.masters:
                self.session.masters.update({name: p.detach().clone() for name, p in self.parameters.items()})
            self._round()
        self.handles.append(optimizer.register_step_pre_hook(lambda *_: self._before()))
        self.handles.append(optimizer.register_step_post_hook(lambda *_: self._after()))

    @torch.no_grad()
    def _before(self) -> None:
        session = self.session
        if self.method.first_scale:
            grads = [p.grad for p in self.parameters.values() if p.grad is not None]
            if all(bool(torch.isfinite(grad).all()) for grad in grads):
                session.clean += 1
            else:
                # Without gradients the optimizer passes over the parameters, its momentum too.
                for parameter in self.parameters.values():
                    parameter.grad = None
                session.skipped, session.clean, session.scale = session.skipped + 1, 0, session.scale / 2
        for name, master in session.masters.items():
            self.parameters[name].copy_(master)

    @torch.no_grad()
    def _after(self) -> None:
        session = self.session
        for name, master in session.masters.items():
            master.copy_(self.parameters[name])
        self._round()
        growth = getattr(self.method, "growth", 0)
        if growth and session.clean >= growth:
            session.scale, session.clean = session.scale * 2, 0

    def _round(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.method.weight(self.session, name, parameter.detach()))
