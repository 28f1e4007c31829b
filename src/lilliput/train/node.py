"""What stands in a weight's place while it is trained: the steps of its rule as one parametrization."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.method import Schedule, WeightMethod
from lilliput.core.packed import Packed, opened, pack_steps, unpack

# Prefix of the submodules that hold the next steps of a part: `parts` may bear names that nn.Module uses itself.
INNER = "next_"


class StraightThrough(torch.autograd.Function):
    """Returns the packed value itself; the gradient passes to the latent weight unchanged.

    `w + (q - w).detach()` would be off by a rounding: then training wouldn't see what the file holds.
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor, value: Tensor) -> Tensor:
        """Returns `value`."""
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Passes the gradient to the latent weight."""
        return grads[0], None


class Node(nn.Module):
    """The effective weight of one rule's steps, for `torch.nn.utils.parametrize`.

    Frozen parts of the first step (a mask, cluster indices) are buffers, its trained parts (a codebook, factors) are
    parameters; the parts that it opens to the next step have nodes of their own.

    Attributes:
        steps: the steps at this point of the training.
        target: the steps as the recipe has them.
        schedule: how `steps` approach `target`, or None.
    """

    def __init__(
        self,
        weight: Tensor,
        steps: tuple[WeightMethod, ...],
        *,
        stats: Any = None,
        prior: Packed | Tensor | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.target = steps
        self.schedule = schedule
        self.stats = stats
        self._start(weight.detach(), scheduled(steps, schedule, 0.0), prior)

    def _start(self, weight: Tensor, steps: tuple[WeightMethod, ...], prior: Packed | Tensor | None) -> None:
        self.steps = steps
        head = steps[0]
        packed = pack_steps(weight, steps[:1], self.stats, prior)
        assert isinstance(packed, Packed)
        self.settings, self.method = dict(packed.settings), packed.method
        self.shape, self.dtype = packed.shape, packed.dtype
        for name in head.frozen:
            self.register_buffer(name, packed.tensor(name))
        if head.training == "parts":
            for name in head.trained:
                self.register_parameter(name, nn.Parameter(packed.tensor(name).detach().clone()))
        if head.training == "straight":
            return
        handed = opened(head, packed, steps[1]) if len(steps) > 1 else packed
        for name in head.into:
            if len(steps) > 1 and name in handed.parts:
                before = prior.parts.get(name) if isinstance(prior, Packed) else None
                self.add_module(INNER + name, Node(handed.tensor(name), steps[1:], stats=self.stats, prior=before))

    @property
    def trained(self) -> bool:
        """Whether parts are trained in the weight's place, here or by a later step, so that no gradient reaches it."""
        if self.steps[0].training == "parts":
            return True
        inner = [self.inner(part) for part in self.steps[0].into]
        return any(node is not None and node.trained for node in inner)

    def inner(self, part: str) -> Node | None:
        """Returns the node of a part that the next steps pack, or None."""
        found = self._modules.get(INNER + part)
        return found if isinstance(found, Node) else None

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the effective weight: exactly what `unpack(self.packed(weight))` gives."""
        head = self.steps[0]
        if head.training == "straight":
            with torch.no_grad():
                value = unpack(pack_steps(weight, self.steps, self.stats))
            effective: Tensor = StraightThrough.apply(weight, value)  # type: ignore[no-untyped-call]
            return effective
        opened_parts = self._opened(weight)
        parts: dict[str, Tensor | Packed] = {}
        for name, part in opened_parts.parts.items():
            inner = self.inner(name)
            parts[name] = inner(part) if inner is not None else part
        return head.unpack(replace(opened_parts, parts=parts))

    def packed(self, weight: Tensor) -> Packed | Tensor:
        """Packs the weight (or the parameters trained in its place) as the file will hold it."""
        with torch.no_grad():
            if self.steps[0].training == "straight":
                return pack_steps(weight.detach(), self.steps, self.stats)
            whole = self._opened(weight.detach())
            parts: dict[str, Tensor | Packed] = {}
            for name, part in whole.parts.items():
                assert isinstance(part, Tensor)
                inner = self.inner(name)
                parts[name] = inner.packed(part) if inner is not None else part.detach().clone()
            return replace(whole, parts=parts)

    def _opened(self, weight: Tensor) -> Packed:
        """The first step's parts, differentiable, in the form that the next step takes."""
        head = self.steps[0]
        state: dict[str, Tensor | Packed] = {name: getattr(self, name) for name in head.frozen}
        if head.training == "parts":
            state |= {name: getattr(self, name) for name in head.trained}
            packed = Packed(self.method, self.shape, self.dtype, state, self.settings)
        else:
            prior = Packed(self.method, self.shape, self.dtype, state, self.settings)
            packed = head.pack(weight, self.stats, prior)
        return opened(head, packed, self.steps[1]) if len(self.steps) > 1 else packed

    def state(self, weight: Tensor) -> Packed | Tensor:
        """Returns what a later `attach` goes on from: the packed weight with its frozen parts in sight."""
        head = self.steps[0]
        packed = self.packed(weight)
        if isinstance(packed, Packed) and head.frozen:
            packed = packed.with_parts(**{name: getattr(self, name) for name in head.frozen})
        return packed

    def advance(self, weight: Tensor, progress: float) -> bool:
        """Moves the steps to this point of the training; returns whether anything changed.

        Args:
            weight: the latent weight.
            progress: part of the training that is over, 0 to 1.
        """
        steps = scheduled(self.target, self.schedule, progress)
        if steps == self.steps:
            return False
        prior = self.state(weight)
        for name in self.steps[0].frozen:
            delattr(self, name)
        for name in [name for name in self._modules if name.startswith(INNER)]:
            delattr(self, name)
        self._start(weight.detach(), steps, prior)
        return True


def scheduled(steps: tuple[WeightMethod, ...], schedule: Schedule | None, progress: float) -> tuple[WeightMethod, ...]:
    """Returns the steps as the schedule has them at this point of the training."""
    return steps if schedule is None else tuple(schedule.advance(step, progress) for step in steps)
