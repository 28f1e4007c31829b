"""Conformance of gradient hooks: what comes out of a bucket, what a state keeps, work with DDP; by one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lilliput.core.errors import ModelError
from lilliput.testing.spread import generator
from lilliput.train.gradients.state import HookState

SIZES = {"weight": (12, 5), "bias": (12,), "empty": (0,)}


@contextmanager
def alone() -> Iterator[None]:
    """A group of this process only, unless there is a group already."""
    if dist.is_initialized():
        yield
        return
    if os.path.exists("/sys/class/net/lo"):
        # gloo would look the machine's name up, which may take long.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Bucket:
    """Gradients as DistributedDataParallel hands them to a hook, made without a model."""

    def __init__(self, parameters: list[Tensor], gradients: list[Tensor], last: bool = True) -> None:
        self._parameters, self.last = parameters, last
        self._buffer = torch.cat([gradient.flatten() for gradient in gradients])

    def index(self) -> int:
        """Returns 0."""
        return 0

    def buffer(self) -> Tensor:
        """Returns all gradients, one after the other."""
        return self._buffer

    def parameters(self) -> list[Tensor]:
        """Returns the parameters."""
        return self._parameters

    def gradients(self) -> list[Tensor]:
        """Returns views of the buffer."""
        parts = torch.split(self._buffer, [p.numel() for p in self._parameters])
        return [part.view(p.shape) for part, p in zip(parts, self._parameters)]

    def is_last(self) -> bool:
        """Whether the backward pass ends with it."""
        return self.last


class Steps:
    """A hook, its state, and parameters that never change.

    Attributes:
        method: the hook.
        parameters: of `SIZES`.
        state: of the hook.
    """

    def __init__(self, method: Any, dtype: torch.dtype = torch.float32) -> None:
        self.method = method
        self.parameters = [torch.zeros(size, dtype=dtype) for size in SIZES.values()]
        self.state = HookState({id(p): name for p, name in zip(self.parameters, SIZES)})

    def step(self, gradients: list[Tensor]) -> Tensor:
        """Returns what the hook leaves in a bucket of these gradients."""
        bucket = Bucket(self.parameters, gradients)
        result: Tensor = self.method.hook(self.state, bucket).wait()
        assert result is bucket.buffer(), "the future must hold the bucket's own buffer"
        return result.clone()


def gradients(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Returns gradients of `SIZES`, the same for the same seed."""
    source = generator(seed)
    return [torch.randn(size, generator=source).to(dtype) for size in SIZES.values()]


def gives_gradients(cls: Any) -> None:
    """The result is finite and of the bucket's dtype; no gradient gives none; a state counts the steps."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        steps = Steps(cls(), dtype)
        nothing = steps.step([torch.zeros(size, dtype=dtype) for size in SIZES.values()])
        assert not nothing.any(), f"{dtype}: no gradient became {nothing}"
        result = steps.step(gradients(1, dtype))
        assert result.dtype == dtype, f"{dtype} became {result.dtype}"
        assert bool(torch.isfinite(result).all()), f"{dtype}: the result isn't finite"
        assert steps.state.step == 2, f"{steps.state.step} steps were counted, not 2"


def right_in_the_long_run(cls: Any, times: int = 300) -> None:
    """The results of many steps with one gradient add up to its direction, however coarse each is."""
    steps, one = Steps(cls()), gradients(2)
    total = torch.stack([steps.step(one) for _ in range(times)]).sum(0)
    wanted = torch.cat([gradient.flatten() for gradient in one])
    cosine = float(torch.cosine_similarity(total, wanted, dim=0))
    assert cosine > 0.9, f"after {times} steps the sum has a cosine of {cosine:.3f} with the gradient"


def goes_on(cls: Any) -> None:
    """A state that was saved and loaded gives what the other would have given, bit for bit; it is plain data."""
    steps, fresh = Steps(cls()), Steps(cls())
    for seed in range(3):
        steps.step(gradients(seed))
    saved = steps.state.state_dict()
    for key, value in saved.items():
        assert key == "memory" or type(value) is int, f"state_dict: {key} = {value!r} is no plain number"
    assert all(isinstance(tensor, Tensor) for tensor in saved["memory"].values()), "state_dict: no tensor"
    expected = [steps.step(gradients(seed)) for seed in range(3, 6)]
    fresh.state.load_state_dict(saved)
    found = [fresh.step(gradients(seed)) for seed in range(3, 6)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found)), "a loaded state gives other gradients"


def tells_of_nan(cls: Any) -> None:
    """NaN or infinity in a gradient shows in the result, and the next step is sound again."""
    for bad in (torch.nan, torch.inf):
        steps = Steps(cls())
        steps.step(gradients(1))
        broken = gradients(2)
        broken[0][3, 2] = bad
        assert not bool(torch.isfinite(steps.step(broken)).all()), f"{bad} in a gradient doesn't show"
        assert bool(torch.isfinite(steps.step(gradients(3))).all()), f"{bad} in a gradient spoils the next step"


def works_with_ddp(cls: Any) -> None:
    """On a model in DistributedDataParallel training goes down; a second hook, or a bare model, is refused."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)))
        x = torch.randn(64, 4)
    y, losses = x.sum(1, keepdim=True), []
    state = cls().on(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(40):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"
    assert state.step == 40, f"{state.step} steps were counted, not 40"
    for wrong in (model, model.module):
        try:
            cls().on(wrong)
        except ModelError:
            continue
        raise AssertionError("a second hook, or one on a bare model, isn't refused")


LAWS = (gives_gradients, right_in_the_long_run, goes_on, tells_of_nan, works_with_ddp)


def check(cls: Any) -> None:
    """Runs all laws on the class of a hook, in a group of one process.

    Raises:
        AssertionError: says what is wrong.

    >>> from lilliput.train.gradients.eight_bit import EightBit
    >>> check(EightBit)
    """
    with alone():
        for law in LAWS:
            law(cls)
