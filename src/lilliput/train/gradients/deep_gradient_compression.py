"""Deep gradient compression: only the largest accumulated gradients are sent, the rest waits and keeps growing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.checks import check_range
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
    quarter of it, from 1/4 on. Found exactly, where the paper estimates the threshold from a sample.

    Attributes:
        density: part of each parameter that is sent, 0 < density <= 1, at least one number.
        momentum: m.
        nesterov: v = v + m u + g.
        clip: largest norm of a parameter's gradient in all processes together: here each is clipped to clip / sqrt(n)
            before it is added; 0 for any. Of each parameter, since the whole gradient isn't there in time.
        warm_up: steps.
    """

    density: float = 0.001
    momentum: float = 0.9
    nesterov: bool = False
    clip: float = 0.0
    warm_up: int = 0

    def __post_init__(self) -> None:
        check_range(NAME, "density", self.density, 1e-9, 1)
        check_range(NAME, "momentum", self.momentum, 0, 1, open_high=True)
        check_range(NAME, "clip", self.clip, 0, 1e30)
        check_range(NAME, "warm_up", self.warm_up, 0, 2**31)

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
        places, values = [], []
        for name, gradient in zip(found.names, torch.split(found.flat, found.sizes)):
            place, value = self._sent(state, name, gradient, density)
            places.append(place + begin)
            values.append(value)
            begin += len(gradient)
        rows = to_all(state, packed(torch.cat(places), torch.cat(values), begin))
        result = torch.zeros_like(found.flat)
        for row in rows:
            place, value = unpacked(row, begin, len(torch.cat(values)))
            result.index_add_(0, place, value)
        return found.finish(state, bucket, result / state.size)

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


def packed(places: Tensor, values: Tensor, count: int) -> Tensor:
    """Returns places among `count` and their values as bytes: numbers of 4 bytes, or one bit each where that is less.

    >>> packed(torch.tensor([1, 3]), torch.tensor([1.0, 2.0]), 8).tolist()
    [10, 0, 0, 128, 63, 0, 0, 0, 64]
    """
    if 32 * len(places) > count:
        bits = torch.zeros(-(-count // 8) * 8, dtype=torch.uint8)
        bits[places] = 1
        weights = 2 ** torch.arange(8, dtype=torch.uint8)
        where = (bits.reshape(-1, 8) * weights).sum(1, dtype=torch.uint8)
    else:
        where = places.to(torch.int32).view(torch.uint8)
    return torch.cat([where, values.to(torch.float32).contiguous().view(torch.uint8)])


def unpacked(data: Tensor, count: int, sent: int) -> tuple[Tensor, Tensor]:
    """Returns places (int64) and values (float32) again.

    >>> unpacked(torch.tensor([10, 0, 0, 128, 63, 0, 0, 0, 64], dtype=torch.uint8), 8, 2)
    (tensor([1, 3]), tensor([1., 2.]))
    """
    length = -(-count // 8) if 32 * sent > count else 4 * sent
    where, values = data[:length].clone(), data[length:].clone().view(torch.float32)
    if 32 * sent > count:
        bits = (where[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        return bits.flatten().nonzero()[:, 0], values
    return where.view(torch.int32).long(), values
