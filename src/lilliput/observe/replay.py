"""Runs a model again and again with one weight changed, without computing what comes before that weight anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.data import call
from lilliput.core.layers import weights

MOST_BYTES = 2**30
"""Outputs kept of one batch; layers whose outputs find no room are computed again."""


@dataclass
class Replay:
    """A model on one batch of inputs, with the outputs of its layers kept.

    The layers' calls are numbered in the order in which they happen. What happens before the first call of a layer
    doesn't depend on its weight, so that with this weight changed every earlier call gives what it gave before and
    needs no computing. A weight that is used without a call of its own module is changed with everything computed.
    The one thing that must hold is that a module's weight isn't used elsewhere before the module's own first call.

    Attributes:
        model: in eval mode; the forward functions of its layers are replaced for as long as `recording` lasts.
        inputs: one batch.
        most_bytes: see `MOST_BYTES`.
        output: what the model gives as it is.
        first: number of the first call of each module.
    """

    model: nn.Module
    inputs: Any
    most_bytes: int = MOST_BYTES
    output: Any = None
    first: dict[str, int] = field(default_factory=dict)
    _kept: dict[int, Any] = field(default_factory=dict)
    _number: int = 0
    _start: int = -1
    _bytes: int = 0

    @contextmanager
    def recording(self) -> Iterator[Replay]:
        """Runs the model once and keeps the outputs; inside, `run` may be called."""
        found = weights(self.model)
        layers = {path for weight in found if weight.kind != "vector" for path, _ in weight.owners}
        owners = dict.fromkeys(path for weight in found for path, _ in weight.owners if path)
        modules = {path: self.model.get_submodule(path) for path in owners}
        # Of modules that hold vectors only, those without layers inside: norms.
        modules = {path: m for path, m in modules.items() if path in layers or not any(m.children())}
        own = {path: module.__dict__["forward"] for path, module in modules.items() if "forward" in module.__dict__}
        try:
            for path, module in modules.items():
                module.__dict__["forward"] = self._stand_in(path, module.forward)
            with torch.no_grad():
                self.output = _copied(call(self.model, self.inputs))
            yield self
        finally:
            for path, module in modules.items():
                module.__dict__.pop("forward", None)
                if path in own:
                    module.__dict__["forward"] = own[path]
            self._kept.clear()

    def run(self, changed: Mapping[str, Tensor], owners: list[str] | None = None) -> Any:
        """Returns the model's output with some parameters changed; they are put back afterwards.

        Args:
            changed: new values by the parameter's name, of its shape and dtype.
            owners: paths of all modules that hold one of them; None if nothing earlier may be taken as it was.
        """
        calls = [self.first.get(path, 0) for path in owners or [""]]
        self._start, self._number = min(calls, default=0), 0
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        before = {name: parameters[name].data for name in changed}
        try:
            for name, value in changed.items():
                parameters[name].data = value
            with torch.no_grad():
                return call(self.model, self.inputs)
        finally:
            for name, value in before.items():
                parameters[name].data = value

    def _stand_in(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            number, self._number = self._number, self._number + 1
            if number < self._start and number in self._kept:
                return _copied(self._kept[number])
            result = forward(*args, **kwargs)
            if self._start < 0:
                self.first.setdefault(path, number)
                size = _bytes(result)
                if self._bytes + size <= self.most_bytes:
                    self._bytes += size
                    self._kept[number] = _copied(result)
            return result

        return stand_in


def _copied(value: Any) -> Any:
    """A copy of all tensors: what comes next may work in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copied(part) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    if isinstance(value, dict):
        copied = value.copy()
        copied.update({key: _copied(part) for key, part in value.items()})
        return copied
    return value


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return sum(_bytes(part) for part in value)
