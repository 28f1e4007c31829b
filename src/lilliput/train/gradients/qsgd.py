"""QSGD: gradients at a few levels of the norm of their run, rounded at random so that they are right in the mean."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.solve.digits import pack_digits, packed_length, unpack_digits
from lilliput.train.gradients.exchange import Gradients, averaged
from lilliput.train.gradients.state import GradBucket, GradientHook, HookState

NAME = "train/gradients/qsgd"


@dataclass(frozen=True)
class Qsgd(GradientHook):
    """v -> |v| sign(v_i) (l + b) / s, l = floor(s |v_i| / |v|), P(b = 1) = s |v_i| / |v| - l, by runs of v.

    Alistarh, Grubic, Li, Tomioka and Vojnovic 2017 (arXiv 1610.02132): unbiased, with a squared error of at most
    min(d / s^2, sqrt(d) / s) |v|^2 for a run of d. Levels are written as digits of base 2 s + 1, of equal length
    always, and not in Elias' code; the average of a piece is quantized the same way before it goes to all.

    Attributes:
        levels: s.
        run: d, gradients with a norm (4 bytes) of their own.
        norm: `"l2"`, or `"max"`: the largest magnitude, for less noise.
        feedback: add what was not sent to the next gradient; the paper doesn't.
        seed: of the draws.
    """

    levels: int = 7
    run: int = 512
    norm: Literal["l2", "max"] = "l2"
    feedback: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(NAME, "levels", self.levels, 1, 127)
        check_range(NAME, "run", self.run, 1, 1 << 20)
        if self.norm not in {"l2", "max"}:
            raise MethodError(f"{NAME}: no norm '{self.norm}'; there are l2, max")

    def hook(self, state: HookState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Exchanges one bucket; see `GradientHook`."""
        found = Gradients.of(state, bucket, self.feedback)
        result, lost = averaged(state, found.flat, Levels(self, state.generator(self.seed, found.names[0])))
        if self.feedback:
            found.keep(state, lost)
        return found.finish(state, bucket, result)


@dataclass
class Levels:
    """Runs as a norm and levels.

    Attributes:
        method: the settings.
        generator: of the draws, on the CPU.

    >>> codec = Levels(Qsgd(levels=1, norm="max"), torch.Generator())
    >>> codec.decode(codec.encode(torch.tensor([3.0, 0.0, -3.0]), 0), 0, 3)
    tensor([ 3.,  0., -3.])
    """

    method: Qsgd
    generator: torch.Generator

    def encode(self, values: Tensor, begin: int) -> Tensor:
        """Returns the norms' bytes, then the levels'."""
        s, run = self.method.levels, self.method.run
        rows = functional.pad(values, (0, -len(values) % run)).reshape(-1, run)
        norm = torch.linalg.vector_norm(rows, 2 if self.method.norm == "l2" else torch.inf, dim=1)
        height = s * rows.abs() / torch.where(norm > 0, norm, 1)[:, None]
        draws = torch.rand(rows.shape, generator=self.generator).to(rows.device)
        level = (torch.floor(height) + (draws < height - torch.floor(height))).nan_to_num().clamp(max=s)
        digits = (torch.sign(rows).nan_to_num() * level + s).flatten()[: len(values)]
        return torch.cat([norm.contiguous().view(torch.uint8), pack_digits(digits, 2 * s + 1)])

    def decode(self, data: Tensor, begin: int, count: int) -> Tensor:
        """Returns the values; NaN in a run whose norm isn't finite."""
        s, run = self.method.levels, self.method.run
        runs, base = -(-count // run), 2 * s + 1
        norm = data[: 4 * runs].clone().view(torch.float32)
        digits = unpack_digits(data[4 * runs : 4 * runs + packed_length(count, base)], base, count) - s
        return digits.to(torch.float32) * norm.repeat_interleave(run)[:count] / s
