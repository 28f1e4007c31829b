"""Conformance of trainings in low precision: they train, go on from a state, and leave nothing behind."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import ModelError
from lilliput.testing.spread import gaussian, generator
from lilliput.train.low_precision.session import Session

SORTS = ("value", "error", "slope", "weight")


def network() -> nn.Module:
    """Returns a small CNN, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        )


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Returns pictures, and classes that can be told by them."""
    inputs = torch.randn(48, 1, 6, 6, generator=generator(seed))
    return inputs, inputs.flatten(1)[:, :12].reshape(48, 3, 4).sum(2).argmax(1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Trains in the user's own loop; returns the losses."""
    losses = []
    for step in steps:
        inputs, target = batch(step % 4)
        torch.manual_seed(step)
        loss = nn.functional.cross_entropy(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Returns plain SGD with momentum."""
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def rounds(method: Any, sort: str, session: Session, tensor: Tensor) -> Tensor:
    """Calls one of the four functions."""
    extra = (True,) if sort == "value" else ()
    result: Tensor = getattr(method, sort)(session, "a", tensor, *extra)
    return result


def leaves_its_input(cls: Any) -> None:
    """Rounding keeps shape and dtype, zeros, the sign of what stays, and its input; sizes stay within a factor of 2."""
    for sort in SORTS:
        for tensor in (gaussian(6, 5), gaussian(3, 2, 4, 4), torch.zeros(4, 3), torch.empty(0, 3)):
            before, method = tensor.clone(), cls()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                result = rounds(method, sort, Session(), tensor)
            what = f"{sort} of {tuple(tensor.shape)}"
            assert torch.equal(tensor, before), f"{what}: the input was changed"
            assert (result.shape, result.dtype) == (tensor.shape, tensor.dtype), f"{what}: became {result.shape}"
            assert bool(torch.isfinite(result).all()), f"{what}: isn't finite"
            if not tensor.any():
                assert not result.any(), f"{what}: zeros became {result}"
            if tensor.numel():
                assert float(result.abs().max()) <= 2 * float(tensor.abs().max()), f"{what}: grew"


def trains(cls: Any) -> None:
    """In the user's own loop the loss goes down, to something like that of float32."""
    plain, model = network(), network()
    expected = train(plain, sgd(plain), range(60))
    optimizer = sgd(model)
    with torch.random.fork_rng(), cls().on(model, optimizer):
        losses = train(model, optimizer, range(60))
    assert losses[-1] < 0.8 * losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"
    gap = abs(losses[-1] - expected[-1])
    assert gap < 0.5 * expected[0], f"the loss ends at {losses[-1]:.3f}, that of float32 at {expected[-1]:.3f}"


def leaves_nothing_behind(cls: Any) -> None:
    """After the context model, gradients and optimizer work as ever."""
    model = network()
    optimizer = sgd(model)
    with torch.random.fork_rng(), cls().on(model, optimizer):
        train(model, optimizer, range(2))
    twin = network()
    twin.load_state_dict(model.state_dict())
    fresh = sgd(twin)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.random.fork_rng():
        assert train(model, optimizer, range(2, 5)) == train(twin, fresh, range(2, 5)), "hooks stayed behind"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters())), "hooks stayed behind"


def goes_on(cls: Any) -> None:
    """A training that was saved goes on in a fresh context to the same numbers, bit for bit."""
    model, twin = network(), network()
    optimizer, fresh = sgd(model), sgd(twin)
    with torch.random.fork_rng(), cls().on(model, optimizer) as session:
        train(model, optimizer, range(4))
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), session.state_dict()))
        expected = train(model, optimizer, range(4, 8))
    twin.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    with torch.random.fork_rng(), cls().on(twin, fresh) as session:
        twin.load_state_dict(saved[0])
        session.load_state_dict(saved[2])
        found = train(twin, fresh, range(4, 8))
    assert found == expected, f"losses go on as {found}, not as {expected}"


def refuses_what_it_cannot_follow(cls: Any) -> None:
    """A pattern that fits no layer is an error of the model."""
    model = network()
    try:
        with cls().on(model, sgd(model), match="nothing"):
            pass
    except ModelError:
        return
    raise AssertionError("a pattern that fits no layer isn't refused")


LAWS = (leaves_its_input, trains, leaves_nothing_behind, goes_on, refuses_what_it_cannot_follow)


def check(cls: Any) -> None:
    """Runs all laws on the class of a precision.

    Raises:
        AssertionError: says what is wrong.

    >>> from lilliput.train.low_precision.qnn import Qnn
    >>> check(Qnn)
    """
    for law in LAWS:
        law(cls)
