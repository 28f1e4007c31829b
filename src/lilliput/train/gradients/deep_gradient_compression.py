"""Deep gradient compression: only the largest accumulated gradients are sent, the rest waits and keeps growing."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.solve import dynamic_tree
from lilliput.train.gradients.exchange import Gradients, to_all
from lilliput.train.gradients.state import GradBucket, GradientHook, HookState

NAME = "train/gradients/deep_gradient_compression"


@dataclass(frozen=True)
class DeepGradientCompression(GradientHook):
    """u = m u + g, v = v + u; the largest |v| of each parameter are sent, and u and v are set to 0 there.

    Lin, Han, Mao, Wang and Dally 2018 (arXiv 1712.01887). The momentum is the hook's, so that a gradient which waits
    gathers it (momentum correction): the optimizer is SGD *without* momentum, which adds the mean of what was sent.
    Zeroing u (momentum factor masking) keeps old momentum from carrying on what is over; where everything is sent
    nothing is old, u stays, and this is SGD with momentum exactly. In the warm-up density falls by a factor of 4 each
    quarter of it, from 1/4 on. Found exactly, where the paper estimates the threshold from a sample. Small parameters
    (biases, the last layer) are always sent whole: few bytes, and all outputs wait for them. Places are coded as by
    Elias and Fano, in 2 + log2(1 / density) bits each; what a value of 16 or 8 bits leaves out waits.

    Attributes:
        density: part of each parameter that is sent, 0 < density <= 1, at least one number.
        momentum: m.
        nesterov: v = v + m u + g.
        clip: largest norm of a parameter's gradient in all processes together: here each is clipped to clip / sqrt(n)
            before it is added; 0 for any. Of each parameter, since the whole gradient isn't there in time.
        warm_up: steps.
        bits: of a value that is sent: 32, 16 (half precision) or 8 (dynamic tree), these in parts of the largest.
        whole: parameters of at most so many numbers are sent whole.
    """

    density: float = 0.001
    momentum: float = 0.9
    nesterov: bool = False
    clip: float = 0.0
    warm_up: int = 0
    bits: Literal[32, 16, 8] = 32
    whole: int = 1024

    def __post_init__(self) -> None:
        check_range(NAME, "density", self.density, 1e-9, 1)
        check_range(NAME, "momentum", self.momentum, 0, 1, open_high=True)
        check_range(NAME, "clip", self.clip, 0, 1e30)
        check_range(NAME, "warm_up", self.warm_up, 0, 2**31)
        check_range(NAME, "whole", self.whole, 0, 2**31)
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
        density = self.density_at(state.step)
        # Those that are sent whole come last: their places need not be told.
        order = sorted(range(len(found.sizes)), key=lambda i: found.sizes[i] <= self.whole)
        gradients = torch.split(found.flat, found.sizes)
        places, values, begin, count, sent = [], [], 0, 0, 0
        for i in order:
            small = found.sizes[i] <= self.whole
            place, value = self._sent(state, found.names[i], gradients[i], 1.0 if small else density)
            places.append(place + begin)
            values.append(value)
            begin += found.sizes[i]
            count, sent = (count, sent) if small else (begin, sent + len(place))
        every, where = torch.cat(values), torch.cat(places)
        rows = to_all(state, packed(where[:sent], every, count, self.bits))
        if self.bits < 32:
            self._wait(state, [found.names[i] for i in order], (found, places, every))
        result = torch.zeros_like(found.flat)
        for row in rows:
            told, own = unpacked(row, count, sent, len(every), self.bits)
            result.index_add_(0, torch.cat([told, where[sent:]]), own)
        parts = dict(zip(order, torch.split(result, [found.sizes[i] for i in order])))
        return found.finish(state, bucket, torch.cat([parts[i] for i in range(len(order))]) / state.size)

    def _wait(self, state: HookState, names: list[str], sent: tuple[Gradients, list[Tensor], Tensor]) -> None:
        """What the coding of values leaves out waits with the rest; all of a bucket that is told to be broken."""
        found, places, values = sent
        sizes = dict(zip(found.names, found.sizes))
        told = decoded(coded(values, self.bits), len(values), self.bits).nan_to_num()
        rest = torch.split((values - told).nan_to_num(), [len(place) for place in places])
        begin = 0
        for name, place, own in zip(names, places, rest):
            state.kept("waiting", name, sizes[name])[place - begin] += own
            begin += sizes[name]

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
    """Returns places, ascending, among `count`, then values as bytes; how many doesn't depend on what they are.

    >>> packed(torch.tensor([1, 3]), torch.tensor([1.0, 2.0]), 8).tolist()
    [10, 0, 0, 128, 63, 0, 0, 0, 64]
    """
    low = _low_bits(count, len(places))
    if low is None:
        marked = torch.zeros(count, dtype=torch.bool)
        marked[places] = True
        return torch.cat([_bytes(marked), coded(values, bits)])
    steps = torch.zeros(len(places) + (count >> low) + 1, dtype=torch.bool)
    steps[(places >> low) + torch.arange(len(places))] = True
    rest = (places[:, None] >> torch.arange(low)) & 1
    return torch.cat([_bytes(torch.cat([steps, rest.flatten().bool()])), coded(values, bits)])


def unpacked(data: Tensor, count: int, sent: int, values: int, bits: int = 32) -> tuple[Tensor, Tensor]:
    """Returns `sent` places (int64) among `count`, and `values` values (float32) again.

    >>> unpacked(torch.tensor([10, 0, 0, 128, 63, 0, 0, 0, 64], dtype=torch.uint8), 8, 2, 2)
    (tensor([1, 3]), tensor([1., 2.]))
    """
    low = _low_bits(count, sent)
    if low is None:
        length = -(-count // 8)
        return _bits(data[:length])[:count].nonzero()[:, 0], decoded(data[length:], values, bits)
    high = sent + (count >> low) + 1
    length = -(-(high + low * sent) // 8)
    told = _bits(data[:length])
    places = (told[:high].nonzero()[:, 0] - torch.arange(sent)) << low
    rest = told[high : high + low * sent].reshape(sent, low).long() << torch.arange(low)
    return places + rest.sum(1), decoded(data[length:], values, bits)


def _low_bits(count: int, sent: int) -> int | None:
    """Bits of a place that are written as they are, the others one by one (Elias and Fano); None: a bit each number."""
    if not sent:
        return None
    low = max(0, (count // sent).bit_length() - 1)
    return low if sent + (count >> low) + 1 + low * sent < count else None


def _bytes(bits: Tensor) -> Tensor:
    """Eight bits a byte, the lowest first."""
    rows = functional.pad(bits, (0, -len(bits) % 8)).reshape(-1, 8).to(torch.uint8)
    return (rows << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _bits(data: Tensor) -> Tensor:
    return ((data[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()


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
