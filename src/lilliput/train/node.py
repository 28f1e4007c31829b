"""What stands in a weight's place while it is trained: the steps of its rule as one parametrization."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.method import Schedule, WeightMethod
from lilliput.core.packed import Packed, finished, opened, pack_rest, same_method, unpack

# Prefixes of the parts, and of the submodules that hold a part's next steps: a method may give its parts names that
# nn.Module or Node use themselves, such as "training" or "steps".
PART = "part_"
INNER = "next_"


class Estimated(torch.autograd.Function):
    """Returns the packed value itself; the method says what gradient reaches the latent weight and trained parts.

    `w + (q - w).detach()` would be off by a rounding: then training wouldn't see what the file holds.
    """

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, value: Tensor, method: WeightMethod, packed: Packed, *trained: Tensor
    ) -> Tensor:
        """Returns `value`.

        Args:
            ctx: of autograd.
            latent: the latent weight.
            value: what it is in this forward pass.
            method: whose `gradient` is asked.
            packed: what the method packed the weight to.
            trained: the parameters beside the weight, in the order of `method.trained`.
        """
        ctx.method, ctx.packed = method, packed
        ctx.save_for_backward(latent)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Asks the method."""
        (latent,) = ctx.saved_tensors
        own, parts = ctx.method.gradient(latent, ctx.packed, grads[0])
        return (own, None, None, None, *(parts[name] for name in ctx.method.trained))


