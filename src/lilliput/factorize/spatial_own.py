"""Separable convolutions of each input channel by itself, and a 1 x 1 convolution over all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.factorize import chain
from lilliput.factorize.rank import check_smaller, packed_as, precise
from lilliput.solve.alternating import cp

NAME = "factorize/spatial_own"


@dataclass(frozen=True)
class SpatialOwn(WeightMethod):
    """W[n, c] ~ sum_m a[n, c, m] v[c, m] h[c, m]^T: M separable filters of each input channel, shared by all outputs.

    The first scheme of Jaderberg, Vedaldi and Zisserman 2014 (arXiv 1405.3866). It holds C M (N + kh + kw) numbers.
    The filters are those of a CP decomposition of each channel's kernels, by alternating least squares.

    Attributes:
        rank: M; 0 to go by `ratio`.
        ratio: the part of the numbers to be kept, 0 < ratio <= 1.
        force: factorize even where the factors hold more numbers than the weight.
        sweeps: of alternating least squares.

    >>> import torch
    >>> kernel = torch.ones(9, 2, 3, 3) * torch.tensor([1.0, 2, 3])
    >>> packed = SpatialOwn(rank=1).pack(kernel)
    >>> bool(torch.allclose(SpatialOwn.unpack(packed), kernel)), packed.parts["mix"].shape
    (True, torch.Size([9, 2]))
    """

    rank: int = 0
    ratio: float = 0.5
    force: bool = False
    sweeps: int = 30

    into = ("down", "across", "mix")
    training = "parts"
    trained = ("down", "across", "mix")

    def __post_init__(self) -> None:
        check_range(NAME, "rank", self.rank, 0, 2**31)
        check_range(NAME, "ratio", self.ratio, 1e-6, 1)
        check_range(NAME, "sweeps", self.sweeps, 1, 10**6)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `down` (C M, 1, kh, 1), `across` (C M, 1, 1, kw) and `mix` (N, C M), in the weight's dtype.

        Raises:
            NotWorthwhile: if the factors would hold more numbers than the weight.
            MethodError: if the weight hasn't four axes, or isn't finite.
        """
        chain.check_convolution(weight, NAME, planar=True)
        out, channels, high, wide = weight.shape
        each = channels * (out + high + wide)
        most = min(out, high * wide)
        rank = min(self.rank or max(1, math.floor(self.ratio * weight.numel() / each)), most)
        what = f"{rank} separable filters for each channel of {tuple(weight.shape)}"
        check_smaller(NAME, rank * each, weight, what, self.force)
        mix, down, across = cp(precise(weight).transpose(0, 1), rank, sweeps=self.sweeps)
        parts = {
            "down": down.transpose(1, 2).reshape(-1, 1, high, 1),
            "across": across.transpose(1, 2).reshape(-1, 1, 1, wide),
            "mix": mix.transpose(0, 1).reshape(out, -1),
        }
        return packed_as(NAME, weight, parts)

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the composed kernels in the weight's shape."""
        down, across, mix = _checked(packed)
        out, channels, high, wide = packed.shape
        kernels = (down * across).reshape(channels, -1, high * wide)
        whole = mix.reshape(out, channels, -1).transpose(0, 1) @ kernels
        return whole.transpose(0, 1).reshape(packed.shape).contiguous()

    @staticmethod
    def layers(packed: Packed, layer: nn.Module) -> nn.Sequential:
        """Returns the three convolutions that do what `layer` does with the unpacked weight; see `chain.in_turn`."""
        down, across, mix = _checked(packed)
        own = (down, (0,), packed.shape[1]), (across, (1,), len(across))
        return chain.in_turn(packed, layer, [*own, (mix, (), 1)])

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """A quarter, half and three quarters of the numbers."""
        return tuple(cls(ratio=ratio) for ratio in (0.25, 0.5, 0.75))


def _checked(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    down, across, mix = chain.factors(packed, "down", "across", "mix")
    if len(packed.shape) != 4:
        raise chain.misfit(packed, down, across, mix)
    out, channels, high, wide = packed.shape
    count = len(down) if down.ndim else 0
    sizes = [tuple(part.shape) for part in (down, across, mix)]
    if sizes != [(count, 1, high, 1), (count, 1, 1, wide), (out, count)] or not count or count % channels:
        raise chain.misfit(packed, down, across, mix)
    if count // channels > min(out, high * wide):
        # More kernels than can be told apart would take more memory than the weight they make.
        raise MethodError(f"{NAME}: {count // channels} filters a channel are more than {packed.shape} can use")
    return down, across, mix
