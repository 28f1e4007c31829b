"""Deep gradient compression: only the largest accumulated gradients are sent, the rest waits and keeps growing."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.solve import dynamic_tree
from lilliput.train.gradients.exchange import Gradients, to_all
from lilliput.train.gradients.state import GradBucket, GradientHook, HookState

NAME = "train/gradients/deep_gradient_compression"
BLOCK = 1 << 16


@dataclass(frozen=True)
class DeepGradientCompression(GradientHook):
    """u = m u + g, v = v + u; the largest |v| of each parameter are sent, and u and v are set to 0 there.

    Lin, Han, Mao, Wang and Dally 2018 (arXiv 1712.01887). The momentum is the hook's, so that a gradient which waits
    gathers it (momentum correction): the optimizer is SGD *without* momentum, which adds the mean of what was sent.
    Zeroing u (momentum factor masking) keeps old momentum from carrying on what is over; where everything is sent
    nothing is old, u stays, and this is SGD with momentum exactly. In the warm-up density falls by a factor of 4 each
    quarter of it, from 1/4 on. Found exactly, where the paper estimates the threshold from a sample. A place takes 2
    bytes, or all places one bit for each number where that is less; what a value of 16 or 8 bits leaves out waits.

    Attributes:
        density: part of each parameter that is sent, 0 < density <= 1, at least one number.
        momentum: m.
        nesterov: v = v + m u + g.
        clip: largest norm of a parameter's gradient in all processes together: here each is clipped to clip / sqrt(n)
            before it is added; 0 for any. Of each parameter, since the whole gradient isn't there in time.
        warm_up: steps.
        bits: of a value that is sent: 32, 16 (half precision) or 8 (dynamic tree), these in parts of the largest.
    """

    density: float = 0.001
    momentum: float = 0.9
    nesterov: bool = False
    clip: float = 0.0
    warm_up: int = 0
    bits: Literal[32, 16, 8] = 32

    def __post_init__(self) -> None:
        check_range(NAME, "density", self.density, 1e-9, 1)
        check_range(NAME, "momentum", self.momentum, 0, 1, open_high=True)
        check_range(NAME, "clip", self.clip, 0, 1e30)
        check_range(NAME, "warm_up", self.warm_up, 0, 2**31)
        if self.bits not in {32, 16, 8}:
            raise MethodError(f"{NAME}: bits = {self.bits}; there are 32, 16 and 8")

    def density_at(self, step: int) -> float:
        """Returns the density in a step, counted from 0.

        >>> [DeepGradientCompression(warm_up=8).density_at(step) for step in (0, 2, 4, 6, 8)]
        [0.25, 0.0625, 0.015625, 0.00390625, 0.001]
        """
        if step >= self.warm_up:
            return self.density
        return float(max(self.density, 0.25 ** (1 + 4 * step // self.warm_up)))

    def hook(self, state: HookState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Exchanges one bucket; see `GradientHook`."""
        found = Gradients.of(state, bucket)
        density, begin = self.density_at(state.step), 0
        places, values, sent = [], [], 0
        for name, gradient in zip(found.names, torch.split(found.flat, found.sizes)):
            place, value = self._sent(state, name, gradient, density)
            places.append(place + begin)
            values.append(value)
            begin, sent = begin + len(gradient), sent + len(place)
        every = torch.cat(values)
        rows = to_all(state, packed(torch.cat(places), every, begin, self.bits))
        if self.bits < 32:
            self._wait(state, found, places, every)
        result = torch.zeros_like(found.flat)
        for row in rows:
            result.index_add_(0, *unpacked(row, begin, sent, self.bits))
        return found.finish(state, bucket, result / state.size)

    def _wait(self, state: HookState, found: Gradients, places: list[Tensor], values: Tensor) -> None:
        """What the coding of values leaves out waits with the rest; all of a bucket that is told to be broken."""
        told = decoded(coded(values, self.bits), len(values), self.bits).nan_to_num()
        rest = (values - told).nan_to_num()
        begin = 0
        for name, size, place, own in zip(
            found.names, found.sizes, places, torch.split(rest, [len(p) for p in places])
        ):
            state.kept("waiting", name, size)[place - begin] += own
            begin += size

    def _sent(self, state: HookState, name: str, gradient: Tensor, density: float) -> tuple[Tensor, Tensor]:
        """Adds a gradient to what waits; returns places and values of what is sent, and takes them out."""
        size = len(gradient)
        u, v = state.kept("momentum", name, size), state.kept("waiting", name, size)
        count = min(size, max(1, round(density * size))) if size else 0
        broken = not bool(torch.isfinite(gradient).all())
        if not broken:
            if self.clip:
                norm = float(torch.linalg.vector_norm(gradient))
                most = self.clip / state.size**0.5
                gradient = gradient * min(1.0, most / max(norm, 1e-30))
            u.mul_(self.momentum).add_(gradient)
            v.add_(u.mul(self.momentum).add_(gradient) if self.nesterov else u)
        if count == size:
            place, value = torch.arange(size), v.clone()
            v.zero_()
        else:
            place = torch.topk(v.abs(), count, sorted=False).indices.sort().values
            value = v[place]
            v[place] = 0
            u[place] = 0
        if broken:
            # What waits stays sound; that something is wrong is for all to see.
            value = torch.full_like(value, torch.nan)
        return place, value