class Node(nn.Module):
    """The effective weight of one rule's steps, for `torch.nn.utils.parametrize`.

    Frozen parts of the first step (a mask, cluster indices) are buffers, its trained parts (a codebook, factors) are
    parameters; the parts that it opens to the next step have nodes of their own.

    Attributes:
        steps: the steps at this point of the training.
        target: the steps as the recipe has them.
        schedule: how `steps` approach `target`, or None.
        moved: what the latent weight should become, by a first step that makes up for what it removes; else None.
    """

    def __init__(
        self,
        weight: Tensor,
        steps: tuple[WeightMethod, ...],
        *,
        stats: Any = None,
        previous: Node | None = None,
        schedule: Schedule | None = None,
        started: bool = False,
    ) -> None:
        super().__init__()
        self.target = steps
        self.schedule = schedule
        self.stats = stats
        self.steps = steps if started else scheduled(steps, schedule, 0.0)
        self.moved: Tensor | None = None
        with torch.no_grad():
            self._start(weight.detach(), previous)

    def _start(self, weight: Tensor, previous: Node | None) -> None:
        head, following = self.steps[0], self.steps[1:]
        packed = self._first(weight, previous)
        if head.updates:
            self.moved = unpack(packed)
        self.settings, self.method, self.shape = dict(packed.settings), packed.method, packed.shape
        for name in head.frozen:
            self.register_buffer(PART + name, packed.tensor(name).detach().clone())
        if head.training != "through":
            for name in head.trained:
                self.register_parameter(PART + name, _parameter(packed.tensor(name), name, previous))
        if head.training == "straight" or not following:
            return
        handed = opened(head, packed, following[0])
        for name in head.into:
            if name in handed.parts:
                before = previous.inner(name) if previous is not None else None
                inner = Node(handed.tensor(name), following, stats=self.stats, previous=before, started=True)
                self.add_module(INNER + name, inner)
                if inner.trained and PART + name in self._parameters:
                    self.get_parameter(PART + name).requires_grad_(False)

    def _first(self, weight: Tensor, previous: Node | None) -> Packed:
        """The weight packed by the first step, going on from the state of a node that stood here before."""
        head = self.steps[0]
        if previous is None:
            return head.pack(weight, self.stats)
        prior = previous.first(weight)
        if head == previous.steps[0] and head.training == "parts" and not head.frozen:
            return prior
        return head.pack(weight, self.stats, prior if same_method(prior, head) else None)

    @property
    def trained(self) -> bool:
        """Whether parameters of this node are trained in the weight's place, so that the weight has no say."""
        head = self.steps[0]
        if head.training != "through":
            return head.training == "parts"
        inner = [node for name in head.into if (node := self.inner(name)) is not None]
        return bool(inner) and all(node.trained for node in inner)

    def inner(self, part: str) -> Node | None:
        """Returns the node of a part that the next steps pack, or None."""
        found = self._modules.get(INNER + part)
        return found if isinstance(found, Node) else None

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the effective weight: exactly what `unpack(self.packed(weight))` gives."""
        # Autocast would round a product of factors, and then training wouldn't see what the file holds.
        with torch.autocast(weight.device.type, enabled=False):
            if self.steps[0].training != "straight":
                return self._composed(weight)
            head = self.steps[0]
            with torch.no_grad():
                first = self.first(weight.detach(), draw=self.training)
                value = unpack(pack_rest(head, first, self.steps[1:], self.stats, lenient=True))
            trained = [self.get_parameter(PART + name) for name in head.trained]
            effective: Tensor = Estimated.apply(weight, value, head, first, *trained)  # type: ignore[no-untyped-call]
            return effective

    def _composed(self, weight: Tensor) -> Tensor:
        whole = self._opened(weight)
        parts: dict[str, Tensor | Packed] = {}
        for name, part in whole.parts.items():
            assert isinstance(part, Tensor)
            inner = self.inner(name)
            parts[name] = inner(part) if inner is not None else part
        return self.steps[0].unpack(replace(whole, parts=parts))

    def packed(self, weight: Tensor) -> Packed:
        """Packs the weight (or the parameters trained in its place) as the file will hold it."""
        with torch.no_grad():
            if self.steps[0].training == "straight":
                whole = finished(self.steps[0], self.first(weight.detach()))
                return pack_rest(self.steps[0], whole, self.steps[1:], self.stats, lenient=True)
            whole = finished(self.steps[0], self._opened(weight.detach()))
            parts: dict[str, Tensor | Packed] = {}
            for name, part in whole.parts.items():
                assert isinstance(part, Tensor)
                inner = self.inner(name)
                parts[name] = inner.packed(part) if inner is not None else part.detach().clone()
            return replace(whole, parts=parts)

    def first(self, weight: Tensor, draw: bool = False) -> Packed:
        """Returns the weight packed by the first step alone, its state kept; differentiable if the step is.

        Args:
            weight: the latent weight.
            draw: as a forward pass in training mode sees it, which may be random.
        """
        head = self.steps[0]
        state: dict[str, Tensor | Packed] = {name: getattr(self, PART + name) for name in head.frozen}
        if head.training != "through":
            state |= {name: getattr(self, PART + name) for name in head.trained}
        packed = Packed(self.method, self.shape, weight.dtype, state, self.settings)
        if head.training == "parts":
            return packed
        return (head.draw if draw else head.pack)(weight, self.stats, packed if state else None)

    def _opened(self, weight: Tensor) -> Packed:
        """The first step's parts, in the form that the next step takes."""
        packed = self.first(weight)
        return opened(self.steps[0], packed, self.steps[1]) if len(self.steps) > 1 else packed

    def advance(self, weight: Tensor, progress: float) -> bool:
        """Moves the steps to this point of the training; returns whether anything changed.

        Args:
            weight: the latent weight; changed in place by a step that makes up for what it removes.
            progress: part of the training that is over, 0 to 1.
        """
        if not self.trained:
            with torch.no_grad():
                confined = self.steps[0].confined(weight)
                if confined is not weight:
                    weight.copy_(confined)
        steps = scheduled(self.target, self.schedule, progress)
        if steps == self.steps:
            return False
        with torch.no_grad():
            # Parts that were trained in the weight's place hold what the weight is now.
            latent = self(weight) if self.trained else weight
            moved = Node(latent, steps, stats=self.stats, previous=self, started=True)
        if moved.moved is not None:
            weight.copy_(moved.moved)
        moved.train(self.training)
        self.steps, self.settings, self.method = moved.steps, moved.settings, moved.method
        self._buffers, self._parameters, self._modules = moved._buffers, moved._parameters, moved._modules
        return True

    def get_extra_state(self) -> Tensor:
        """Returns the settings that go with the parts as JSON in a tensor of bytes, for `state_dict`."""
        return torch.tensor(list(json.dumps(self.settings, sort_keys=True).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Takes the settings from `state_dict`."""
        self.settings = dict(json.loads(bytes(state.tolist())))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Takes on the sizes of the stored parts: another weight had another rank, or another number of values."""
        for name, own in [*self._buffers.items(), *self._parameters.items()]:
            stored = state_dict.get(prefix + name)
            if own is None or not isinstance(stored, Tensor) or stored.ndim != own.ndim:
                continue
            if name in self._buffers and (stored.shape, stored.dtype) != (own.shape, own.dtype):
                self._buffers[name] = torch.empty_like(stored, device=own.device)
            elif stored.shape != own.shape:
                own.data = torch.empty_like(stored, device=own.device, dtype=own.dtype)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _parameter(value: Tensor, name: str, previous: Node | None) -> nn.Parameter:
    """A parameter of this value: the one that was there before if it holds it, so that optimizers keep it."""
    before = previous._parameters.get(PART + name) if previous is not None else None
    if isinstance(before, nn.Parameter) and before.dtype == value.dtype and torch.equal(before, value):
        return before
    return nn.Parameter(value.detach().clone())


def scheduled(steps: tuple[WeightMethod, ...], schedule: Schedule | None, progress: float) -> tuple[WeightMethod, ...]:
    """Returns the steps as the schedule, or without one their own course, has them at this point of the training."""
    if schedule is None:
        return tuple(step.at(progress) for step in steps)
    return tuple(schedule.advance(step, progress) for step in steps)
