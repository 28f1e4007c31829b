"""What hooks exchange, and how: pieces go to those who average them, averages come back; every byte is counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import ExchangeError
from lilliput.train.gradients.state import GradBucket, HookState


class Codec(Protocol):
    """Values to bytes and back; how many bytes depends on how many values alone."""

    def encode(self, values: Tensor, begin: int) -> Tensor:
        """Returns uint8 for values, float32, which stand at `begin` and after in the bucket."""
        ...

    def decode(self, data: Tensor, begin: int, count: int) -> Tensor:
        """Returns the `count` values again."""
        ...


@dataclass
class Gradients:
    """A bucket's gradients, one after the other, in the order of the parameters' names.

    DistributedDataParallel changes the order in a bucket after the first step; in this one a training that goes on from
    a checkpoint codes the same values together, at least where there is one bucket.

    Attributes:
        views: of the gradients, in the bucket.
        flat: float32, a copy.
        names: of the parameters.
        sizes: of the parameters.
    """

    views: list[Tensor]
    flat: Tensor
    names: list[str]
    sizes: list[int]

    @classmethod
    def of(cls, state: HookState, bucket: GradBucket, feedback: bool = False) -> "Gradients":
        """Takes a bucket's gradients; with `feedback`, what was not sent before is added."""
        own = {state.name(parameter): view for parameter, view in zip(bucket.parameters(), bucket.gradients())}
        names = sorted(own)
        views = [own[name] for name in names]
        sizes = [view.numel() for view in views]
        flat = torch.cat([view.detach().flatten() for view in views]).to(torch.float32, copy=True)
        if feedback:
            flat += torch.cat([state.kept("residual", *one).to(flat.device) for one in zip(names, sizes)])
        return cls(views, flat, names, sizes)

    def finish(self, state: HookState, bucket: GradBucket, result: Tensor) -> torch.futures.Future[Tensor]:
        """Leaves the result in the bucket, counts what plain DDP would have sent; the last bucket ends the step."""
        for view, part in zip(self.views, torch.split(result, self.sizes)):
            view.copy_(part.view_as(view))
        buffer = bucket.buffer()
        state.plain += 2 * (state.size - 1) * buffer.numel() * buffer.element_size() // state.size
        if bucket.is_last():
            state.step += 1
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(buffer)
        return future

    def keep(self, state: HookState, rest: Tensor) -> None:
        """Keeps what was not sent for the next step; what isn't finite is forgotten."""
        rest = torch.nan_to_num(rest, 0.0, 0.0, 0.0)
        for name, part in zip(self.names, torch.split(rest, self.sizes)):
            state.kept("residual", name, len(part)).copy_(part)

    def largest(self, state: HookState) -> Tensor:
        """Returns the largest magnitude of each parameter in any process; infinity for what isn't finite."""
        tops = [part.abs().max() if len(part) else part.new_zeros(()) for part in torch.split(self.flat, self.sizes)]
        top = torch.stack(tops)
        top = torch.where(torch.isfinite(top), top, torch.inf)
        with talking(state):
            dist.all_reduce(top, dist.ReduceOp.MAX, group=state.group)
        state.sent += 2 * (state.size - 1) * top.numel() * 4 // state.size
        return top

    def spread(self, values: Tensor) -> Tensor:
        """Returns one value a parameter as one an element, with as many ones as pieces may need behind."""
        whole = values.repeat_interleave(torch.tensor(self.sizes, device=values.device))
        return functional.pad(whole, (0, len(self.sizes) + dist.get_world_size()), value=1.0)


@contextmanager
def talking(state: HookState) -> Iterator[None]:
    """Says what to do when another process has gone."""
    try:
        yield
    except RuntimeError as error:
        raise ExchangeError(
            f"process {state.rank} of {state.size} lost the others in step {state.step + 1}: one ended or hangs "
            f"({str(error).splitlines()[0][:160]})"
        ) from error


def to_each(state: HookState, rows: Tensor) -> Tensor:
    """Sends row i to process i; returns the rows that all have sent to this one.

    Args:
        state: counts the bytes.
        rows: (processes, length), uint8.
    """
    received = torch.empty_like(rows)
    with talking(state):
        dist.all_to_all_single(received, rows.contiguous(), group=state.group)
    state.sent += rows.numel() - rows[0].numel()
    return received


def to_all(state: HookState, row: Tensor) -> Tensor:
    """Sends a row to all; returns the rows of all, (processes, length), uint8."""
    received = row.new_empty(state.size * len(row))
    # The newer name of the same.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    with talking(state):
        gather(received, row.contiguous(), group=state.group)
    state.sent += (state.size - 1) * row.numel()
    return received.reshape(state.size, -1)


def averaged(state: HookState, flat: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
    """Returns the mean over the processes, and what this process has lost of its own, both of the shape of `flat`.

    As a ring all-reduce, but coded: each process gets one piece of everyone's values, averages it, and sends the
    average to all. What the second coding loses counts as lost by the process that averaged, times the number of
    processes, so that it makes up for it if it adds the loss to its next values.

    Args:
        state: counts the bytes.
        flat: float32, one axis.
        codec: how values become bytes.
    """
    size, count = state.size, len(flat)
    piece = -(-count // size)
    values = functional.pad(flat, (0, piece * size - count)).reshape(size, piece)
    rows = torch.stack([codec.encode(own, at * piece) for at, own in enumerate(values)])
    told = torch.stack([codec.decode(row, at * piece, piece) for at, row in enumerate(rows)])
    begin = state.rank * piece
    mean = torch.stack([codec.decode(row, begin, piece) for row in to_each(state, rows)]).mean(0)
    every = to_all(state, codec.encode(mean, begin))
    result = torch.stack([codec.decode(row, at * piece, piece) for at, row in enumerate(every)])
    lost = values - told
    lost[state.rank] += size * (mean - result[state.rank])
    return result.flatten()[:count], lost.flatten()[:count]