def packed(places: Tensor, values: Tensor, count: int, bits: int = 32) -> Tensor:
    """Returns places, ascending, among `count` and their values as bytes; how many does not depend on what they are.

    >>> packed(torch.tensor([1, 3]), torch.tensor([1.0, 2.0]), 8).tolist()
    [10, 0, 0, 128, 63, 0, 0, 0, 64]
    """
    if _as_bits(count, len(places)):
        marked = torch.zeros(-(-count // 8) * 8, dtype=torch.uint8)
        marked[places] = 1
        where = (marked.reshape(-1, 8) * 2 ** torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
    else:
        # Two bytes of each place, and how many there are in each run of 2^16.
        blocks = torch.bincount(places >> 16, minlength=-(-count // BLOCK)).to(torch.int32)
        low = (places & (BLOCK - 1)).to(torch.int32).view(torch.uint8).reshape(-1, 4)[:, :2]
        where = torch.cat([blocks.view(torch.uint8), low.flatten()])
    return torch.cat([where, coded(values, bits)])


def unpacked(data: Tensor, count: int, sent: int, bits: int = 32) -> tuple[Tensor, Tensor]:
    """Returns places (int64) and values (float32) again.

    >>> unpacked(torch.tensor([10, 0, 0, 128, 63, 0, 0, 0, 64], dtype=torch.uint8), 8, 2)
    (tensor([1, 3]), tensor([1., 2.]))
    """
    if _as_bits(count, sent):
        length = -(-count // 8)
        marked = (data[:length, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        places = marked.flatten().nonzero()[:, 0]
    else:
        blocks = -(-count // BLOCK)
        length = 4 * blocks + 2 * sent
        high = torch.arange(blocks).repeat_interleave(data[: 4 * blocks].clone().view(torch.int32).long())
        low = data[4 * blocks : length].reshape(-1, 2).long()
        places = high * BLOCK + low[:, 1] * 256 + low[:, 0]
    return places, decoded(data[length:], sent, bits)


def _as_bits(count: int, sent: int) -> bool:
    return 2 * sent + 4 * -(-count // BLOCK) > -(-count // 8)


def coded(values: Tensor, bits: int) -> Tensor:
    """Returns values as bytes: float32, or the largest and the others in parts of it.

    >>> decoded(coded(torch.tensor([2.0, -1.0]), 16), 2, 16)
    tensor([ 2., -1.])
    """
    if bits == 32:
        return values.to(torch.float32).contiguous().view(torch.uint8)
    top = (values.abs().max() if len(values) else values.new_zeros(())).to(torch.float32).reshape(1)
    unit = values / torch.where(top > 0, top, 1)
    parts = unit.to(torch.float16).view(torch.uint8) if bits == 16 else dynamic_tree.encode(unit)
    return torch.cat([top.view(torch.uint8), parts])


def decoded(data: Tensor, count: int, bits: int) -> Tensor:
    """Returns the values again, float32."""
    if bits == 32:
        return data.clone().view(torch.float32)
    top, rest = data[:4].clone().view(torch.float32), data[4:].clone()
    return (rest.view(torch.float16).float() if bits == 16 else dynamic_tree.decode(rest)) * top
