"""TernGrad: gradients as -1, 0 or 1 at random, times the largest, so that they are right in the mean."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.solve.digits import pack_digits, unpack_digits
from lilliput.train.gradients.exchange import Gradients, to_all, to_each
from lilliput.train.gradients.state import GradBucket, GradientHook, HookState

NAME = "train/gradients/terngrad"


@dataclass(frozen=True)
class TernGrad(GradientHook):
    """g -> s sign(g) b with P(b = 1) = |g| / s, s the largest |g| of the parameter in any process.

    Wen et al. 2017 (arXiv 1705.07878): unbiased, with a squared error of s |g|_1 - |g|^2 in the mean. The scale is
    shared, so that the sum over n processes has 2 n + 1 values: each process sends pieces of 1.6 bits a value to those
    who sum them, and gets sums, which take log2(2 n + 1) bits and hold everything. The gradient is clipped first, to
    c times its standard deviation: few large values would make the scale large and all others zero.

    Attributes:
        clip: c; 0 for no clipping. 1.5 was better than the paper's 2.5 where it was measured (docs/benchmarks).
        feedback: add what was not sent to the next gradient. The paper doesn't; what has been clipped or drawn away
            then comes later, but the error can grow where the scale is far above the typical gradient.
        seed: of the draws.

    >>> ternary(torch.tensor([2.0, -2.0, 0.0]), torch.tensor([2.0] * 3), torch.Generator())
    tensor([ 1., -1.,  0.])
    """

    clip: float = 2.5
    feedback: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(NAME, "clip", self.clip, 0, 1e6)

    def hook(self, state: HookState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Exchanges one bucket; see `GradientHook`."""
        found = Gradients.of(state, bucket, self.feedback)
        whole = found.flat.clone() if self.feedback else found.flat
        if self.clip:
            for part in torch.split(found.flat, found.sizes):
                if len(part) > 1:
                    part.copy_(clipped(part, self.clip))
        scale = found.spread(found.largest(state))
        count, size = len(found.flat), state.size
        digits = ternary(found.flat, scale[:count], state.generator(self.seed, found.names[0]))
        if self.feedback:
            found.keep(state, whole - digits * scale[:count])
        piece = -(-count // size)
        rows = functional.pad(digits + 1, (0, piece * size - count), value=1).reshape(size, piece)
        got = to_each(state, torch.stack([pack_digits(row, 3) for row in rows]))
        total = torch.stack([unpack_digits(row, 3, piece) for row in got]).sum(0)
        every = to_all(state, pack_digits(total, 2 * size + 1))
        sums = torch.cat([unpack_digits(row, 2 * size + 1, piece) for row in every])[:count] - size
        return found.finish(state, bucket, sums.to(torch.float32) * scale[:count] / size)


def clipped(gradient: Tensor, times: float) -> Tensor:
    """Returns a gradient clipped to +-times its (population) standard deviation.

    >>> clipped(torch.tensor([-1.0, 1.0, -1.0, 1.0]), 0.5)
    tensor([-0.5000,  0.5000, -0.5000,  0.5000])
    """
    most = times * gradient.std(correction=0)
    return torch.where(torch.isfinite(most), torch.clamp(gradient, -most, most), gradient)


def ternary(gradient: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Returns sign(g) b, -1, 0 or 1, with P(b = 1) = |g| / scale; float32.

    Args:
        gradient: one axis.
        scale: for each element, not below |g|.
        generator: of the draws, on the CPU.
    """
    chance = gradient.abs() / torch.where(scale > 0, scale, 1)
    draws = torch.rand(len(gradient), generator=generator).to(gradient.device)
    return torch.sign(gradient).nan_to_num() * (draws < chance)
