"""Binary layers in integers: XNOR and bit count, BatchNorm and sign as one threshold, inputs as bit planes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError

WORD = 64


def pack_bits(signs: Tensor) -> Tensor:
    """Packs signs along the last axis, 64 to a word, the first in the lowest bit; the rest of the last word is 0.

    Args:
        signs: (..., n); what is above 0 becomes a 1.

    Returns:
        (..., ceil(n / 64)), int64.

    >>> pack_bits(torch.tensor([1.0, -1.0, 1.0])).tolist()
    [5]
    """
    bits = functional.pad((signs > 0).long(), (0, -signs.shape[-1] % WORD))
    weights = torch.bitwise_left_shift(torch.ones(WORD, dtype=torch.int64), torch.arange(WORD))
    return (bits.reshape(*bits.shape[:-1], bits.shape[-1] // WORD, WORD) * weights).sum(-1)


@cache
def _counts() -> Tensor:
    return torch.tensor([byte.bit_count() for byte in range(256)])


def bit_count(words: Tensor) -> Tensor:
    """Returns the number of ones along the last axis of words, int64.

    >>> bit_count(torch.tensor([[-1, 3]])).tolist()
    [66]
    """
    return _counts()[(words[..., None] >> torch.arange(0, WORD, 8)) & 255].sum((-2, -1))


def products(x: Tensor, weight: Tensor, n: int, valid: Tensor | None = None) -> Tensor:
    """Returns the dot products of signs: n - 2 popcount(x ^ w); with `valid` only over the places that are 1 there.

    Args:
        x: (samples, words), from `pack_bits`.
        weight: (outputs, words).
        n: signs in a row.
        valid: (samples, words) or (words,): places that count; a zero of the padding is no sign.

    Returns:
        (samples, outputs), int64.
    """
    different = x[:, None] ^ weight[None]
    if valid is None:
        return n - 2 * bit_count(different)
    valid = valid.expand(x.shape)
    return bit_count(valid)[:, None] - 2 * bit_count(different & valid[:, None])


@dataclass(frozen=True, eq=False)
class Thresholds:
    """BatchNorm, then sign, as comparisons of whole numbers, for each channel.

    Attributes:
        at: (channels,), int64: +1 from there on (upwards), or up to there (downwards).
        up: (channels,), bool: upwards.
    """

    at: Tensor
    up: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        """Returns whether each is +1; y is (..., channels), whole numbers."""
        return torch.where(self.up, y >= self.at, y <= self.at)


def fold(norm: Callable[[Tensor], Tensor], channels: int, n: int) -> Thresholds:
    """Finds where sign(norm(y)) changes, for whole y from -n to n, by trying them all.

    sign(gamma (y - mu) / sqrt(var + eps) + beta) is +1 from tau = mu - beta sqrt(var + eps) / gamma on, or up to it if
    gamma < 0 (Courbariaux, Hubara et al. 2016, arXiv 1602.02830). Tried instead of computed, it agrees with the norm's
    own rounding where tau is a whole number.

    Args:
        norm: takes (samples, channels), float32, and gives the same shape; rising or falling in each channel.
        channels: of the layer.
        n: largest magnitude of y.

    Raises:
        MethodError: the signs of a channel change more than once: it is no norm.
    """
    values = torch.arange(-n, n + 1)
    with torch.no_grad():
        # Contiguous, as it is in a network: torch rounds otherwise where rows share memory.
        plus = norm(values.float()[:, None].repeat(1, channels)) >= 0
    changes = (plus[1:] != plus[:-1]).sum(0)
    if bool((changes > 1).any()):
        raise MethodError(f"channel {int(changes.argmax())}: its sign changes {int(changes.max())} times, not once")
    count = plus.sum(0)
    up = plus[-1] | (count == 0)
    # Upwards the last `count` values are +1, downwards the first.
    return Thresholds(torch.where(up, n + 1 - count, count - 1 - n), up)


def of_counts(thresholds: Thresholds, n: int) -> Thresholds:
    """Returns the thresholds for the number p of equal signs instead of the product y = 2 p - n.

    p >= ceil((tau + n) / 2), or p <= floor((tau + n) / 2).
    """
    total = thresholds.at + n
    up = torch.div(total + 1, 2, rounding_mode="floor")
    return Thresholds(torch.where(thresholds.up, up, torch.div(total, 2, rounding_mode="floor")), thresholds.up)


def plane_products(x: Tensor, weight: Tensor) -> Tensor:
    """Returns the products of 8-bit inputs and signs, plane by plane: sum over b of 2^b (x_b . w).

    x_b . w = popcount(x_b & w) - popcount(x_b & ~w), w's bit being 1 for +1: the first layer of a binary network.

    Args:
        x: (samples, n), uint8.
        weight: (outputs, n), signs.

    Returns:
        (samples, outputs), int64.
    """
    own = pack_bits(weight)
    total = torch.zeros(len(x), len(weight), dtype=torch.int64)
    for plane in range(8):
        bits = pack_bits((x.long() >> plane) & 1)
        both = bit_count(bits[:, None] & own[None])
        total += (2 * both - bit_count(bits)[:, None]) << plane
    return total


def convolve(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Returns the convolution of signs, whose padding is 0 and no sign: places outside don't count.

    Args:
        x: (batch, channels, height, width), signs.
        weight: (outputs, channels, kh, kw), signs.
        stride: in both directions.
        padding: on every side.

    Returns:
        (batch, outputs, height, width), int64.
    """
    sides = (padding,) * 4

    def rows(value: Tensor) -> tuple[Tensor, tuple[int, int]]:
        windows = functional.pad(value, sides).unfold(2, weight.shape[2], stride).unfold(3, weight.shape[3], stride)
        return windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2), (windows.shape[2], windows.shape[3])

    signs, (height, width) = rows(x)
    inside, _ = rows(torch.ones_like(x))
    own = pack_bits(weight.flatten(1))
    found = products(pack_bits(signs), own, signs.shape[1], pack_bits(inside))
    return found.reshape(len(x), height, width, -1).permute(0, 3, 1, 2)
